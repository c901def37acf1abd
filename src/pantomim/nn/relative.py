"""Relative positions: what attention adds for how far apart two patches are, learned for each head."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import make_interp_spline
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
    return nn.functional.embedding(index, table).movedim(-1, -3)


class RelativeBias(nn.Module):
    """One table of relative positions for all blocks; zero at first. Names as in BEiT's code."""

    def __init__(self, num_rows: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_rows, heads))

    def forward(self, index: Int[Tensor, "*B Q T"]) -> Float[Tensor, "*B heads Q T"]:
        """See `relative_bias`."""
        return relative_bias(self.relative_position_bias_table, index)


def resize_relative_table(
    table: Float[Tensor, "R heads"], grid: tuple[int, int], to: tuple[int, int]
) -> Float[Tensor, "S heads"]:
    """A table of relative positions for another grid; near offsets keep their values, far ones are stretched.

    Along each axis the offsets known are laid out at growing distances, and a cubic spline through them is read at the
    whole numbers; beyond the last one its value holds. Rows of the class token are kept.

    Raises:
        ValueError: if the table does not belong to `grid`.

    Source: BEiT's `run_class_finetuning.py`.
    Deviation: axis by axis, so for any grid, where theirs is square; fewer than four offsets are joined by a spline of
        lower degree; computed in float64, where theirs rounds to float32.
    """
    shape = (2 * grid[0] - 1, 2 * grid[1] - 1)
    kept = len(table) - shape[0] * shape[1]
    if kept not in (0, CLASS_ROWS):
        raise ValueError(
            f"resize_relative_table.table must have {shape[0] * shape[1]} rows for a grid of {grid[0]}x{grid[1]}, or "
            f"{CLASS_ROWS} more with a class token; got {len(table)}. Check the grid that the weights were trained on."
        )
    if grid == to:
        return table
    patches = table[: len(table) - kept].detach().cpu().double().numpy().reshape(*shape, -1)
    for axis, (side, wanted) in enumerate(zip(shape, (2 * to[0] - 1, 2 * to[1] - 1), strict=True)):
        if side == wanted:
            continue
        known = growing_offsets(side, wanted)
        asked = np.arange(wanted) - wanted // 2
        values = np.repeat(patches, 2, axis)  # a single offset has one value everywhere
        places = known if side > 1 else np.array([-1.0, 1.0])
        spline = make_interp_spline(places, patches if side > 1 else values, min(3, len(places) - 1), axis=axis)
        patches = spline(asked.clip(places[0], places[-1]))
    resized = torch.from_numpy(np.ascontiguousarray(patches)).flatten(0, 1).to(table)
    return torch.cat([resized, table[len(table) - kept :]])


def growing_offsets(side: int, to: int) -> np.ndarray:
    """Where `side` offsets lie among `to` whole ones: 0, 1, 1 + q, 1 + q + q^2 ... and the same below zero.

    The ratio q is the one for which the last falls on the last whole offset, found by bisection between 1.01 and 1.5.
    """
    reach = side // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1.0 - ratio**reach) / (1.0 - ratio) > to // 2:
            high = ratio
        else:
            low = ratio
    above = np.cumsum(ratio ** np.arange(reach))
    return np.concatenate([-above[::-1], [0.0], above])
