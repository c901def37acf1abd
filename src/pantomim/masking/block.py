"""Mask rectangles of patches, as BEiT and CAE do."""

import math
from typing import Annotated, Literal

import numpy as np
import torch

from pantomim.core.frozen import frozen
from pantomim.core.host import host_seed, to_device
from pantomim.core.mask import Mask
from pantomim.core.ranges import AtLeastOne, Range
from pantomim.masking.base import Attended, Grid, Ratio, Strategy, check_count
from pantomim.masking.rectangles import TRIES, Covered, FromGenerator, Limits, Source, cover, fill

REFERENCE_MIN_AREA, REFERENCE_PATCHES = 16, 14 * 14  # BEiT's smallest rectangle, and the grid that it belongs to
BY_RECTANGLES = "No pattern: rectangles are drawn until enough is masked."
FRUITLESS_ROUNDS = 100  # for an exact count; some 17 were the most in twenty thousand masks


@frozen
class BlockMasker:
    """Rectangles of random area and aspect, one upon the other, until enough patches are masked.

    Of N patches `round(N * ratio)` are masked: of 196, 75 at BEiT's 0.383, 78 at MaskFeat's 0.4, 98 at CAE's 0.5; any
    count k is `ratio=k / N`. They gather in the middle of the image: few rectangles reach a corner.

    Paper: Bao et al. 2022, arXiv:2106.08254, section 2.3, Algorithm 1; the exact count as in the code of CAE,
        arXiv:2202.03026.
    Deviation: another random generator; its numbers recorded from the authors' code give their masks, patch by patch.
        After a hundred fruitless rounds an exact count is made up with single patches; CAE's code would never end.
    """

    kind: Literal["block"] = "block"
    ratio: Ratio = 0.383  # Share of masked patches, in (0, 1)
    # Continue until the count is exact (CAE), rather than stop after ten rectangles in a row that do not fit (BEiT,
    # MaskFeat, dBOT). Those stay short of the count in some images, and their masks are padded
    exact: bool = True
    # Smallest rectangle, in patches; None: 16 on 14x14, on other grids in proportion, if these allow it
    min_area: AtLeastOne | None = None
    # Largest rectangle, in patches that it newly masks; None: as many as are to be masked
    max_area: AtLeastOne | None = None
    # Height over width lies between this and its inverse, uniform in its logarithm
    min_aspect: Annotated[float, Range(above=0, most=1)] = 0.3

    guided = False
    manner = "in blocks"
    strategies = (
        Strategy(
            "block",
            lambda ratio: BlockMasker(ratio=ratio),
            "#c4740a",
            "Masks overlapping rectangles: whole objects can vanish.",
            BY_RECTANGLES,
        ),
        Strategy(
            "block_beit",
            lambda ratio: BlockMasker(ratio=ratio, exact=False),
            "#a0673c",
            "Masks rectangles as BEiT's own sampler does; the count varies.",
            BY_RECTANGLES,
        ),
    )

    @property
    def varies(self) -> bool:
        """See `Masker.varies`."""
        return not self.exact

    def num_masked(self, grid: Grid) -> int:
        """See `Masker.num_masked`."""
        return self.rule(grid).total

    def rule(self, grid: Grid) -> Limits:
        """What a rectangle must be on this grid."""
        if min(grid) < 2:
            raise ValueError(
                f"BlockMasker.grid must have at least two rows and two columns; got {grid[0]}x{grid[1]}. "
                f"Use smaller patches."
            )
        num_patches = grid[0] * grid[1]
        total = check_count("BlockMasker", self.ratio, round(num_patches * self.ratio), num_patches)
        max_area = total if self.max_area is None else self.max_area
        height, width = (side - 0.5 for side in grid)  # what rounds to fewer rows and columns than the grid has
        room = min(height * width, min(height, width) ** 2 / self.min_aspect)
        scaled = max(1, round(REFERENCE_MIN_AREA * num_patches / REFERENCE_PATCHES))
        min_area = min(scaled, max_area, total, int(room / 2)) if self.min_area is None else self.min_area
        if min_area > min(max_area, total):
            raise ValueError(
                f"BlockMasker.min_area must be at most max_area and the number of masked patches; got {min_area} for "
                f"{max_area} and {total}. Lower min_area, or leave it out."
            )
        if min_area >= room:
            raise ValueError(
                f"BlockMasker.min_area must be below {room:.3g} on a grid of {grid[0]}x{grid[1]}, where no larger "
                f"rectangle fits; got {min_area}. Lower it, or leave it out."
            )
        patience = TRIES * (FRUITLESS_ROUNDS if self.exact else 1)
        return Limits(total, min_area, max_area, -math.log(self.min_aspect), patience)

    def cover(self, batch_size: int, grid: Grid, source: Source, ahead: int | None = None) -> Covered:
        """Place the rectangles; an exact count may still be short of the last patches, see `FRUITLESS_ROUNDS`."""
        return cover(batch_size, grid, self.rule(grid), source, ahead)

    def __call__(self, batch_size: int, grid: Grid, generator: torch.Generator, attention: Attended = None) -> Mask:
        """See `Masker.__call__`; drawn on the CPU, and copied to the device without waiting for it."""
        numbers = np.random.default_rng(host_seed(generator))
        total = self.num_masked(grid)
        masked = self.cover(batch_size, grid, FromGenerator(numbers)).masked
        if self.exact:
            masked = fill(masked, total, numbers)
        return Mask.from_masked(to_device(torch.from_numpy(masked), generator.device), total, varies=self.varies)
