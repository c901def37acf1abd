"""The pixels themselves as what is predicted."""

from jaxtyping import Float
from torch import Tensor, nn

from pantomim.frozen import frozen
from pantomim.nn.tokens import channel_values, patch_grid, patchify, standardise, unpatchify


class PixelTarget(nn.Module):
    """Pixels of each patch, channel-normalised and, if wanted, standardised patch by patch.

    Args:
        patch_size: Side of a patch, in pixels.
        mean: Mean of each channel.
        std: Deviation of each channel.
        normalize: Subtract each patch's mean and divide by its deviation over the P*P*C values (unbiased, 1e-6 inside
            the root).

    Returns (call): (B, N, P*P*C), no gradient; channel is the fastest-moving index.

    Raises:
        ValueError: if an image side is not a multiple of patch_size.

    Paper: He et al. 2022, arXiv:2111.06377, section 3 "Reconstruction target", Table 1d.
    Deviation: none known.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...], normalize: bool) -> None:
        super().__init__()
        self.patch_size, self.normalize = patch_size, normalize
        self.dim = patch_size * patch_size * len(mean)
        self.register_buffer("mean", channel_values("PixelTarget.mean", mean, len(mean)), persistent=False)
        self.register_buffer("std", channel_values("PixelTarget.std", std, len(mean)), persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The target of every patch."""
        pixels = patchify(standardise(images, self.mean, self.std), self.patch_size)
        if not self.normalize:
            return pixels
        mean, deviation = _mean_and_deviation(pixels)
        return (pixels - mean) / deviation

    def to_images(
        self, prediction: Float[Tensor, "B N K"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """What a prediction of every patch looks like, in the scale of `images`.

        With `normalize` a prediction says nothing about a patch's mean and deviation: those of the true patch are used.
        """
        if self.normalize:
            mean, deviation = _mean_and_deviation(patchify(standardise(images, self.mean, self.std), self.patch_size))
            prediction = prediction * deviation + mean
        grid = patch_grid((images.shape[2], images.shape[3]), self.patch_size)
        return unpatchify(prediction, self.patch_size, grid) * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)


def _mean_and_deviation(pixels: Float[Tensor, "B N K"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    """Of each patch; the deviation is unbiased, with 1e-6 inside the root."""
    return pixels.mean(dim=-1, keepdim=True), (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()


@frozen
class PixelTargetConfig:
    """Which pixels; see `PixelTarget`. `normalize` is on as in the paper's best results (Table 3)."""

    normalize: bool = True

    def build(self, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> PixelTarget:
        """The target for an encoder's patches and channels."""
        return PixelTarget(patch_size, mean, std, self.normalize)
