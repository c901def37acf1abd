"""Mask patches by the pattern of filtered noise, without a look at the image, as ColorMAE does."""

from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.masking.bank import bank_on, bank_shape
from pantomim.masking.base import Attended, Grid, Ratio, Strategy, count_masked
from pantomim.masking.noise import Color, Noise

# Of each colour as in the authors' picture, and the words of section 2.2 of the specification.
SHOWN: dict[Color, tuple[str, str]] = {
    "white": ("#948a78", "Masks by chance alone, from unfiltered noise: the control for the colours."),
    "red": ("#d9453d", "Masks all but a few large blobs: most of the image is far from anything visible."),
    "green": ("#2e9b53", "Masks the gaps between clusters of medium size: neighbours vanish, whole regions do not."),
    "blue": ("#3b7ddd", "Masks evenly: visible dots everywhere, no big hole, no dense clump."),
    "purple": ("#9255d0", "Masks large regions whole; elsewhere visible dots form a checkerboard."),
}


def color_masker(color: Color, ratio: float) -> "ColorNoiseMasker":
    """The preset of a colour."""
    return ColorNoiseMasker(noise=Noise(color), ratio=ratio)


@frozen
class ColorNoiseMasker:
    """A window out of a bank of noise patterns for every image; its highest values stay visible.

    By default each image has its own pattern, place and flips, so that the whole bank is used and no two images of a
    batch share a mask.

    Paper: Hinojosa et al. 2024, arXiv:2407.13036; the authors' sampler is models/utils/masking_generator.py of
        github.com/carlosh93/ColorMAE. They mask 0.75 in every released model.
    Deviation: the default sampler (see above); the distribution of a single mask is the same. With `shared_crop` the
        rounds go through the global batch, where the authors' go through the batch of each process. Visible patches
        stay in raster order; no block sees the difference.
    """

    kind: Literal["color_noise"] = "color_noise"
    noise: Noise = field(default_factory=Noise)  # How the bank is made, where no file is given
    ratio: Ratio = 0.75  # Share of masked patches, in (0, 1)
    # An .npz of patterns, such as the authors' green_noise_data_3072.npz; None: ours, made once and cached
    bank: str | None = None
    # Draw as the authors' code does: image i has pattern i (the batch goes through the bank in rounds), images of a
    # round share place and flips, and windows are divided by their maximum, be it negative
    shared_crop: bool = False

    varies = False
    guided = False
    strategies = tuple(Strategy(color, partial(color_masker, color), *looks) for color, looks in SHOWN.items())

    @property
    def manner(self) -> str:
        """See `Masker.manner`."""
        return f"by {self.noise.color} noise" if self.bank is None else f"by {self.bank}"

    @property
    def _source(self) -> Noise | Path:
        return self.noise if self.bank is None else Path(self.bank)

    def num_masked(self, grid: Grid) -> int:
        """See `Masker.num_masked`."""
        _, height, width = bank_shape(self._source)
        if height < grid[0] or width < grid[1]:
            raise ValueError(
                f"ColorNoiseMasker.{'noise.side' if self.bank is None else 'bank'} must be at least as large as the "
                f"grid of patches; got patterns of {height} x {width} and a grid of {grid[0]} x {grid[1]}. "
                f"Make larger patterns, or use larger patches."
            )
        return count_masked("ColorNoiseMasker", self.ratio, grid[0] * grid[1])

    def __call__(self, batch_size: int, grid: Grid, generator: torch.Generator, attention: Attended = None) -> Mask:
        """See `Masker.__call__`."""
        num_masked = self.num_masked(grid)
        return Mask.from_scores(-self.windows(batch_size, grid, generator).flatten(1), num_masked)

    def windows(self, batch_size: int, grid: Grid, generator: torch.Generator) -> Float[Tensor, "B rows columns"]:
        """The piece of noise behind every image's mask; the grid is one that `num_masked` accepts."""
        bank, device = bank_on(self._source, generator.device), generator.device
        rounds = -(-batch_size // len(bank))
        size = (4, rounds) if self.shared_crop else (5, batch_size)
        *pattern, top, left, mirrored, upturned = torch.rand(size, generator=generator, device=device)
        top = (top * (bank.shape[1] - grid[0] + 1)).long()
        left = (left * (bank.shape[2] - grid[1] + 1)).long()
        mirrored, upturned = mirrored < 0.5, upturned < 0.5
        if self.shared_crop:
            shared = torch.stack([top, left, mirrored.long(), upturned.long()])
            return round_windows(bank, torch.arange(batch_size, device=device), shared, grid)
        return cut_windows(bank, (pattern[0] * len(bank)).long(), top, left, mirrored, upturned, grid)


def of_bank(bank: str) -> Strategy:
    """The strategy that is the patterns of a file."""
    sentence = "Masks by the patterns of a file: their highest values stay visible."
    return Strategy(bank, lambda ratio: ColorNoiseMasker(ratio=ratio, bank=bank), "#8a8f1d", sentence)


def cut_windows(
    bank: Float[Tensor, "L M N"],
    patterns: Int[Tensor, " B"],
    tops: Int[Tensor, " B"],
    lefts: Int[Tensor, " B"],
    mirrored: Bool[Tensor, " B"],
    upturned: Bool[Tensor, " B"],
    grid: Grid,
) -> Float[Tensor, "B rows columns"]:
    """Cut one window an image, all in one gather: first row and column, then left and right or top and bottom flip."""
    rows, columns = (torch.arange(size, device=bank.device) for size in grid)
    rows = tops[:, None] + torch.where(upturned[:, None], grid[0] - 1 - rows, rows)  # (B, rows)
    columns = lefts[:, None] + torch.where(mirrored[:, None], grid[1] - 1 - columns, columns)  # (B, columns)
    height, width = bank.shape[1:]
    places = (patterns[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    return bank.flatten()[places]


def round_windows(
    bank: Float[Tensor, "L M N"], images: Int[Tensor, " B"], rounds: Int[Tensor, "4 R"], grid: Grid
) -> Float[Tensor, "B rows columns"]:
    """Windows as the authors cut them: image i from pattern i modulo L, divided by its own maximum.

    `rounds` holds top, left, mirrored and upturned of every round through the bank.
    """
    tops, lefts, mirrored, upturned = rounds[:, images // len(bank)]
    windows = cut_windows(bank, images % len(bank), tops, lefts, mirrored.bool(), upturned.bool(), grid)
    return windows / windows.amax(dim=(1, 2), keepdim=True)
