"""Fixed tables of positions: sine and cosine."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_2d(width: int, grid: tuple[int, int], num_prefix: int = 0) -> Float[Tensor, "T D"]:
    """Fixed two-dimensional position table in float64; rows of zeros for the prefix tokens come first.

    The first half of the channels encodes the column, the second half the row; in each half all sines precede all
    cosines, with frequencies 10000^(-i / (width / 4)).

    Paper: He et al. 2022, appendix A.1; axis order as in the authors' `util/pos_embed.py`.
    Deviation: any grid, where theirs is square.
    """
    if width % 4:
        raise ValueError(f"sincos_2d.width must be a multiple of 4; got {width}. Choose another width.")
    rows, cols = grid
    omega = 1.0 / 10000.0 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))

    def encode(positions: Tensor) -> Tensor:
        angles = positions.double().unsqueeze(1) * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    by_col = encode(torch.arange(cols)).repeat(rows, 1)
    by_row = encode(torch.arange(rows)).repeat_interleave(cols, dim=0)
    table = torch.cat([by_col, by_row], dim=1)
    return torch.cat([table.new_zeros(num_prefix, width), table])


def sincos_2d_rows_first(width: int, grid: tuple[int, int], num_prefix: int = 0) -> Float[Tensor, "T D"]:
    """The table of `sincos_2d` with the row in the first half of the channels, as in CAE.

    Paper: Chen et al., arXiv:2202.03026; order as in the authors' code, on square grids.
    """
    return sincos_2d(width, grid, num_prefix).roll(width // 2, dims=1)


TableName = Literal["sincos, columns first", "sincos, rows first", "other"]
# The table of a fixed `EncoderConfig.position`.
TABLES: dict[str, TableName] = {"sincos": "sincos, columns first", "sincos_rows_first": "sincos, rows first"}


def name_table(table: Float[Tensor, "1 T D"], grid: tuple[int, int], num_prefix: int) -> TableName:
    """Which position table this is: MAE's (columns first), mmpretrain's (rows first) or another one.

    Both are sine-cosine tables; they differ in what the first half of the channels encodes. On a single patch they are
    the same, which is told as columns first.
    """
    width = table.shape[-1]
    if width % 4:
        return "other"
    rounding = max(1e-4, torch.finfo(table.dtype).eps)  # of the stored number type, and of a table made in float32
    found = table[0].detach().cpu().double()
    for position, build in (("sincos", sincos_2d), ("sincos_rows_first", sincos_2d_rows_first)):
        if torch.allclose(found, build(width, grid, num_prefix), rtol=0, atol=rounding):
            return TABLES[position]
    return "other"
