"""Relative positions: what attention adds for how far apart two patches are, learned for each head."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CLASS_ROWS = 3  # of a table with a class token, at its end: class to patch, patch to class, class to class


def relative_index(grid: tuple[int, int], class_token: bool) -> Int[Tensor, "T T"]:
    """For every pair of tokens (query, key) the row of the table that holds its bias; the class token comes first.

    The rows stand for offsets, query minus key, row by row: with H x W patches there are (2H-1)(2W-1), and three more
    for the class token.

    Paper: Bao et al. 2022, arXiv:2106.08254, appendix; order of the rows as in the authors' `modeling_finetune.py`.
    """
    rows, cols = grid
    row = torch.arange(rows).repeat_interleave(cols)
    col = torch.arange(cols).repeat(rows)
    down = row.unsqueeze(1) - row + rows - 1  # (N, N), from 0
    right = col.unsqueeze(1) - col + cols - 1
    patches = down * (2 * cols - 1) + right
    if not class_token:
        return patches
    count = num_relative_rows(grid, class_token)
    index = torch.full((len(patches) + 1,) * 2, count - 1)
    index[0, 1:] = count - 3
    index[1:, 0] = count - 2
    index[1:, 1:] = patches
    return index


def num_relative_rows(grid: tuple[int, int], class_token: bool) -> int:
    """Rows of a table of relative positions."""
    rows, cols = grid
    return (2 * rows - 1) * (2 * cols - 1) + (CLASS_ROWS if class_token else 0)


def index_of(index: Int[Tensor, "T T"], ids_keep: Int[Tensor, "B V"], num_prefix: int) -> Int[Tensor, "B S S"]:
    """The pairs of the prefix tokens and the patches `ids_keep` alone, image by image."""
    prefix = torch.arange(num_prefix, device=ids_keep.device).expand(len(ids_keep), -1)
    places = torch.cat([prefix, ids_keep + num_prefix], dim=1)  # (B, S)
    return index[places.unsqueeze(2), places.unsqueeze(1)]


def relative_bias(table: Float[Tensor, "R heads"], index: Int[Tensor, "*B Q T"]) -> Float[Tensor, "*B heads Q T"]:
    """What is added to the scaled products of queries and keys, before the softmax."""
    # contiguous: fused attention kernels refuse a bias whose last dimension is strided
    return nn.functional.embedding(index, table).movedim(-1, -3).contiguous()


class RelativeBias(nn.Module):
    """One table of relative positions for all blocks; zero at first. Names as in BEiT's code."""

    def __init__(self, num_rows: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_rows, heads))

    def forward(self, index: Int[Tensor, "*B Q T"]) -> Float[Tensor, "*B heads Q T"]:
        """See `relative_bias`."""
        return relative_bias(self.relative_position_bias_table, index)
