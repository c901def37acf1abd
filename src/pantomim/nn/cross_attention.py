"""Attention from some tokens to others, keys and values normed apart: CAE's regressor and the attentive probe."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Multi-head attention with separate projections; queries and values have a bias, keys have none.

    Names as in CAE's code: `q`, `k`, `v`, `q_bias`, `v_bias`, `proj`.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"CrossAttention.heads must divide the width {width}; got {heads}. Change one of the two.")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self, queries: Float[Tensor, "B Q D"], keys: Float[Tensor, "B T D"], values: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B Q D"]:
        """Values mixed for the queries."""
        parts = (
            F.linear(queries, self.q.weight, self.q_bias),
            self.k(keys),
            F.linear(values, self.v.weight, self.v_bias),
        )
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))
