"""Mask patches uniformly at random, as MAE does."""

from typing import Literal

import torch

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.masking.base import Attended, Grid, Ratio, Strategy, count_masked


@frozen
class RandomMasker:
    """Uniform noise per patch; the patches with the highest values are masked.

    Paper: He et al. 2022, arXiv:2111.06377, section 3 "Masking"; ratio 0.75 in Table 8's recipe.
    Deviation: visible patches stay in raster order, not in the order of the noise; no block sees the difference.
    """

    kind: Literal["random"] = "random"
    ratio: Ratio = 0.75  # Share of masked patches, in (0, 1)

    varies = False
    guided = False
    manner = "at random"
    strategies = (
        Strategy(
            "random",
            lambda ratio: RandomMasker(ratio=ratio),
            "#6d7985",
            "Masks patches by chance alone: small holes and small clumps, side by side.",
            "No pattern: each patch is drawn by itself.",
        ),
    )

    def num_masked(self, grid: Grid) -> int:
        """See `Masker.num_masked`."""
        return count_masked("RandomMasker", self.ratio, grid[0] * grid[1])

    def __call__(self, batch_size: int, grid: Grid, generator: torch.Generator, attention: Attended = None) -> Mask:
        """See `Masker.__call__`."""
        noise = torch.rand(batch_size, grid[0] * grid[1], generator=generator, device=generator.device)
        return Mask.from_scores(noise, self.num_masked(grid))
