"""BEiT: hide blocks of patches behind a mask token, and let the encoder name the visual tokens there.

Paper: Bao et al. 2022, *BEiT: BERT Pre-Training of Image Transformers*, arXiv:2106.08254.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.masking import Masker, MaskerConfig
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Method
from pantomim.methods.guides import GuideConfig, MaskGuide, draw_mask
from pantomim.nn.init import SCHEMES, initialise
from pantomim.nn.tokens import take
from pantomim.nn.vit import ENCODER_SIZES, Encoder, EncoderConfig, MaskTokens
from pantomim.targets.base import Target
from pantomim.targets.choice import TargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.base import Teacher


def beit_encoder(size: Literal["base", "large"], drop_path: float = 0.1) -> EncoderConfig:
    """BEiT's encoder for images of 224 x 224: one table of relative positions, scales of 0.1 (ViT-L: 1e-5).

    Paper: section 2.5 and Table 12.
    Deviation: no learned absolute positions beside or instead of the relative ones, as in the authors' code and recipes
        (the paper has absolute ones, section 2.1); `position` and `relative_position` set either.
    """
    return EncoderConfig(
        **ENCODER_SIZES[size],
        position="none",
        relative_position="shared",
        attention_bias="qv",
        layer_scale=1e-5 if size == "large" else 0.1,
        initialisation="beit",
        drop_path=drop_path,
    )


@frozen
class BEiTConfig:
    """The parts of BEiT, with the values of the paper's ViT-B.

    Args:
        encoder: As `beit_encoder` makes it.
        masker: Blocks, 75 of 196 patches at most; a count that varies is fine.
        guide: Whose attention decides what is hidden, where the masker asks for it.
        target: What is predicted of the hidden patches: tokens, or another (pixels are the ablation of Table 4, whose
            loss the paper does not state).
        initialise_head: As the encoder's linear layers; off: as torch does by itself, which is SimMIM's way.

    Raises:
        ValueError: if the masker does not go with the encoder's grid.
    """

    kind: Literal["beit"] = "beit"
    encoder: EncoderConfig = field(default_factory=lambda: beit_encoder("base"))
    masker: MaskerConfig = field(default_factory=lambda: BlockMasker(ratio=75 / 196, exact=False))
    guide: GuideConfig = field(default_factory=GuideConfig)
    target: TargetConfig = field(default_factory=TokenTargetConfig)
    initialise_head: bool = True

    def __post_init__(self) -> None:
        self.masker.num_masked(self.encoder.grid)

    def describe(self, teacher: Teacher | None = None) -> list[tuple[str, str]]:
        """Parts and token shapes, and which network sees which patches; for `pantomim explain`.

        Args:
            teacher: The one whose features are predicted; None: there is none, or it is not known.
        """
        encoder = self.encoder
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        size, channels, prefix = encoder.patch_size, encoder.in_chans, encoder.num_prefix
        masked = self.masker.num_masked(encoder.grid)
        count = f"at most {masked}" if self.masker.varies else str(masked)
        layer = "one linear layer" + ("" if teacher is None else f" from {encoder.width} to {teacher.width} numbers")
        return [
            ("images", f"B x {channels} x {height} x {width}, patches of {size}x{size}, grid {rows} x {cols}"),
            ("masker", f"{self.masker.kind} ({in_words(self.masker)}): {count} of {rows * cols} patches hidden"),
            *self.guide.describe(rows * cols),
            (
                "encoder",
                f"{encoder.width} wide, {encoder.depth} blocks, {encoder.heads} heads, {encoder.position} absolute and "
                f"{encoder.relative_position} relative positions",
            ),
            (
                "encoder sees",
                f"B x {prefix + rows * cols} x {encoder.width}: all patches, a mask token in the place of hidden ones, "
                f"and {prefix} prefix token(s)",
            ),
            ("predicts", f"{self.target.kind} ({in_words(self.target)}) of the masked patches, with {layer}"),
        ]

    def build(self) -> "BEiT":
        """The method, with the authors' initialisation drawn from torch's global generator.

        Raises:
            ValueError: if no tokenizer is given, or one that does not go with the encoder.
        """
        encoder = self.encoder.build()
        return self._assembled(encoder, self.target.build(encoder))

    def build_around(self, target: Target) -> "BEiT":
        """The method with a target that is there already, such as tokens of a tokenizer at hand."""
        return self._assembled(self.encoder.build(), target)

    def _assembled(self, encoder: Encoder, target: Target) -> "BEiT":
        return BEiT(encoder, self.masker, target, self.initialise_head, self.guide.build(encoder, self.masker))


@dataclass(frozen=True)
class BEiTDraws:
    """All that is random in a step of BEiT."""

    mask: Mask


class BEiT(Method):
    """An encoder over all patches, some of them hidden, and a linear head (section 2.3 of the paper)."""

    def __init__(
        self,
        encoder: Encoder,
        masker: Masker,
        target: Target,
        initialise_head: bool = True,
        guide: MaskGuide | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.masker, self.target, self.guide = encoder, masker, target, guide
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.width))
        self.head = nn.Linear(encoder.width, target.dim)
        SCHEMES[encoder.config.initialisation].token(self.mask_token)
        if initialise_head:
            initialise(self.head, encoder.config.initialisation)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> BEiTDraws:
        """One mask per image of the global batch, cut to this batch's rows."""
        attention = None if self.guide is None else self.guide(batch.images)
        return BEiTDraws(draw_mask(self.masker, batch, self.encoder.grid, generator, attention))

    def forward(self, batch: Batch, draws: BEiTDraws) -> dict[str, Tensor]:
        """The target's loss on the hidden patches only: cross-entropy, where it is tokens (equation 3)."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask_tokens=MaskTokens(mask.masked, self.mask_token))  # all patches
        prediction = self.head(take(latent.patches, mask.ids_mask))  # (B, M, K), hidden patches only
        return self.target.score(prediction, batch.images, mask.ids_mask, mask.weight)

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
        """The encoder, and the head for looking at predictions."""
        return {"encoder": self.encoder, "head": self.head}
