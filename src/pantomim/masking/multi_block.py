"""Predict several blocks from what is left of a large one, as I-JEPA does: index lists that need not cover all patches.

Paper: Assran et al. 2023, arXiv:2301.08243; rules and quirks are those of the authors' `src/masks/multiblock.py`.
"""

import math
import random
from functools import lru_cache
from itertools import count
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.host import host_seed, to_device
from pantomim.core.mask import Mask
from pantomim.core.ranges import AtLeastOne, AtLeastZero, Range
from pantomim.masking.base import Attended

PATIENCE = 20  # failed context blocks before one more target may overlap with the context
Area = Annotated[float, Range(above=0, most=1)]
Size = tuple[int, int]


class Blocks(NamedTuple):
    """Which patches are encoded and which are predicted; ids rise, and images of a batch have equally many."""

    context: Int[Tensor, "E B C"]  # blocks of each image without the patches of its targets
    targets: Int[Tensor, "T B K"]  # blocks of each image; they may overlap

    def rows(self, start: int, count: int) -> "Blocks":
        """Those of images `start : start + count`."""
        return Blocks(self.context[:, start : start + count], self.targets[:, start : start + count])


@frozen
class MultiBlockMasker:
    """Target blocks and a context block, of one size each in a batch, at random places.

    All lists of a batch are cut to the shortest, and as ids rise, the bottom rows lose the most: the authors' quirk.
    They cut within a process; here the global batch is cut, so that the number of processes changes nothing.
    """

    kind: Literal["multi_block"] = "multi_block"
    num_targets: AtLeastOne = 4  # T, blocks to predict
    num_contexts: AtLeastOne = 1  # E, blocks to encode
    # Smallest and largest share of the grid in a context block, before targets are taken out of it
    context_scale: tuple[Area, Area] = (0.85, 1.0)
    target_scale: tuple[Area, Area] = (0.15, 0.2)  # The same of a target block
    # Smallest and largest height over width of a target block
    target_aspect: tuple[Annotated[float, Range(above=0)], Annotated[float, Range(above=0)]] = (0.75, 1.5)
    min_keep: AtLeastZero = 10  # A block must have more patches than this
    allow_overlap: bool = False  # Leave targets within the context

    varies = True
    guided = False
    manner = "around a block"
    strategies = ()  # there is no ratio to compare at

    def __post_init__(self) -> None:
        for name in ("context_scale", "target_scale", "target_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"MultiBlockMasker.{name} must rise; got {low} and {high}. Exchange the two.")

    def num_masked(self, grid: Size) -> int:
        """See `Masker.num_masked`: all but the smallest context."""
        for scale, aspect in ((self.target_scale, self.target_aspect), (self.context_scale, (1.0, 1.0))):
            height, width = min((_size(grid, u, scale, aspect) for u in np.linspace(0, 1, 101)), key=math.prod)
            if height * width <= self.min_keep:
                raise ValueError(
                    f"MultiBlockMasker.min_keep must be below the patches of a block; got {self.min_keep}, and a block "
                    f"of {height} x {width} can be drawn on a grid of {grid[0]} x {grid[1]}. Lower it, or use smaller "
                    f"patches."
                )
        return grid[0] * grid[1] - self.min_keep - 1

    def blocks(self, batch_size: int, grid: Size, generator: torch.Generator) -> Blocks:
        """Draw the blocks of a global batch, on the host, and send them to the device of `generator`."""
        self.num_masked(grid)  # refuses what can never be valid
        context, targets = self.draw(batch_size, grid, random.Random(repr(host_seed(generator))))
        return Blocks(*(to_device(torch.from_numpy(ids), generator.device) for ids in (context, targets)))

    def draw(self, batch_size: int, grid: Size, numbers: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Context ids (E, B, C) and target ids (T, B, K), from numbers asked for in the authors' order."""
        target_size = _size(grid, numbers.random(), self.target_scale, self.target_aspect)
        context_size = _size(grid, numbers.random(), self.context_scale, (1.0, 1.0))
        contexts, targets = [], []
        for _ in range(batch_size):
            mine = [_block(grid, target_size, numbers) for _ in range(self.num_targets)]
            targets.append(mine)
            contexts.append([self._context(grid, context_size, mine, numbers) for _ in range(self.num_contexts)])
        return _ids(contexts, grid), _ids(targets, grid)

    def _context(self, grid: Size, size: Size, targets: list[int], numbers: random.Random) -> int:
        """One context block, of which as many targets are taken out as leave enough patches."""
        for failures in count():
            block = _block(grid, size, numbers)
            if not self.allow_overlap:
                for target in targets[: max(len(targets) - failures // PATIENCE, 0)]:
                    block &= ~target
            if block.bit_count() > self.min_keep:
                return block
        raise AssertionError("unreachable: without targets every block is large enough, see num_masked")

    def __call__(self, batch_size: int, grid: Size, generator: torch.Generator, attention: Attended = None) -> Mask:
        """See `Masker.__call__`: all but the first context block, for pictures and for encoders with mask tokens."""
        context = self.blocks(batch_size, grid, generator).context[0]
        masked = torch.ones(batch_size, grid[0] * grid[1], dtype=torch.bool, device=context.device)
        return Mask.from_masked(masked.scatter_(1, context, False), self.num_masked(grid), varies=True)


def _size(grid: Size, u: float, scale: tuple[float, float], aspect: tuple[float, float]) -> Size:
    """Height and width of a block; one number decides area and aspect, so that large targets are tall."""
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def _block(grid: Size, size: Size, numbers: random.Random) -> int:
    """A block at a random place; the last row and column are out of reach, as the authors' upper ends are exclusive."""
    top, left = (numbers.randrange(side - length) for side, length in zip(grid, size, strict=True))
    return _corner_block(grid[1], size) << (top * grid[1] + left)


@lru_cache(maxsize=64)
def _corner_block(columns: int, size: Size) -> int:
    """The block in the upper left corner: an integer with a bit a patch in raster order, cheap to move and count."""
    return sum(((1 << size[1]) - 1) << (row * columns) for row in range(size[0]))


def _ids(blocks: list[list[int]], grid: Size) -> np.ndarray:
    """The ids of blocks by image and number, cut to the shortest list, as (number, image, place)."""
    num_patches = math.prod(grid)
    data = b"".join(block.to_bytes(-(-num_patches // 8), "little") for of_image in blocks for block in of_image)
    packed = np.frombuffer(data, dtype=np.uint8).reshape(len(blocks), len(blocks[0]), -1)
    bits = np.unpackbits(packed, axis=2, count=num_patches, bitorder="little")
    order = np.argsort(1 - bits, axis=2, kind="stable")  # the patches of a block come first, in raster order
    return order[:, :, : bits.sum(axis=2, dtype=np.int64).min()].swapaxes(0, 1).copy()
