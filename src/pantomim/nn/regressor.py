"""CAE's latent contextual regressor: it predicts the masked patches' features from those of the visible ones."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.core.ranges import AtLeastOne, Positive, ShareBelowOne
from pantomim.nn.attention import CrossAttention
from pantomim.nn.blocks import NORM_EPS, DropPath, drop_path_rates, new_scale, scaled
from pantomim.nn.init import initialise, narrow_normal
from pantomim.nn.mlp import Mlp
from pantomim.nn.position import sincos_2d_rows_first
from pantomim.nn.vit import EncoderConfig

Keys = Literal["all", "visible"]


@frozen
class RegressorConfig:
    """Sizes of a `Regressor`."""

    width: AtLeastOne | None = None  # Width of a token, and of the decoder's; None: the encoder's
    depth: AtLeastOne = 4
    heads: AtLeastOne | None = None  # Attention heads, and the decoder's; None: the encoder's
    mlp_ratio: float = 4.0  # Hidden width of the MLP over the width
    layer_scale: Positive | None = 0.1  # Initial value of the branches' scales; None: no scales
    drop_path: ShareBelowOne = 0.0  # Stochastic depth of the last block; earlier ones have linearly less
    # Queries read visible patches and themselves ("all", the authors' code) or the former (the paper's)
    keys: Keys = "all"


class Projection(nn.Module):
    """From the encoder's width to the regressor's, where they differ: linear and norm, torch's initial weights."""

    def __init__(self, width: int, to: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, to)
        self.norm = nn.LayerNorm(to, eps=NORM_EPS)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """Token by token."""
        return self.norm(self.linear(tokens))


class RegressorBlock(nn.Module):
    """Cross-attention and MLP on the queries alone; the unit for sharding.

    Positions go to queries and keys, not to values.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float, layer_scale: float | None) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_k = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma_1, self.gamma_2 = new_scale(width, layer_scale), new_scale(width, layer_scale)

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
        # The residual of the MLP starts from the normed tensor, unlike a pre-norm block's: so it is in CAE's code.
        normed = self.norm2(queries + self.drop_path(scaled(mixed, self.gamma_1)))
        return normed + self.drop_path(scaled(self.mlp(normed), self.gamma_2))


class Regressor(nn.Module):
    """Queries at the masked places read the visible patches, block after block; visible ones never change.

    Paper: Chen et al., arXiv:2202.03026, "latent contextual regressor"; residuals as in the authors' code.
    Deviation: any grid; the authors' table is scrambled on grids that are not square.
    """

    position: Tensor

    def __init__(self, config: RegressorConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.keys = config.keys
        width, heads = config.width or encoder.width, config.heads or encoder.heads
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        table = sincos_2d_rows_first(width, encoder.grid).to(torch.get_default_dtype())
        self.register_buffer("position", table, persistent=False)
        self.blocks = nn.ModuleList(
            RegressorBlock(width, heads, config.mlp_ratio, rate, config.layer_scale)
            for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        initialise(self, encoder.initialisation, self.blocks)
        narrow_normal(self.mask_token)

    def forward(self, visible: Float[Tensor, "B V D"], mask: Mask) -> Float[Tensor, "B M D"]:
        """Predicted latents of the masked patches, in the order of `mask.ids_mask`."""
        query_position = F.embedding(mask.ids_mask, self.position)  # (B, M, D)
        context_position = F.embedding(mask.ids_keep, self.position)  # (B, V, D)
        if self.keys == "all":
            context_position = torch.cat([context_position, query_position], dim=1)  # (B, N, D)
        queries = self.mask_token.expand_as(query_position)
        for block in self.blocks:
            context = torch.cat([visible, queries], dim=1) if self.keys == "all" else visible
            queries = block(queries, context, query_position, context_position)
        return self.norm(queries)
