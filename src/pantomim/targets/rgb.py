"""Pixels as CAE's second target, under four normalisations; MAE's are in `pixels`."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from pantomim.frozen import frozen
from pantomim.nn.tokens import channel_values, patch_grid, patchify, standardise, unpatchify

Normalisation = Literal["none", "channel", "patch", "layer"]
EPS = 1e-6


class RGBTarget(nn.Module):
    """Pixels of each patch, for any number of channels.

    Args:
        patch_size: Side of a patch, in pixels.
        mean: Mean of each channel.
        std: Deviation of each channel.
        normalise: "none"; "channel": each channel of a patch by its own mean and deviation (unbiased, eps outside
            the root); "patch": all values of a patch by theirs (unbiased, eps inside the root); "layer": the same with
            the biased variance, as a layer norm without weights. eps is 1e-6.
        standardised: Subtract the channels' mean and divide by their deviation first; off: values as they come.

    Returns (call): (B, N, P*P*C), no gradient; channel is the fastest-moving index.

    Raises:
        ValueError: if an image side is not a multiple of patch_size.

    Paper: Chen et al., arXiv:2202.03026; the four normalisations as in the authors' Paddle release.
    Deviation: "channel" keeps the order of the other three, where that release asks for a permutation that cannot run.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        patch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        normalise: Normalisation = "layer",
        standardised: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size, self.in_chans = patch_size, len(mean)
        self.normalise, self.standardised = normalise, standardised
        self.dim = patch_size * patch_size * len(mean)
        self.register_buffer("mean", channel_values("RGBTarget.mean", mean, len(mean)), persistent=False)
        self.register_buffer("std", channel_values("RGBTarget.std", std, len(mean)), persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The target of every patch."""
        pixels = self._pixels(images)
        if self.normalise == "none":
            return pixels
        mean, deviation = self._statistics(pixels)
        return (pixels - mean) / deviation

    def to_images(
        self, prediction: Float[Tensor, "B N K"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """What a prediction of every patch looks like, in the scale of `images`.

        A normalised prediction says nothing about mean and deviation: those of the true patch are used.
        """
        if self.normalise != "none":
            mean, deviation = self._statistics(self._pixels(images))
            prediction = prediction * deviation + mean
        grid = patch_grid((images.shape[2], images.shape[3]), self.patch_size)
        found = unpatchify(prediction, self.patch_size, grid)
        return found * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1) if self.standardised else found

    def _pixels(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        shown = standardise(images, self.mean, self.std) if self.standardised else images
        return patchify(shown, self.patch_size)

    def _statistics(self, pixels: Float[Tensor, "B N K"]) -> tuple[Float[Tensor, "B N _"], Float[Tensor, "B N _"]]:
        """Mean and deviation of what is normalised together, one value a patch or one a number."""
        if self.normalise == "channel":
            cells = pixels.unflatten(-1, (-1, self.in_chans))
            deviation = cells.std(dim=-2, keepdim=True) + EPS
            mean = cells.mean(dim=-2, keepdim=True)
            return mean.expand_as(cells).flatten(-2), deviation.expand_as(cells).flatten(-2)
        variance = pixels.var(dim=-1, keepdim=True, correction=0 if self.normalise == "layer" else 1)
        return pixels.mean(dim=-1, keepdim=True), (variance + EPS).sqrt()


@frozen
class RGBTargetConfig:
    """Which pixels; see `RGBTarget`. A layer norm of standardised pixels is the authors' default."""

    kind: Literal["pixels"] = "pixels"
    normalise: Normalisation = "layer"
    standardised: bool = True

    def build(self, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> RGBTarget:
        """The target for an encoder's patches and channels."""
        return RGBTarget(patch_size, mean, std, self.normalise, self.standardised)
