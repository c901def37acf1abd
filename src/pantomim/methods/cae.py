"""Context autoencoder: an encoder that only represents, a regressor that predicts, a decoder that solves the task.

    loss = target_loss(decoder(Z), target) + align_weight * mean (Z - stopgrad(A))^2        (spec section 2.8)

Z are the latents of the masked patches as the regressor predicts them from the visible ones alone; A is what the
encoder makes of the masked patches when it sees them and no others. The alignment holds Z in the encoder's space, so
that the decoder, which sees Z, its positions and nothing else, is all that works on the task. The target is tokens
(cross-entropy) or pixels (mean squared error); both means are over the masked patches of the batch.

Paper: Chen et al., *Context Autoencoder for Self-Supervised Representation Learning*, arXiv:2202.03026.
"""

from contextlib import nullcontext
from dataclasses import field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.core.modes import evaluating
from pantomim.core.ranges import NotNegative, Share
from pantomim.masking import MaskerConfig
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Draws, Method, Requirements, check_masker
from pantomim.methods.guides import GuideConfig, draw_mask
from pantomim.nn.decoder import LatentDecoder, LatentDecoderConfig
from pantomim.nn.momentum import EMA, Momentum
from pantomim.nn.regressor import Projection, Regressor, RegressorConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.targets import TargetConfig
from pantomim.targets.base import Target
from pantomim.targets.tokens import TokenTargetConfig

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
    """The parts of CAE, with the values of the paper's ViT-B and 75 masked patches; `recipes.cae` has others.

    The authors' first release (lxtGH/CAE) has `align_momentum` 0 and `align_lagging`.
    """

    kind: Literal["cae"] = "cae"
    # As `cae_encoder` makes it; its rule initialises regressor and decoder, layer scales apart
    encoder: EncoderConfig = field(default_factory=lambda: cae_encoder("base"))
    # Its width is also the decoder's, by default the encoder's (in the authors' code 768 for every size); another one
    # than the encoder's brings a projection
    regressor: RegressorConfig = field(default_factory=RegressorConfig)
    # Depth 0: the head sits on the regressor, the paper's ablation without a decoder
    decoder: LatentDecoderConfig = field(default_factory=LatentDecoderConfig)
    # The same number of patches in every image; the authors mask blocks
    masker: MaskerConfig = field(default_factory=lambda: BlockMasker(ratio=75 / 196))
    # Whose attention decides what is masked, where the masker asks for it
    guide: GuideConfig = field(default_factory=GuideConfig)
    # What the decoder predicts; the authors normalise pixels by "layer"
    target: TargetConfig = field(default_factory=TokenTargetConfig)
    align_weight: NotNegative = 2.0  # Weight of the alignment loss (lambda); 0: no alignment, the paper's ablation
    # The alignment target comes from an EMA copy of the encoder with this momentum, which moves after the optimiser's
    # step; None: from the encoder itself
    align_momentum: Share | None = None
    align_lagging: bool = False  # The copy moves before the optimiser's step, and so is one step late
    align_drop_path: bool = True  # Stochastic depth is active in the alignment target too, as in the authors' code

    def __post_init__(self) -> None:
        check_masker("CAEConfig", self.masker, self.encoder)
        if self.align_momentum is not None and self.align_weight == 0:
            raise ValueError(
                f"CAEConfig.align_momentum must be left out without alignment (weight 0); got {self.align_momentum}."
            )
        if self.align_lagging and self.align_momentum is None:
            raise ValueError(
                "CAEConfig.align_momentum must be given with align_lagging; got none. The authors' first release has 0."
            )

    def build(self, steps: int | None = None, target: Target | None = None) -> "CAE":
        """The method, initialised from torch's global generator; `target` in place of the config's, if given."""
        return CAE(self, target)


class CAE(Method):
    """Encoder, regressor, decoder and alignment; `CAEConfig` explains the settings."""

    def __init__(self, config: CAEConfig, target: Target | None = None) -> None:
        super().__init__()
        sizes = config.encoder
        width, heads = config.regressor.width or sizes.width, config.regressor.heads or sizes.heads
        self.encoder = sizes.build()
        self.target = target or config.target.build(self.encoder)
        # Drawn before the projection, which fixes a seed's weights; registered after it, as they run.
        regressor = Regressor(config.regressor, sizes)
        decoder = LatentDecoder(config.decoder, width, heads, sizes.grid, self.target.dim, sizes.initialisation)
        self.projection = None if width == sizes.width else Projection(sizes.width, width)
        self.regressor, self.decoder = regressor, decoder
        self.masker, self.guide = config.masker, config.guide.build(self.encoder, config.masker)
        self.align_weight, self.align_drop_path = config.align_weight, config.align_drop_path
        self.aligner = None
        if config.align_momentum is not None:
            momentum = Momentum(config.align_momentum)
            self.aligner = EMA(self.encoder, "encoder", momentum, lagging=config.align_lagging)
        self.requirements = Requirements.of(sizes)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Draws:
        """One mask an image; by the guide's attention, where the masker asks for it."""
        return Draws(draw_mask(self.masker, batch, self.encoder.grid, generator, self.guide(batch.images)))

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The loss, and apart from it, unweighted, its two terms: the task's and the alignment's."""
        mask = draws.mask
        visible = self.latents(self.encoder, batch.images, mask.ids_keep)  # (B, V, D)
        regressed = self.regressor(visible, mask)  # (B, M, D), latents of the masked patches
        prediction = self.decoder(regressed, mask.ids_mask)  # (B, M, K), from latents and positions
        target = self.target.at(batch.images, mask.ids_mask)  # (B, M) ids, or (B, M, K)
        loss_target = self.target.loss(prediction, target)
        metrics = {"loss_target": loss_target} | self.target.metrics(prediction, target)
        if self.align_weight == 0:
            return {"loss": loss_target} | metrics
        seen = self.alignment_target(batch.images, mask)  # (B, M, D), no gradient
        loss_align = F.mse_loss(regressed, seen)
        return {"loss": loss_target + self.align_weight * loss_align, "loss_align": loss_align} | metrics

    def latents(
        self, encoder: nn.Module, images: Float[Tensor, "B C H W"], ids: Int[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """An encoder's features of the patches `ids` (all, if None) alone; the class token goes no further."""
        patches = encoder(images, ids).patches
        return patches if self.projection is None else self.projection(patches)

    @torch.no_grad()
    def alignment_target(self, images: Float[Tensor, "B C H W"], mask: Mask) -> Float[Tensor, "B M D"]:
        """The encoder's features of the masked patches, when it sees them and no others; no gradient."""
        encoder = self.aligner or self.encoder
        with nullcontext() if self.align_drop_path else evaluating(encoder):
            return self.latents(encoder, images, mask.ids_mask)

    @torch.no_grad()
    def without_regressor(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """All patches through the encoder, straight into the decoder: what the alignment makes legible."""
        latents = self.latents(self.encoder, images)
        ids = torch.arange(latents.shape[1], device=latents.device).expand(len(latents), -1)
        return self.decoder(latents, ids)
