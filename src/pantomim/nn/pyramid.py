"""From blocks of a plain ViT to maps: which blocks a dense head reads, and four maps of rising stride made of them."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from pantomim.nn.tokens import as_map
from pantomim.nn.vit import Features


def tapped_blocks(depth: int) -> tuple[int, ...]:
    """The four blocks, from 0, that a pyramid reads: those that end a third, a half, two thirds and all of the depth.

    Source: BEiT's, CAE's and dBOT's configs for ADE20K: 3, 5, 7, 11 of 12; 7, 11, 15, 23 of 24.
    Deviation: the rule for other depths is ours; rounded down, and where two would be one, the later moves on.
    """
    if depth < 4:
        raise ValueError(
            f"tapped_blocks.depth must be at least 4; got {depth}. Take a deeper encoder, or a linear head."
        )
    taps: list[int] = []
    for block in (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1):
        taps.append(max(block, taps[-1] + 1 if taps else 0))
    return tuple(taps)


class Pyramid(nn.Module):
    """Four maps of strides 4, 8, 16 and 32, each of its own tap; their width is the encoder's.

    A map is enlarged by deconvolutions, with batch norm and an exact GELU between two of them, or shrunk by a maximum,
    which drops the last row or column of an odd side. Initial weights are torch's.

    Source: the `fpn` of BEiT's, CAE's and dBOT's segmentation backbones; mmsegmentation's `Feature2Pyramid`.
    Deviation: other patch sizes than 16 and 8, by the nearest power of two (14 is taken as 16).
    """

    def __init__(self, width: int, patch_size: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        doublings = round(math.log2(patch_size / 4))
        if min(grid) < (smallest := 2 ** max(3 - doublings, 0)):
            raise ValueError(
                f"Pyramid.grid must have at least {smallest} rows and columns of patches of {patch_size} pixels; got "
                f"{grid[0]} x {grid[1]}. Take larger images."
            )
        self.levels = nn.ModuleList(_rescaled(width, doublings - level) for level in range(4))

    def forward(self, taps: list[Features]) -> list[Float[Tensor, "B D _ _"]]:
        """From fine to coarse."""
        return [level(as_map(tap.patches, self.grid)) for level, tap in zip(self.levels, taps, strict=True)]


def _rescaled(width: int, doublings: int) -> nn.Module:
    """What enlarges a map by 2 ** doublings."""
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings)
    layers: list[nn.Module] = []
    for number in range(doublings):
        if number:
            layers += [nn.BatchNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
    return nn.Sequential(*layers)
