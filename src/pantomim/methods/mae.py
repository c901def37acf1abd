"""Masked autoencoder: encode the visible patches, predict the pixels of the masked ones.

    loss = mean over masked patches and their values of (prediction - target)^2        (section 3)

Paper: He et al. 2022, *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377.
"""

from dataclasses import field
from typing import Literal

import torch
from torch import Tensor

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.masking import MaskerConfig
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws, Method, Requirements, check_masker
from pantomim.methods.guides import GuideConfig, draw_mask
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.targets import TargetConfig
from pantomim.targets.base import Target
from pantomim.targets.pixels import PixelTargetConfig


@frozen
class MAEConfig:
    """The parts of MAE: encoder, decoder, what is masked, what is predicted."""

    kind: Literal["mae"] = "mae"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # It sees the visible patches
    decoder: DecoderConfig = field(default_factory=DecoderConfig)  # It sees all positions
    masker: MaskerConfig = field(default_factory=RandomMasker)  # The same number of patches in every image
    guide: GuideConfig = field(default_factory=GuideConfig)  # Whose attention decides, where the masker asks for it
    target: TargetConfig = field(default_factory=PixelTargetConfig)  # What is predicted of the masked patches

    def __post_init__(self) -> None:
        check_masker("MAEConfig", self.masker, self.encoder)

    def build(self, steps: int | None = None, target: Target | None = None) -> "MAE":
        """The method, initialised from torch's global generator; `target` in place of the config's, if given."""
        return MAE(self, target)


class MAE(Method):
    """Asymmetric encoder and decoder around a mask (section 3 of the paper)."""

    exports_decoder = True

    def __init__(self, config: MAEConfig, target: Target | None = None) -> None:
        super().__init__()
        self.encoder = config.encoder.build()
        self.target = target or config.target.build(self.encoder)
        grid, num_prefix = self.encoder.grid, self.encoder.num_prefix
        self.decoder = config.decoder.build(self.encoder.width, num_prefix, grid, self.target.dim)
        self.masker, self.guide = config.masker, config.guide.build(self.encoder, config.masker)
        self.requirements = Requirements.of(config.encoder)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Draws:
        """One mask an image; by the guide's attention, where the masker asks for it."""
        return Draws(draw_mask(self.masker, batch, self.encoder.grid, generator, self.guide(batch.images)))

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The loss on the masked patches alone (section 3, "Reconstruction target")."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)  # (B, V, D) and the class token: visible patches only
        prediction = self.decoder(latent, mask)  # (B, M, K), masked patches only
        target = self.target.at(batch.images, mask.ids_mask)  # (B, M, K), each patch's pixels, standardised
        loss = self.target.loss(prediction, target)  # mean squared error
        return {"loss": loss} | self.target.metrics(prediction, target)
