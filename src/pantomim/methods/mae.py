"""Masked autoencoder: encode the visible patches, predict the pixels of the hidden ones.

Paper: He et al. 2022, *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.masking import Masker, MaskerConfig
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Method
from pantomim.methods.guides import GuideConfig, MaskGuide, draw_mask
from pantomim.nn.decoder import DecoderConfig, MAEDecoder
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.targets.base import Target
from pantomim.targets.choice import TargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.teachers.base import Teacher


@frozen
class MAEConfig:
    """The parts of MAE: encoder, decoder, what is hidden, what is predicted.

    Args:
        encoder: It sees the visible patches.
        decoder: It sees all positions.
        masker: The same number of patches in every image.
        guide: Whose attention decides, where the masker asks for it.
        target: What is predicted of the hidden patches.

    Raises:
        ValueError: if the masker does not go with the encoder's grid, or hides another number of patches in each image.
    """

    kind: Literal["mae"] = "mae"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    masker: MaskerConfig = field(default_factory=RandomMasker)
    guide: GuideConfig = field(default_factory=GuideConfig)
    target: TargetConfig = field(default_factory=PixelTargetConfig)

    def __post_init__(self) -> None:
        self.masker.num_masked(self.encoder.grid)
        if self.masker.varies:
            raise ValueError(
                f"MAEConfig.masker must hide the same number of patches in every image, as MAE's encoder takes the "
                f"visible ones as one tensor; got {self.masker.kind}, whose number varies. Set exact."
            )

    def describe(self, teacher: Teacher | None = None) -> list[tuple[str, str]]:
        """Parts and token shapes, and which network sees which patches; for `pantomim explain`.

        Args:
            teacher: The one whose features are predicted; None: there is none, or it is not known.
        """
        encoder, decoder = self.encoder, self.decoder
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        size, channels, prefix = encoder.patch_size, encoder.in_chans, encoder.num_prefix
        masked = self.masker.num_masked(encoder.grid)
        visible = rows * cols - masked
        sizes = "{0.width} wide, {0.depth} blocks, {0.heads} heads".format
        shape = "" if teacher is None else f"B x {masked} x {teacher.width}: "
        return [
            ("images", f"B x {channels} x {height} x {width}, patches of {size}x{size}, grid {rows} x {cols}"),
            (
                "masker",
                f"{self.masker.kind} ({in_words(self.masker)}): {visible} visible and {masked} masked patches",
            ),
            *self.guide.describe(rows * cols),
            (
                "encoder",
                f"{sizes(encoder)}, {encoder.position} positions",
            ),
            ("encoder sees", f"B x {prefix + visible} x {encoder.width}: visible patches and {prefix} prefix token(s)"),
            ("decoder", sizes(decoder)),
            (
                "decoder sees",
                f"B x {prefix + rows * cols} x {decoder.width}: all positions, a mask token at hidden ones",
            ),
            ("predicts", f"{shape}{self.target.kind} ({in_words(self.target)}) of the masked patches"),
        ]

    def build(self) -> "MAE":
        """The method, with the authors' initialisation drawn from torch's global generator."""
        encoder = self.encoder.build()
        return self._assembled(encoder, self.target.build(encoder))

    def build_around(self, target: Target) -> "MAE":
        """The method with a target that is there already, such as tokens of a tokenizer at hand."""
        return self._assembled(self.encoder.build(), target)

    def _assembled(self, encoder: Encoder, target: Target) -> "MAE":
        decoder = self.decoder.build(encoder.width, encoder.num_prefix, encoder.grid, target.dim)
        return MAE(encoder, decoder, self.masker, target, self.guide.build(encoder, self.masker))


@dataclass(frozen=True)
class MAEDraws:
    """All that is random in a step of MAE."""

    mask: Mask


class MAE(Method):
    """Asymmetric encoder and decoder around a mask (section 3 of the paper)."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: MAEDecoder,
        masker: Masker,
        target: Target,
        guide: MaskGuide | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.masker, self.target, self.guide = encoder, decoder, masker, target, guide

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> MAEDraws:
        """One mask per image of the global batch, cut to this batch's rows."""
        attention = None if self.guide is None else self.guide(batch.images)
        return MAEDraws(draw_mask(self.masker, batch, self.encoder.grid, generator, attention))

    def forward(self, batch: Batch, draws: MAEDraws) -> dict[str, Tensor]:
        """The target's loss on the hidden patches only (section 3, "Reconstruction target")."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        prediction = self.decoder(latent, mask)  # (B, M, K), hidden patches only
        return self.target.score(prediction, batch.images, mask.ids_mask)

    def update_ema(self, step: int) -> None:
        """A teacher or guide that is a moving average of the encoder moves."""
        self.target.follow(self.encoder)
        if self.guide is not None:
            self.guide.follow(self.encoder)

    def reset(self) -> None:
        """A teacher or guide that is a copy of the encoder is copied anew."""
        self.target.start(self.encoder)
        if self.guide is not None:
            self.guide.start(self.encoder)

    def exports(self) -> dict[str, nn.Module]:
        """The encoder, and the decoder for pictures and for going on."""
        return {"encoder": self.encoder, "decoder": self.decoder}
