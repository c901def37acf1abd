"""Keep blocks of patches visible and mask the rest, as data2vec 2.0 does."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.core.ranges import AtLeastOne, Share
from pantomim.masking.base import Attended, Grid, Ratio, Strategy, count_masked


@frozen
class InverseBlockMasker:
    """Square blocks around random patches stay visible; single patches are masked or shown until the count is exact.

    On N patches there are `N * ((1 - ratio) + adjust) / block**2` blocks, at least one. They overlap and are cut off at
    the border; `adjust` makes up for it, so that few single patches are needed.

    Paper: Baevski et al. 2023, arXiv:2212.07525, section "Inverse block masking"; 0.8, 3 and 0.07 as in its code for
        images (fairseq, examples/data2vec).
    Deviation: the grid need not be square; at least one block, where the authors' count is none on tiny grids. The
        single patches are picked by one sort of the batch, not image by image; their distribution is the same.
    """

    kind: Literal["inverse_block"] = "inverse_block"
    ratio: Ratio = 0.8  # Share of masked patches, in (0, 1)
    # Side of a block, in patches. An even one reaches one patch further up and left than down and right
    block: AtLeastOne = 3
    adjust: Share = 0.07  # Added to the share of visible patches when blocks are counted

    varies = False
    guided = False
    manner = "around blocks"
    strategies = (
        Strategy(
            "inverse_block",
            lambda ratio: InverseBlockMasker(ratio=ratio),
            "#c8458f",
            "Masks all around a few visible squares: what is left are whole pieces.",
            "No pattern: a fixed number of squares stays visible; single patches are then shown or masked until the "
            "count is exact.",
        ),
    )

    def num_masked(self, grid: Grid) -> int:
        """See `Masker.num_masked`."""
        self.num_blocks(grid)
        return count_masked("InverseBlockMasker", self.ratio, grid[0] * grid[1])

    def num_blocks(self, grid: Grid) -> int:
        """How many blocks are drawn; two of them may fall on the same patch."""
        if self.block > min(grid):
            raise ValueError(
                f"InverseBlockMasker.block must fit into the grid; got {self.block} for {grid[0]}x{grid[1]}. "
                f"Use smaller blocks or patches."
            )
        return max(1, int(grid[0] * grid[1] * ((1 - self.ratio) + self.adjust) / self.block**2))

    def __call__(self, batch_size: int, grid: Grid, generator: torch.Generator, attention: Attended = None) -> Mask:
        """See `Masker.__call__`."""
        num_masked, num_patches = self.num_masked(grid), grid[0] * grid[1]
        size, device = (batch_size, self.num_blocks(grid)), generator.device
        centres = torch.randint(num_patches, size, generator=generator, device=device)
        kept = torch.zeros(batch_size, num_patches, device=device).scatter_(1, centres, 1.0)
        kept = grow(kept.view(batch_size, *grid), self.block).flatten(1)
        singles = torch.rand(kept.shape, generator=generator, device=device)
        return Mask.from_scores(singles - kept, num_masked)  # what is in no block is masked before what is in one


def grow(centres: Float[Tensor, "B h w"], block: int) -> Float[Tensor, "B h w"]:
    """Ones in the block around every one, which has `block // 2` patches above and left of it; zeros elsewhere."""
    before, after = (block - 1) // 2, block // 2  # seen from a patch: how far away may a centre lie?
    return F.max_pool2d(F.pad(centres, (before, after, before, after)), block, stride=1)
