"""BEiT: mask blocks of patches with a mask token, and let the encoder predict the visual tokens there.

    loss = mean over masked patches of -log softmax(head(latent))[id]        (equation 3, section 2.3)

Paper: Bao et al. 2022, *BEiT: BERT Pre-Training of Image Transformers*, arXiv:2106.08254.
"""

from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.masking import MaskerConfig
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Draws, Method, Requirements
from pantomim.methods.guides import GuideConfig, draw_mask
from pantomim.nn.init import SCHEMES, initialise
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig, MaskTokens
from pantomim.targets import TargetConfig
from pantomim.targets.base import Target
from pantomim.targets.tokens import TokenTargetConfig


def beit_encoder(size: Literal["base", "large"], drop_path: float = 0.1) -> EncoderConfig:
    """BEiT's encoder for images of 224 x 224: one table of relative positions, scales of 0.1 (ViT-L: 1e-5).

    Paper: section 2.5 and Table 12.
    Deviation: no learned absolute positions (section 2.1), as in the authors' code and recipes; `position` sets them.
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
    """The parts of BEiT, with the values of the paper's ViT-B."""

    kind: Literal["beit"] = "beit"
    encoder: EncoderConfig = field(default_factory=lambda: beit_encoder("base"))  # As `beit_encoder` makes it
    # Blocks, 75 of 196 patches at most; a count that varies is fine
    masker: MaskerConfig = field(default_factory=lambda: BlockMasker(ratio=75 / 196, exact=False))
    # Whose attention decides what is masked, where the masker asks for it
    guide: GuideConfig = field(default_factory=GuideConfig)
    # Tokens, or another; pixels are the ablation of Table 4, whose loss the paper does not state
    target: TargetConfig = field(default_factory=TokenTargetConfig)
    initialise_head: bool = True  # As the encoder's linear layers; off: as torch does by itself, which is SimMIM's way

    def __post_init__(self) -> None:
        self.masker.num_masked(self.encoder.grid)  # refuses a grid that it cannot mask

    def build(self, steps: int | None = None, target: Target | None = None) -> "BEiT":
        """The method, initialised from torch's global generator; `target` in place of the config's, if given."""
        return BEiT(self, target)


class BEiT(Method):
    """An encoder over all patches, some of them masked, and a linear head (section 2.3 of the paper)."""

    def __init__(self, config: BEiTConfig, target: Target | None = None) -> None:
        super().__init__()
        self.encoder = config.encoder.build()
        self.target = target or config.target.build(self.encoder)
        self.guide, self.masker = config.guide.build(self.encoder, config.masker), config.masker
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.encoder.width))
        self.head = nn.Linear(config.encoder.width, self.target.dim)
        SCHEMES[config.encoder.initialisation].token(self.mask_token)
        if config.initialise_head:
            initialise(self.head, config.encoder.initialisation)
        self.requirements = Requirements.of(config.encoder)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Draws:
        """One mask an image; by the guide's attention, where the masker asks for it."""
        return Draws(draw_mask(self.masker, batch, self.encoder.grid, generator, self.guide(batch.images)))

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The loss on the masked patches alone; where their number varies, padding has no weight."""
        mask = draws.mask
        tokens = MaskTokens(mask.masked, self.mask_token)
        latent = self.encoder(batch.images, mask_tokens=tokens, only=mask.ids_mask)  # sees all, gives the masked ones
        prediction = self.head(latent.patches)  # (B, M, K), scores of all ids
        target = self.target.at(batch.images, mask.ids_mask)  # (B, M), ids
        loss = self.target.loss(prediction, target, mask.weight)  # cross-entropy
        return {"loss": loss} | self.target.metrics(prediction, target, mask.weight)
