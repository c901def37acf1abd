"""How far each head looks: the mean distance, in pixels, between a patch and what it attends to."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.analysis.block_facts import BlockFacts
from pantomim.analysis.blocks import block_features
from pantomim.analysis.inspection import LayerMeans
from pantomim.core.frozen import frozen
from pantomim.evaluate.features import AnyEncoder


@frozen
class AttentionDistance(LayerMeans):
    """How far each head looks, in pixels."""

    name: ClassVar[str] = "attention-distance"
    title: ClassVar[str] = "How far the heads look"
    chart: ClassVar[str] = "heads"
    drawn: ClassVar[tuple[str, ...]] = ("distance", "uniform")
    told: ClassVar[str] = "pixels, mean (range) over heads"
    explained: ClassVar[str] = (
        "A dot is a head: the mean distance in pixels between a patch and the patches that it attends to. Line: mean "
        "over heads. Dashed: uniform attention. Attention to prefix tokens counts as distance 0. {images}"
    )

    def sums(self, encoder: AnyEncoder, images: Tensor) -> dict[str, Tensor]:
        """`distance` and `prefix_share` (layers, heads), and `uniform`: the distance if all tokens were alike."""
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        distances = patch_distances(encoder.grid, (height / rows, width / cols))
        uniform = distances.sum(dim=1).mean() / (encoder.num_prefix + len(distances))
        seen = (block.attention for block in block_features(encoder, images, need_attention=True))
        reaches = [attention_distance(each, distances, encoder.num_prefix) for each in seen if each is not None]
        return {
            "distance": torch.stack([reach.distance.sum(dim=0) for reach in reaches]),
            "prefix_share": torch.stack([reach.prefix_share.sum(dim=0) for reach in reaches]),
            "uniform": len(images) * uniform,
        }

    @staticmethod
    def finding(found: BlockFacts) -> str:
        """The reach of the first and of the last block."""
        told = []
        for number, name in enumerate(found.names):
            reach, uniform = found.of("distance", number).mean(axis=1), float(found.of("uniform", number))
            told.append(
                f"Heads of {name} look {reach[0]:.1f} pixels far in the first block and {reach[-1]:.1f} in the last, "
                f"on average; uniform attention would reach {uniform:.1f}."
            )
        return " ".join(told)

    @staticmethod
    def cell(found: BlockFacts, number: int, layer: int) -> str:
        """Mean and range over heads."""
        heads = found.of("distance", number)[layer]
        return f"{heads.mean():.1f} ({heads.min():.1f} to {heads.max():.1f})"


class Reach(NamedTuple):
    """Of every head of a block, for each image."""

    distance: Float[Tensor, "B heads"]  # mean over what is attended to, in pixels; prefix tokens count as 0
    prefix_share: Float[Tensor, "B heads"]  # of the patches' attention, what goes to prefix tokens


def patch_distances(grid: tuple[int, int], patch: tuple[float, float]) -> Float[Tensor, "N N"]:
    """Distance between the centres of any two patches (height, width) in raster order, float64."""
    rows, cols = (torch.arange(count, dtype=torch.float64) * side for count, side in zip(grid, patch, strict=True))
    y, x = rows.repeat_interleave(grid[1]), cols.repeat(grid[0])
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def attention_distance(
    attention: Float[Tensor, "B heads T T"], distances: Float[Tensor, "N N"], num_prefix: int
) -> Reach:
    """Sum over keys of attention times distance, mean over the patches as queries; in float64.

    A row of the attention is a query's softmax, prefix tokens first. Rows and columns of prefix tokens are left out,
    and what is left of a row is not made to sum to one again.

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
