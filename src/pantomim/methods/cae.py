"""Context autoencoder: an encoder that only represents, a regressor that predicts, a decoder that solves the task.

The encoder sees the visible patches. The latent contextual regressor predicts, from them alone, what the encoder would
say of the hidden ones; the alignment holds it to that. The decoder turns the predictions into the target.

Paper: Chen et al., *Context Autoencoder for Self-Supervised Representation Learning*, arXiv:2202.03026.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.masking import Masker, MaskerConfig
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Method
from pantomim.methods.guides import GuideConfig, MaskGuide, draw_mask
from pantomim.nn.decoder import LatentDecoder, LatentDecoderConfig
from pantomim.nn.momentum import follow
from pantomim.nn.regressor import Projection, Regressor, RegressorConfig
from pantomim.nn.vit import ENCODER_SIZES, Encoder, EncoderConfig
from pantomim.targets.base import Target
from pantomim.targets.choice import TargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.base import Teacher

Size = Literal["small", "base", "large"]


def cae_encoder(size: Size, drop_path: float = 0.0) -> EncoderConfig:
    """CAE's encoder for images of 224 x 224: no relative positions in pre-training, scales of 0.1 (ViT-L: 1e-5).

    Source: the authors' `modeling_cae_helper.py`. Deviation: none; their ViT-S has twelve heads, where timm's has six.
    """
    sizes = ENCODER_SIZES[size] | ({"heads": 12} if size == "small" else {})
    return EncoderConfig(
        **sizes,
        position="sincos_rows_first",
        attention_bias="qv",
        layer_scale=1e-5 if size == "large" else 0.1,
        initialisation="beit" if size == "large" else "cae",
        drop_path=drop_path,
    )


@frozen
class CAEConfig:
    """The parts of CAE, with the values of the paper's ViT-B and 75 hidden patches; see `preset` for others.

    Args:
        encoder: As `cae_encoder` makes it; regressor and decoder are initialised the way it says.
        regressor: Its width is also the decoder's; another one than the encoder's brings a projection.
        decoder: Depth 0: the head sits on the regressor, the paper's ablation without a decoder.
        masker: The same number of patches in every image; the authors hide blocks.
        guide: Whose attention decides what is hidden, where the masker asks for it.
        target: What the decoder predicts; the authors normalise pixels by "layer".
        align_weight: Weight of the alignment loss (lambda); 0: no alignment, the paper's ablation.
        align_momentum: None: the alignment target comes from the encoder itself. A number: from a copy that keeps
            this share of itself at every step.
        align_drop_path: Stochastic depth is active in the alignment target too, as in the authors' code.

    Raises:
        ValueError: if the masker does not go with the encoder's grid, or hides another number of patches in each image,
            or a number is out of range.
    """

    kind: Literal["cae"] = "cae"
    encoder: EncoderConfig = field(default_factory=lambda: cae_encoder("base"))
    regressor: RegressorConfig = field(default_factory=RegressorConfig)
    decoder: LatentDecoderConfig = field(default_factory=LatentDecoderConfig)
    masker: MaskerConfig = field(default_factory=lambda: BlockMasker(ratio=75 / 196))
    guide: GuideConfig = field(default_factory=GuideConfig)
    target: TargetConfig = field(default_factory=TokenTargetConfig)
    align_weight: float = 2.0
    align_momentum: float | None = None
    align_drop_path: bool = True

    def __post_init__(self) -> None:
        self.masker.num_masked(self.encoder.grid)
        if self.masker.varies:
            raise ValueError(
                f"CAEConfig.masker must hide the same number of patches in every image, as CAE's encoder takes visible "
                f"and hidden ones as one tensor each; got {self.masker.kind}, whose number varies. Set exact."
            )
        if not 0 <= self.align_weight < float("inf"):
            raise ValueError(
                f"CAEConfig.align_weight must not be negative; got {self.align_weight}. The paper has 2; 0 means none."
            )
        if self.align_momentum is not None and not 0 <= self.align_momentum <= 1:
            raise ValueError(
                f"CAEConfig.align_momentum must be in [0, 1]; got {self.align_momentum}. Leave it out for no copy."
            )
        if self.align_momentum is not None and self.align_weight == 0:
            raise ValueError(
                f"CAEConfig.align_momentum must be left out without alignment (align_weight 0), as nothing is compared "
                f"with the copy; got {self.align_momentum}. Leave it out, or give align_weight."
            )

    def describe(self, teacher: Teacher | None = None) -> list[tuple[str, str]]:
        """Parts and token shapes, and which network sees which patches; for `pantomim explain`.

        Args:
            teacher: The one whose features are predicted; None: there is none, or it is not known.
        """
        encoder, regressor = self.encoder, self.regressor
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        size, channels, prefix = encoder.patch_size, encoder.in_chans, encoder.num_prefix
        masked = self.masker.num_masked(encoder.grid)
        visible = rows * cols - masked
        shape = "" if teacher is None else f"B x {masked} x {teacher.width}: "
        latent, heads = regressor.width or encoder.width, regressor.heads or encoder.heads
        read = f"{visible} visible patches" + (f" and the {masked} queries" if regressor.keys == "all" else "")
        branch = "the encoder" if self.align_momentum is None else f"its copy (momentum {self.align_momentum:g})"
        aligned = f"B x {masked} x {latent}: hidden patches through {branch}, no gradient, weight {self.align_weight:g}"
        return [
            ("images", f"B x {channels} x {height} x {width}, patches of {size}x{size}, grid {rows} x {cols}"),
            (
                "masker",
                f"{self.masker.kind} ({in_words(self.masker)}): {visible} visible and {masked} masked patches",
            ),
            *self.guide.describe(rows * cols),
            ("encoder", f"{encoder.width} wide, {encoder.depth} blocks, {encoder.heads} heads"),
            ("encoder sees", f"B x {prefix + visible} x {encoder.width}: visible patches and {prefix} prefix token(s)"),
            ("regressor", f"{latent} wide, {regressor.depth} blocks, {heads} heads"),
            ("regressor sees", f"B x {masked} x {latent} queries, which read {read}"),
            ("alignment", aligned if self.align_weight else "none"),
            ("decoder", f"{latent} wide, {self.decoder.depth} blocks, {heads} heads"),
            ("decoder sees", f"B x {masked} x {latent}: predicted latents of the masked patches, nothing else"),
            ("predicts", f"{shape}{self.target.kind} ({in_words(self.target)}) of the masked patches"),
        ]

    def build(self) -> "CAE":
        """The method, with the authors' initialisation drawn from torch's global generator.

        Raises:
            ValueError: if no tokenizer is given, or one that does not go with the encoder.
        """
        encoder = self.encoder.build()
        return self._assembled(encoder, self.target.build(encoder))

    def build_around(self, target: Target) -> "CAE":
        """The method with a target that is there already, such as tokens of a tokenizer at hand."""
        return self._assembled(self.encoder.build(), target)

    def _assembled(self, encoder: Encoder, target: Target) -> "CAE":
        regressor = self.regressor.build(self.encoder)
        width, heads = self.regressor.width or encoder.width, self.regressor.heads or self.encoder.heads
        decoder = self.decoder.build(width, heads, encoder.grid, target.dim, self.encoder.initialisation)
        projection = None if width == encoder.width else Projection(encoder.width, width)
        return CAE(
            encoder,
            projection,
            regressor,
            decoder,
            self.masker,
            target,
            self.guide.build(encoder, self.masker),
            align_weight=self.align_weight,
            align_momentum=self.align_momentum,
            align_drop_path=self.align_drop_path,
        )


@dataclass(frozen=True)
class CAEDraws:
    """All that is random in a step of CAE."""

    mask: Mask


class CAE(Method):
    """Encoder, regressor, decoder and alignment; `CAEConfig` explains the settings."""

    def __init__(
        self,
        encoder: Encoder,
        projection: Projection | None,
        regressor: Regressor,
        decoder: LatentDecoder,
        masker: Masker,
        target: Target,
        guide: MaskGuide | None = None,
        *,
        align_weight: float = 2.0,
        align_momentum: float | None = None,
        align_drop_path: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.projection, self.regressor, self.decoder = encoder, projection, regressor, decoder
        self.masker, self.target, self.guide = masker, target, guide
        self.align_weight, self.align_momentum, self.align_drop_path = align_weight, align_momentum, align_drop_path
        self.aligner = None if align_momentum is None else copy.deepcopy(encoder).requires_grad_(False)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> CAEDraws:
        """One mask per image of the global batch, cut to this batch's rows."""
        attention = None if self.guide is None else self.guide(batch.images)
        return CAEDraws(draw_mask(self.masker, batch, self.encoder.grid, generator, attention))

    def forward(self, batch: Batch, draws: CAEDraws) -> dict[str, Tensor]:
        """The task's loss on the hidden patches, and the alignment of their predicted latents, weighted."""
        mask = draws.mask
        visible = self.latents(self.encoder, batch.images, mask.ids_keep)  # (B, V, D)
        predicted = self.regressor(visible, mask)  # (B, M, D)
        prediction = self.decoder(predicted, mask.ids_mask)  # (B, M, K)
        outputs = self.score(prediction, batch.images, mask)
        if self.align_weight == 0:
            return {"loss": outputs["loss_target"]} | outputs
        aligned = self.alignment_target(batch.images, mask)  # (B, M, D), no gradient
        loss_align = F.mse_loss(predicted, aligned)
        return {"loss": outputs["loss_target"] + self.align_weight * loss_align, "loss_align": loss_align} | outputs

    def latents(
        self, encoder: Encoder, images: Float[Tensor, "B C H W"], ids: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B K D"]:
        """What an encoder says of the patches `ids` (all, if None) alone; the class token stays behind."""
        patches = encoder(images, ids).patches
        return patches if self.projection is None else self.projection(patches)

    @torch.no_grad()
    def alignment_target(self, images: Float[Tensor, "B C H W"], mask: Mask) -> Float[Tensor, "B M D"]:
        """What the encoder says of the hidden patches, when it sees them and no others; no gradient."""
        encoder = self.encoder if self.aligner is None else self.aligner
        if self.align_drop_path:
            return self.latents(encoder, images, mask.ids_mask)
        with evaluating(encoder):
            return self.latents(encoder, images, mask.ids_mask)

    def score(
        self, prediction: Float[Tensor, "B M K"], images: Float[Tensor, "B C H W"], mask: Mask
    ) -> dict[str, Tensor]:
        """What the target says of a prediction of the hidden patches; its loss is one of two here."""
        scores = self.target.score(prediction, images, mask.ids_mask)
        return {"loss_target": scores.pop("loss")} | scores

    @torch.no_grad()
    def without_regressor(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """All patches through the encoder, straight into the decoder: what the alignment makes legible."""
        latents = self.latents(self.encoder, images)
        ids = torch.arange(latents.shape[1], device=latents.device).expand(len(latents), -1)
        return self.decoder(latents, ids)

    def update_ema(self, step: int) -> None:
        """The copy, if there is one, follows the encoder, and so do a teacher or guide that is a moving average."""
        self.target.follow(self.encoder)
        if self.guide is not None:
            self.guide.follow(self.encoder)
        if self.aligner is not None:
            follow(self.aligner, self.encoder, self.align_momentum or 0.0)

    def reset(self) -> None:
        """The copy, if there is one, begins as the encoder, and so do a teacher or guide that is a copy of it."""
        self.target.start(self.encoder)
        if self.guide is not None:
            self.guide.start(self.encoder)
        if self.aligner is not None:
            follow(self.aligner, self.encoder, 0.0)

    def exports(self) -> dict[str, nn.Module]:
        """The encoder, and the rest for pictures and for going on."""
        parts: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "regressor": self.regressor,
            "decoder": self.decoder,
        }
        return parts if self.projection is None else parts | {"projection": self.projection}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, for as long as this lasts."""
    before = module.training
    module.train(False)
    try:
        yield
    finally:
        module.train(before)


def preset(size: Size, num_masked: Literal[75, 98] = 75) -> CAEConfig:
    """The paper's models on 224 x 224 pixels, with either number of hidden patches out of 196.

    75 goes without stochastic depth, as in the authors' Paddle release; 98 has 0.1 in each of the three stacks, as the
    published checkpoints (their PyTorch release). Regressor and decoder are as wide as the encoder: also for ViT-S,
    where the code's default is 768, so that the alignment is in the encoder's own space.
    """
    drop_path = 0.1 if num_masked == 98 else 0.0
    encoder = cae_encoder(size, drop_path)
    scale = encoder.layer_scale
    return CAEConfig(
        encoder=encoder,
        regressor=RegressorConfig(layer_scale=scale, drop_path=drop_path),
        decoder=LatentDecoderConfig(layer_scale=scale, drop_path=drop_path),
        masker=BlockMasker(ratio=num_masked / 196),
    )
