"""Mask patches by the pattern of filtered noise, without a look at the image, as ColorMAE does."""

from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.masking.bank import bank_on, bank_shape
from pantomim.masking.base import Ratio, Strategy, count_masked
from pantomim.masking.noise import Color, Noise

# Of each colour as in the authors' picture, and the words of section 2.2 of the specification.
SHOWN: dict[Color, tuple[str, str]] = {
    "white": ("#948a78", "Masks by chance alone, from unfiltered noise: the control for the colours."),
    "red": ("#d9453d", "Masks all but a few large blobs: most of the image is far from anything visible."),
    "green": ("#2e9b53", "Masks the gaps between clusters of medium size: neighbours vanish, whole regions do not."),
    "blue": ("#3b7ddd", "Masks evenly: visible dots everywhere, no big hole, no dense clump."),
    "purple": ("#9255d0", "Masks large regions whole; elsewhere visible dots form a checkerboard."),
}


def color_masker(color: Color, ratio: float = 0.75) -> "ColorNoiseMasker":
    """The preset of a colour."""
    return ColorNoiseMasker(noise=Noise(color), ratio=ratio)


@frozen
class ColorNoiseMasker:
    """A window out of a bank of noise patterns for every image; its highest values stay visible.

    By default each image has its own pattern, place and flips, so that the whole bank is used and no two images of a
    batch share a mask.

    Args:
        noise: How the bank is made, where no file is given.
        ratio: Share of masked patches, in (0, 1).
        bank: An .npz of patterns, such as the authors' green_noise_data_3072.npz; None: ours, made once and cached.
        shared_crop: Draw as the authors' code does: image i has pattern i (the batch goes through the bank in rounds),
            all images of a round share place and flips, and each window is divided by its maximum, which turns the
            order of values around where that maximum is negative.

    Raises:
        ValueError: if the ratio is no share; or (asked about a grid) if it leaves no visible or no masked patch, the
            patterns are smaller than the grid, or the file is none.

    Paper: Hinojosa et al. 2024, arXiv:2407.13036; the authors' sampler is models/utils/masking_generator.py of
        github.com/carlosh93/ColorMAE. They mask 0.75 in every released model.
    Deviation: the default sampler (see above); the distribution of a single mask is the same. With `shared_crop` the
        rounds go through the global batch, where the authors' go through the batch of each process. Visible patches
        stay in raster order; no block sees the difference.
    """

    kind: Literal["color_noise"] = "color_noise"
    noise: Noise = field(default_factory=Noise)
    ratio: Ratio = 0.75
    bank: str | None = None
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

    def num_masked(self, grid: tuple[int, int]) -> int:
        """See `Masker.num_masked`."""
        _, height, width = bank_shape(self._source)
        if height < grid[0] or width < grid[1]:
            raise ValueError(
                f"ColorNoiseMasker.{'noise.side' if self.bank is None else 'bank'} must be at least as large as the "
                f"grid of patches; got patterns of {height} x {width} and a grid of {grid[0]} x {grid[1]}. "
                f"Make larger patterns, or use larger patches."
            )
        return count_masked("ColorNoiseMasker", self.ratio, grid[0] * grid[1])

    def __call__(
        self,
        batch_size: int,
        grid: tuple[int, int],
        generator: torch.Generator,
        attention: Float[Tensor, "B N"] | None = None,
    ) -> Mask:
        """See `Masker.__call__`."""
        num_masked = self.num_masked(grid)
        return Mask.from_scores(-self.windows(batch_size, grid, generator).flatten(1), num_masked)

    def windows(
        self, batch_size: int, grid: tuple[int, int], generator: torch.Generator
    ) -> Float[Tensor, "B rows columns"]:
        """The piece of noise behind every image's mask; the grid is one that `num_masked` accepts."""
        bank = bank_on(self._source, generator.device)
        height, width = bank.shape[1:]
        if self.shared_crop:
            return _by_rounds(bank, batch_size, grid, generator)
        draws = torch.rand(5, batch_size, generator=generator, device=generator.device)
        patterns = (draws[0] * len(bank)).long()
        tops, lefts = (draws[1] * (height - grid[0] + 1)).long(), (draws[2] * (width - grid[1] + 1)).long()
        return cut_windows(bank, patterns, tops, lefts, draws[3] < 0.5, draws[4] < 0.5, grid)


def of_bank(bank: str) -> Strategy:
    """The strategy that is the patterns of a file."""
    sentence = "Masks by the patterns of a file: their highest values stay visible."
    return Strategy(bank, lambda ratio: ColorNoiseMasker(ratio=ratio, bank=bank), "#8a8f1d", sentence)


def cut_windows(
    bank: Float[Tensor, "L M N"],
    patterns: Tensor,
    tops: Tensor,
    lefts: Tensor,
    mirrored: Tensor,
    upturned: Tensor,
    grid: tuple[int, int],
) -> Float[Tensor, "B rows columns"]:
    """Cut one window an image, all in one gather.

    Args:
        bank: The patterns.
        patterns: (B,) which pattern.
        tops: (B,) first row.
        lefts: (B,) first column.
        mirrored: (B,) whether left and right change places.
        upturned: (B,) whether top and bottom change places.
        grid: Rows and columns of a window.
    """
    rows, columns = (torch.arange(size, device=bank.device) for size in grid)
    rows = tops[:, None] + torch.where(upturned[:, None], grid[0] - 1 - rows, rows)  # (B, rows)
    columns = lefts[:, None] + torch.where(mirrored[:, None], grid[1] - 1 - columns, columns)  # (B, columns)
    height, width = bank.shape[1:]
    places = (patterns[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    return bank.flatten()[places]


def _by_rounds(
    bank: Float[Tensor, "L M N"], batch_size: int, grid: tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "B rows columns"]:
    """The authors' sampler: one place and two flips for each round through the bank."""
    images = torch.arange(batch_size, device=bank.device)
    rounds = -(-batch_size // len(bank))
    draws = torch.rand(4, rounds, generator=generator, device=generator.device)
    tops = (draws[0] * (bank.shape[1] - grid[0] + 1)).long()
    lefts = (draws[1] * (bank.shape[2] - grid[1] + 1)).long()
    shared = torch.stack([tops, lefts, (draws[2] < 0.5).long(), (draws[3] < 0.5).long()])
    return round_windows(bank, images, shared, grid)


def round_windows(
    bank: Float[Tensor, "L M N"], images: Tensor, rounds: Tensor, grid: tuple[int, int]
) -> Float[Tensor, "B rows columns"]:
    """Windows as the authors cut them: image i from pattern i modulo L, divided by its own maximum.

    Args:
        bank: The patterns.
        images: (B,) 0 to B - 1.
        rounds: (4, R) top, left, mirrored and upturned of every round through the bank.
        grid: Rows and columns of a window.
    """
    tops, lefts, mirrored, upturned = rounds[:, images // len(bank)]
    windows = cut_windows(bank, images % len(bank), tops, lefts, mirrored.bool(), upturned.bool(), grid)
    return windows / windows.amax(dim=(1, 2), keepdim=True)
