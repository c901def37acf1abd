"""Rotary positions: queries and keys are turned by angles that grow with the place of their patch.

Of a head's E channels, channel i and channel i + E/2 are the two coordinates of a point, which is turned by

    angle_i = coordinate * temperature^(-4 j / E),   j = i mod E/4

where the first E/4 points take the row and the others the column. The product of a query and a key then depends on
how far apart their patches are. Prefix tokens are not turned.

Paper: Su et al. 2021, arXiv:2104.09864; in two dimensions Fang et al. 2023, arXiv:2303.11331 (EVA-02), and Simeoni et
    al. 2025, arXiv:2508.10104 (DINOv3).
Deviation: EVA-02's points are neighbouring channels; its weights are reordered as they are read, with equal results.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import Positive, Size


@frozen
class Rope:
    """Rotary positions of patches."""

    temperature: Positive = 100.0  # Of the frequencies, in the formula above: 100 in DINOv3, 10000 in EVA-02
    # centred: a patch's centre, from -1 to 1 along each side, times 2 pi (DINOv3); patches: its row and column (EVA-02)
    coordinates: Literal["centred", "patches"] = "centred"
    # Rows and columns that "patches" are scaled to, whatever the grid: those of pre-training; None: the grid's own
    reference: tuple[Size, Size] | None = None

    def __post_init__(self) -> None:
        if self.coordinates == "centred" and self.reference is not None:
            raise ValueError(
                f"Rope.reference must be None for centred coordinates, which are the same on all grids; got "
                f"{self.reference}. Leave it out, or set coordinates to patches."
            )


def rope_table(rope: Rope, grid: tuple[int, int], head_width: int, num_prefix: int) -> Float[Tensor, "T R"]:
    """Cosines, then sines of the angles of every token, in float64; prefix tokens come first and stay as they are."""
    if head_width % 4:
        raise ValueError(
            f"Rope must have heads whose width is a multiple of 4; got {head_width}. Choose another number of heads."
        )
    frequency = rope.temperature ** -(torch.arange(head_width // 4, dtype=torch.float64) * 4 / head_width)
    places = []
    for side, to in zip(grid, rope.reference or grid, strict=True):
        steps = torch.arange(side, dtype=torch.float64)
        centred = rope.coordinates == "centred"
        places.append(2 * math.pi * (2 * (steps + 0.5) / side - 1) if centred else steps / side * to)
    coordinates = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
    angles = (coordinates.unsqueeze(-1) * frequency).flatten(1).repeat(1, 2)  # (N, E)
    angles = F.pad(angles, (0, 0, num_prefix, 0))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rope_of(
    table: Float[Tensor, "T R"], ids_keep: Int[Tensor, "B V"] | None, num_prefix: int
) -> Float[Tensor, "b S R"]:
    """The rows of the prefix tokens and of the patches `ids_keep` (all, if None: one table for all images)."""
    if ids_keep is None:
        return table.unsqueeze(0)
    prefix = table[:num_prefix].expand(len(ids_keep), -1, -1)
    return torch.cat([prefix, F.embedding(ids_keep, table[num_prefix:])], dim=1)


def rotate(heads: Float[Tensor, "B heads T E"], rope: Float[Tensor, "b T R"]) -> Float[Tensor, "B heads T E"]:
    """Queries or keys, turned in float32 or better."""
    cos, sin = rope.unsqueeze(1).chunk(2, dim=-1)
    values = at_least_float32(heads)
    first, second = values.chunk(2, dim=-1)
    return (values * cos + torch.cat([-second, first], dim=-1) * sin).to(heads.dtype)
