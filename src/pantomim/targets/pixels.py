"""The pixels themselves as what is predicted."""

from jaxtyping import Float
from torch import Tensor, nn

from pantomim.frozen import frozen
from pantomim.nn.tokens import channel_values, patchify, standardise


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

    def __init__(
        self, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...], normalize: bool
    ) -> None:
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
        variance, mean = pixels.var(dim=-1, keepdim=True), pixels.mean(dim=-1, keepdim=True)
        return (pixels - mean) / (variance + 1e-6).sqrt()


@frozen
class PixelTargetConfig:
    """Which pixels; see `PixelTarget`. `normalize` is on as in the paper's best results (Table 3)."""

    normalize: bool = True

    def build(self, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> PixelTarget:
        """The target for an encoder's patches and channels."""
        return PixelTarget(patch_size, mean, std, self.normalize)
