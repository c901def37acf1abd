"""How far each head looks: the mean distance, in pixels, between a patch and what it attends to."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Reach(NamedTuple):
    """Of every head of a block, for each image.

    Args:
        distance: Mean distance to the patches attended to, in pixels; attention to prefix tokens counts as distance 0.
        prefix_share: Share of the patches' attention that goes to prefix tokens.
    """

    distance: Float[Tensor, "B heads"]
    prefix_share: Float[Tensor, "B heads"]


def patch_distances(grid: tuple[int, int], patch: tuple[float, float]) -> Float[Tensor, "N N"]:
    """Distance between the centres of any two patches in raster order, float64.

    Args:
        grid: Rows and columns of patches.
        patch: Height and width of a patch; of pixels, for distances in pixels.
    """
    rows, cols = (torch.arange(count, dtype=torch.float64) * side for count, side in zip(grid, patch, strict=True))
    y, x = rows.repeat_interleave(grid[1]), cols.repeat(grid[0])
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def attention_distance(
    attention: Float[Tensor, "B heads T T"], distances: Float[Tensor, "N N"], num_prefix: int
) -> Reach:
    """Sum over keys of attention times distance, mean over the patches as queries; in float64.

    Rows and columns of prefix tokens are left out, and what is left of a row is not made to sum to one again.

    Args:
        attention: As it comes out of the softmax, a row a query, prefix tokens first.
        distances: See `patch_distances`.
        num_prefix: Class and register tokens.

    Raises:
        ValueError: if the attention is of another number of tokens.

    Paper: Dosovitskiy et al. 2021, arXiv:2010.11929, Figure 7; as in the tools of dBOT's authors (arXiv:2209.03917),
        `analysis/analysis.py`.
    Deviation: over many images the exact mean of their values; the authors' script weighs batches alike, a last small
        one more than its share.
    """
    num_patches = attention.shape[-1] - num_prefix
    if num_patches != len(distances):
        raise ValueError(
            f"attention_distance.attention must be over {num_prefix} prefix tokens and {len(distances)} patches; got "
            f"{attention.shape[-1]} tokens. Give the grid and the number of prefix tokens of this encoder."
        )
    between = attention[..., num_prefix:, num_prefix:].double()  # (B, heads, N, N)
    distance = (between * distances.to(attention.device)).sum(dim=-1).mean(dim=-1)
    to_prefix = attention[..., num_prefix:, :num_prefix].double().sum(dim=-1).mean(dim=-1)
    return Reach(distance, to_prefix)
