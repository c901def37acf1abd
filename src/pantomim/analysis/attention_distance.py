"""How far each head looks: the mean distance, in pixels, between a patch and what it attends to."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.analysis.block_facts import BlockFacts
from pantomim.analysis.blocks import block_features, patch_sides
from pantomim.analysis.inspection import Arrays, Images, LayerAnalysis, layer_table, mean_over_images, numbered
from pantomim.core.frozen import frozen
from pantomim.evaluate.features import AnyEncoder


@frozen
class AttentionDistance(LayerAnalysis):
    """How far each head looks, in pixels.

    Arrays: `distance` and `prefix_share` (layers, heads), and `uniform`, the distance of attention that is alike to all
    tokens.
    """

    name: ClassVar[str] = "attention-distance"
    title: ClassVar[str] = "How far the heads look"
    chart: ClassVar[str] = "heads"

    def measure(self, encoders: Sequence[AnyEncoder], images: Images) -> tuple[Arrays, dict[str, Any]]:
        """Means over images."""
        return numbered([self.measure_one(encoder, images) for encoder in encoders]), {}

    def measure_one(self, encoder: AnyEncoder, images: Images) -> Arrays:
        """Of one encoder."""
        distances = patch_distances(encoder.grid, patch_sides(encoder))

        def sums(batch: Tensor) -> dict[str, Tensor]:
            reaches = [
                attention_distance(block.attention, distances, encoder.num_prefix)
                for block in block_features(encoder, batch, need_attention=True)
                if block.attention is not None
            ]
            return {
                "distance": torch.stack([reach.distance.sum(dim=0).cpu() for reach in reaches]),
                "prefix_share": torch.stack([reach.prefix_share.sum(dim=0).cpu() for reach in reaches]),
            }

        num_tokens = encoder.num_prefix + len(distances)
        uniform = (distances.sum(dim=1).mean() / num_tokens).numpy()
        return {**mean_over_images(images.batches(encoder), sums), "uniform": uniform}

    @staticmethod
    def caption(about: dict[str, Any], images: str) -> str:
        """What one must know to read the charts."""
        return (
            "A dot is a head: the mean distance in pixels between a patch and the patches that it attends to. Line: "
            "mean over heads. Dashed: attention alike to all tokens. Attention to prefix tokens counts as distance 0. "
            f"{images}"
        )

    @staticmethod
    def panels(found: BlockFacts) -> list[tuple[str, tuple[Any, ...]]]:
        """Distances, that of uniform attention, the largest of all, and the title."""
        distances = [found.of("distance", number) for number in range(len(found.names))]
        uniform = [float(found.of("uniform", number)) for number in range(len(found.names))]
        highest = max(*(float(values.max()) for values in distances), *uniform)
        return [
            (name, (values, even, highest, name))
            for name, values, even in zip(found.names, distances, uniform, strict=True)
        ]

    @staticmethod
    def table(found: BlockFacts) -> tuple[list[str], list[list[str]]]:
        """Mean and range over heads."""

        def cell(number: int, layer: int) -> str:
            heads: np.ndarray = found.of("distance", number)[layer]
            return f"{heads.mean():.1f} ({heads.min():.1f} to {heads.max():.1f})"

        return layer_table(found, cell)


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
