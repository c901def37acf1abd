"""Histograms of oriented gradients (HOG) as the target: which way the edges of a patch run, not their contrast.

    loss = mean over masked patches and their bins of (prediction - histogram)^2        (MaskFeat, section 3)

Paper: Wei et al. 2022, *Masked Feature Prediction*, arXiv:2112.09133; as in the authors' HOGLayerC (SlowFast), which
has no window; mmpretrain's port has one of 16.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne
from pantomim.nn.tokens import patch_grid
from pantomim.nn.vit import Encoder
from pantomim.targets.base import Target
from pantomim.targets.distance import Distance

EPS = 1e-12  # smallest length that a histogram is divided by: a flat cell stays zero


@frozen
class HOGTargetConfig:
    """Gradients of each channel, sorted by their direction into a histogram for each cell of a patch.

    A gradient and its opposite share a bin; it goes into one bin only. Each histogram has length 1. What is added to
    all pixels, or multiplied with them, channel by channel, changes nothing: so images come as they are.

    Deviation: a gradient that is exactly vertical lies on the border of two bins, and in the authors' code rounding
        decides; here it is always bin 0, as with exact arithmetic.
    """

    kind: Literal["hog"] = "hog"
    bins: AtLeastOne = 9  # Directions, over half a turn
    # Side of a cell, in pixels; None: half the patch's, 8 of 16, or the whole patch where that is below 4
    cell: AtLeastOne | None = None
    # Side of a Gaussian with half as large a std that weighs gradients tile by tile; None: none
    window: AtLeastOne | None = None
    distance: Distance = Distance("l2")  # Of a prediction

    def build(self, encoder: Encoder) -> "HOGTarget":
        """The target for an encoder's patches and channels."""
        return HOGTarget(self, encoder.patch_size, encoder.in_chans)


class HOGTarget(Target):
    """The histograms of each patch; `HOGTargetConfig` explains the settings."""

    def __init__(self, config: HOGTargetConfig, patch_size: int, in_chans: int) -> None:
        super().__init__()
        cell = config.cell or hog_cell(patch_size)
        if patch_size % cell:
            raise ValueError(
                f"HOGTargetConfig.cell must divide patches of {patch_size} pixels; got {cell}. Set method.target.cell "
                f"to {hog_cell(patch_size)}."
            )
        self.patch_size, self.bins, self.cell, self.window = patch_size, config.bins, cell, config.window
        self.distance = config.distance
        self.dim = in_chans * self.bins * (patch_size // cell) ** 2

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The C * bins * (P / cell)^2 values of every patch: channel slowest, then bin, row and column of the cell."""
        rows, cols = patch_grid((images.shape[2], images.shape[3]), self.patch_size)
        inner = self.patch_size // self.cell
        cells = F.normalize(self.histograms(images), dim=2, eps=EPS)  # each channel by itself
        split = cells.reshape(len(images), -1, rows, inner, cols, inner)  # (B, C * bins, rows, r, cols, c)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(len(images), rows * cols, self.dim)

    def histograms(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C bins h w"]:
        """How much gradient there is in each cell, by its direction; not normalised."""
        batch, channels, height, width = images.shape
        across, down = gradients(images)
        magnitude = (across.square() + down.square()).sqrt()
        if self.window is not None:
            magnitude = magnitude * _tiled(self.window, (height, width)).to(magnitude)
        turn = torch.atan2(across, down) * self.bins / math.pi
        bins = torch.where(across == 0, 0, turn.floor().long() % self.bins)  # exactly vertical: exactly on a border
        rows, cols = height // self.cell, width // self.cell  # what is no whole cell is left out, as by their unfold
        shape = (batch, channels, rows, self.cell, cols, self.cell)
        whole = (..., slice(rows * self.cell), slice(cols * self.cell))
        sorted_in = [torch.where(bins == number, magnitude, 0)[whole] for number in range(self.bins)]
        return torch.stack([part.reshape(shape).sum(dim=(3, 5)) for part in sorted_in], dim=2)


def gradients(images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
    """Left minus right and above minus below, each smoothed along the other axis (1, 2, 1), in float32 at least.

    Images are padded by reflection: the gradient across their borders is exactly zero.
    """
    padded = F.pad(at_least_float32(images), (1, 1, 1, 1), mode="reflect")
    across, down = padded[..., :-2] - padded[..., 2:], padded[..., :-2, :] - padded[..., 2:, :]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    return across, down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]


def _tiled(window: int, image_size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """A Gaussian of sum 1, side by side over an image."""
    if image_size[0] % window or image_size[1] % window:
        raise ValueError(
            f"HOGTarget.window must divide the image's sides; got {window} for {image_size[0]}x{image_size[1]}. "
            f"Leave it out, as MaskFeat's authors do."
        )
    places = (torch.arange(window) - (window - 1) / 2) / (window // 2)
    curve = torch.exp(-0.5 * places.square())
    kernel = curve[:, None] * curve
    return (kernel / kernel.sum()).repeat(image_size[0] // window, image_size[1] // window)


def hog_cell(patch_size: int) -> int:
    """Half a patch, as MaskFeat's 8 of 16; the whole patch where that is below 4, which is ours."""
    half = patch_size // 2
    return half if patch_size % 2 == 0 and half >= 4 else patch_size
