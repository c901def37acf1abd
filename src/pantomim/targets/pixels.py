"""The pixels themselves as the target, under four normalisations.

    loss = mean over masked patches and their values of (prediction - target)^2        (MAE, section 3; SimMIM: |.|)

Paper: He et al. 2022, arXiv:2111.06377, section 3 "Reconstruction target", Table 1d ("none" and "patch"); Chen et al.,
arXiv:2202.03026, and the authors' Paddle release (all four).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.nn.tokens import patch_grid, patchify, standardise, token_statistics, unpatchify
from pantomim.nn.vit import Encoder
from pantomim.targets.base import Target
from pantomim.targets.distance import Distance

Normalisation = Literal["none", "channel", "patch", "layer"]
EPS = 1e-6


@frozen
class PixelTargetConfig:
    """Pixels of each patch, for any number of channels.

    "patch" normalises all values of a patch by their mean and std (unbiased, eps inside the root), MAE's; "layer" the
    same with the biased variance, as a layer norm without weights, CAE's; "channel" each channel of a patch by its own
    mean and std (unbiased, eps outside the root). eps is 1e-6.

    Deviation: "channel" keeps the order of the other three, where the Paddle release asks for a permutation that cannot
        run.
    """

    kind: Literal["pixels"] = "pixels"
    normalise: Normalisation = "patch"  # How each patch is
    standardised: bool = True  # Subtract the channels' mean and divide by their std first; off: values as they come
    distance: Distance = Distance("l2")  # Of a prediction: MAE has l2, SimMIM l1

    def build(self, encoder: Encoder) -> "PixelTarget":
        """The target for an encoder's patches and channels."""
        return PixelTarget(self, encoder)


class PixelTarget(Target):
    """The pixels of each patch; `PixelTargetConfig` explains the settings."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PixelTargetConfig, encoder: Encoder) -> None:
        super().__init__()
        self.patch_size, self.in_chans = encoder.patch_size, encoder.in_chans
        self.normalise, self.standardised, self.distance = config.normalise, config.standardised, config.distance
        self.dim = self.patch_size**2 * self.in_chans
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The P*P*C values of every patch; channel is the fastest-moving index."""
        pixels = self._pixels(images)
        if self.normalise == "none":
            return pixels
        mean, std = self._statistics(pixels)
        return (pixels - mean) / std

    def to_images(
        self, prediction: Float[Tensor, "B N K"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """A prediction of every patch as images, in the scale of `images`, whose patches lend their mean and std."""
        if self.normalise != "none":
            mean, std = self._statistics(self._pixels(images))
            prediction = prediction * std + mean
        grid = patch_grid((images.shape[2], images.shape[3]), self.patch_size)
        found = unpatchify(prediction, self.patch_size, grid)
        return found * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1) if self.standardised else found

    def _pixels(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        shown = standardise(images, self.mean, self.std) if self.standardised else images
        return patchify(shown, self.patch_size)

    def _statistics(self, pixels: Float[Tensor, "B N K"]) -> tuple[Float[Tensor, "B N _"], Float[Tensor, "B N _"]]:
        """Mean and std of what is normalised together: one of a patch, or one for each of its values."""
        if self.normalise == "channel":
            cells = pixels.unflatten(-1, (-1, self.in_chans))
            mean, std = cells.mean(dim=-2, keepdim=True), cells.std(dim=-2, keepdim=True) + EPS
            return mean.expand_as(cells).flatten(-2), std.expand_as(cells).flatten(-2)
        return token_statistics(pixels, unbiased=self.normalise == "patch", eps=EPS)
