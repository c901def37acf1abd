"""CAE's latent contextual regressor: what the encoder would say of the hidden patches, read from the visible ones."""

from dataclasses import asdict
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.nn.cross_attention import CrossAttention
from pantomim.nn.position import sincos_2d_rows_first
from pantomim.nn.vit import (
    NORM_EPS,
    DropPath,
    EncoderConfig,
    Initialisation,
    Mlp,
    initialise_stack,
    narrow_normal,
)

Keys = Literal["all", "visible"]


class Projection(nn.Module):
    """From the encoder's width to the regressor's, where they differ: linear and norm, torch's initialisation."""

    def __init__(self, width: int, to: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, to)
        self.norm = nn.LayerNorm(to, eps=NORM_EPS)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """Token by token."""
        return self.norm(self.linear(tokens))


class RegressorBlock(nn.Module):
    """Cross-attention and MLP on the queries alone; the unit for sharding.

    Positions go to queries and keys, not to values. The MLP's residual is around the normed tensor.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_k = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(
        self,
        queries: Float[Tensor, "B M D"],
        context: Float[Tensor, "B T D"],
        query_position: Float[Tensor, "B M D"],
        context_position: Float[Tensor, "B T D"],
    ) -> Float[Tensor, "B M D"]:
        """New queries."""
        mixed = self.attn(
            self.norm_q(queries + query_position), self.norm_k(context + context_position), self.norm_v(context)
        )
        normed = self.norm2(queries + self.drop_path(mixed if self.gamma_1 is None else self.gamma_1 * mixed))
        mixed = self.mlp(normed)
        return normed + self.drop_path(mixed if self.gamma_2 is None else self.gamma_2 * mixed)


class Regressor(nn.Module):
    """Queries at the hidden places read the visible patches, block after block; visible ones never change.

    Args:
        grid: Rows and columns of patches.
        width: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLP over the width.
        layer_scale: First value of the branches' scales; None: no scales.
        drop_path: Rate of the last block; blocks before it have linearly less.
        initialisation: Whose first values, as of the encoder.
        keys: What the queries read: "all" are the visible patches and the queries themselves, as in the authors' code;
            "visible" the visible patches alone, as in the paper's figure.

    Paper: Chen et al., arXiv:2202.03026, "latent contextual regressor"; residuals as in the authors' code.
    Deviation: any grid; the authors' table is scrambled on grids that are not square.
    """

    position: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        keys: Keys = "all",
        initialisation: Initialisation = "cae",
    ) -> None:
        super().__init__()
        self.keys = keys
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        table = sincos_2d_rows_first(width, grid).to(torch.get_default_dtype())
        self.register_buffer("position", table, persistent=False)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(RegressorBlock(width, heads, mlp_ratio, rate, layer_scale) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        initialise_stack(self, self.blocks, initialisation)
        narrow_normal(self.mask_token)

    def forward(self, visible: Float[Tensor, "B V D"], mask: Mask) -> Float[Tensor, "B M D"]:
        """Predicted latents of the hidden patches, in the order of `mask.ids_mask`."""
        hidden_position = F.embedding(mask.ids_mask, self.position)  # (B, M, D)
        context_position = F.embedding(mask.ids_keep, self.position)  # (B, V, D)
        if self.keys == "all":
            context_position = torch.cat([context_position, hidden_position], dim=1)  # (B, N, D)
        queries = self.mask_token.expand_as(hidden_position)
        for block in self.blocks:
            context = torch.cat([visible, queries], dim=1) if self.keys == "all" else visible
            queries = block(queries, context, hidden_position, context_position)
        return self.norm(queries)


@frozen
class RegressorConfig:
    """Sizes of a `Regressor`; width and heads None: those of the encoder. Its decoder has the same two.

    Raises:
        ValueError: if a size is smaller than one.
    """

    width: int | None = None
    depth: int = 4
    heads: int | None = None
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.1
    drop_path: float = 0.0
    keys: Keys = "all"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"RegressorConfig.{name} must be at least 1; got {value}.")

    def build(self, encoder: EncoderConfig) -> Regressor:
        """The regressor for an encoder's patches."""
        sizes = asdict(self) | {"width": self.width or encoder.width, "heads": self.heads or encoder.heads}
        return Regressor(encoder.grid, **sizes, initialisation=encoder.initialisation)
