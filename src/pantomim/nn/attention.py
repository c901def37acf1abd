"""Multi-head attention: of tokens among themselves, and from some tokens to others under the names of CAE and MILAN.

attention = softmax(query key^T / sqrt(E) + bias),  output = proj(attention value),  E = width / heads
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pantomim.nn.lora import LoRALinear
from pantomim.nn.relative import relative_bias
from pantomim.nn.rope import rotate
from pantomim.nn.tokens import take

SHORT = 64  # tokens; up to so many the memory-efficient kernel is the fastest of a GPU's (docs/results/gpu.md)
SHORT_ORDER = (
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION),
    *(SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
)
AttentionBias = Literal["qkv", "qv", "none"]


class Places(NamedTuple):
    """Where tokens stand, as attention takes it; b is 1 where it is the same for all images."""

    bias: Float[Tensor, "b heads T T"] | None = None  # added before the softmax
    rows: Int[Tensor, "b T T"] | None = None  # or the rows of the block's own table, whose values are added
    rope: Float[Tensor, "b T R"] | None = None  # turns queries and keys: see `nn.rope`


NOWHERE = Places()


def split_heads(tokens: Float[Tensor, "B T D"], heads: int) -> Float[Tensor, "B heads T E"]:
    """Each head's share of the channels."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Float[Tensor, "B heads T E"]) -> Float[Tensor, "B T D"]:
    """The inverse of `split_heads`."""
    return tokens.transpose(1, 2).flatten(2)


def softmax_scores(
    query: Float[Tensor, "B heads Q E"], key: Float[Tensor, "B heads T E"], bias: Float[Tensor, "b heads Q T"] | None
) -> Float[Tensor, "B heads Q T"]:
    """The attention itself, for those who want to see it."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return (scores if bias is None else scores + bias.to(scores.dtype)).softmax(dim=-1)


def attend_to(
    query: Float[Tensor, "B heads Q E"],
    key: Float[Tensor, "B heads T E"],
    value: Float[Tensor, "B heads T E"],
    bias: Float[Tensor, "b heads Q T"] | None = None,
) -> Float[Tensor, "B heads Q E"]:
    """Values mixed for the queries, by a fused kernel where there is one."""
    bias = None if bias is None else bias.to(query.dtype)
    if query.is_cuda and bias is None and key.shape[-2] <= SHORT:
        with sdpa_kernel([*SHORT_ORDER], set_priority=True):
            return F.scaled_dot_product_attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, bias)


def mix(
    query: Float[Tensor, "B Q D"], key: Float[Tensor, "B T D"], value: Float[Tensor, "B T D"], heads: int
) -> Float[Tensor, "B Q D"]:
    """Values mixed for the queries."""
    query, key, value = (split_heads(part, heads) for part in (query, key, value))
    return merge_heads(attend_to(query, key, value))


def _rows(of_tokens: Float[Tensor, "b T K"], only: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q K"]:
    """Rows of some tokens; where they are the same for all images, gradients are added up as they come."""
    return F.embedding(only, of_tokens[0]) if len(of_tokens) == 1 else take(of_tokens, only)


def check_heads(module: nn.Module, width: int, heads: int) -> int:
    """The heads, which must divide the width."""
    if width % heads:
        owner = type(module).__name__
        raise ValueError(f"{owner}.heads must divide the width {width}; got {heads}. Change one of the two.")
    return heads


class Attention(nn.Module):
    """Self-attention; the attention weights are computed only when they are asked for. Names as in timm and BEiT.

    Keys have no `bias` with "qv" (BEiT's and CAE's), nor have queries and values with "none"; `relative_rows` are those
    of the block's own table of relative positions, which it has if there are any. With `qk_norm`, an eps, each head's
    queries and keys are normed before they are turned (ViT-22B, arXiv:2302.05442).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bias: AttentionBias = "qkv",
        relative_rows: int = 0,
        qk_norm: float | None = None,
    ) -> None:
        super().__init__()
        self.heads = check_heads(self, width, heads)
        self.qkv = nn.Linear(width, 3 * width, bias=bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if bias == "qv" else None
        self.relative_position_bias_table = nn.Parameter(torch.zeros(relative_rows, heads)) if relative_rows else None
        norms = [nn.Identity() if qk_norm is None else nn.LayerNorm(width // heads, eps=qk_norm) for _ in "qk"]
        self.q_norm, self.k_norm = norms
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        need_weights: bool = False,
        only: Int[Tensor, "B Q"] | None = None,
        places: Places = NOWHERE,
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B heads Q T"] | None]:
        """Output for all tokens, or `only` for some, which read all; and, if asked for, the attention."""
        queries = None if only is None else take(tokens, only)
        query, key, value = (split_heads(part, self.heads) for part in self._project(tokens, queries))
        query, key = self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype)
        if places.rope is not None:
            turn = places.rope if only is None else _rows(places.rope, only)
            query, key = rotate(query, turn), rotate(key, places.rope)
        bias = self._relative(places.bias, places.rows)
        if bias is not None and only is not None:  # (B, heads, Q, T)
            bias = _rows(bias.transpose(1, 2).flatten(2), only).unflatten(2, (self.heads, -1)).transpose(1, 2)
        # The exporter to ONNX counts on the memory layout of a fused kernel, and with a bias loses it
        if need_weights or (bias is not None and torch.onnx.is_in_onnx_export()):
            weights = softmax_scores(query, key, bias)
            return self.proj(merge_heads(weights @ value)), weights if need_weights else None
        return self.proj(merge_heads(attend_to(query, key, value, bias))), None

    def attend(
        self, tokens: Float[Tensor, "B T D"], rows: slice, places: Places = NOWHERE
    ) -> Float[Tensor, "B heads Q T"]:
        """The attention of the tokens `rows` alone; no value is computed."""
        width = tokens.shape[-1]
        query = split_heads(self._linear(tokens[:, rows], slice(0, width)), self.heads)
        key = split_heads(self._linear(tokens, slice(width, 2 * width)), self.heads)
        query, key = self.q_norm(query), self.k_norm(key)
        if places.rope is not None:
            query, key = rotate(query, places.rope[:, rows]), rotate(key, places.rope)
        bias = None if places.bias is None else places.bias[:, :, rows]
        index = None if places.rows is None else places.rows[:, rows]
        return softmax_scores(query, key, self._relative(bias, index))

    def _project(
        self, tokens: Float[Tensor, "B T D"], queries: Float[Tensor, "B Q D"] | None
    ) -> tuple[Float[Tensor, "B _ D"], ...]:
        """Query, key and value."""
        if queries is None:
            joined = self.qkv(tokens) if self.q_bias is None else self._linear(tokens, slice(None))
            return joined.chunk(3, dim=-1)  # gradients come back with a single copy
        width = queries.shape[-1]
        query = self._linear(queries, slice(0, width))
        return (query, *self._linear(tokens, slice(width, None)).chunk(2, dim=-1))

    def _linear(self, tokens: Float[Tensor, "B T D"], outputs: slice) -> Float[Tensor, "B T _"]:
        """Some of the outputs of the joint projection."""
        bias, qkv = self._joined_bias(), self.qkv
        found = F.linear(tokens, qkv.weight[outputs], None if bias is None else bias[outputs])
        return found + qkv.update(tokens, outputs) if isinstance(qkv, LoRALinear) else found

    def _joined_bias(self) -> Tensor | None:
        """Of queries, keys and values, one after the other; the keys' are zeros where they have none."""
        if self.q_bias is not None and self.v_bias is not None:
            return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.qkv.bias

    def _relative(self, bias: Tensor | None, index: Tensor | None) -> Tensor | None:
        if self.relative_position_bias_table is None or index is None:
            return bias
        return relative_bias(self.relative_position_bias_table, index)


class CrossAttention(nn.Module):
    """CAE's: separate projections, of which queries and values have a bias and keys have none; names as in its code."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = check_heads(self, width, heads)
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
        query, value = F.linear(queries, self.q.weight, self.q_bias), F.linear(values, self.v.weight, self.v_bias)
        return self.proj(mix(query, self.k(keys), value, self.heads))


class PromptedAttention(nn.Module):
    """MILAN's: one projection of the queries, one of keys and values together; names as in its code."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = check_heads(self, width, heads)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Float[Tensor, "B M W"], tokens: Float[Tensor, "B T W"]) -> Float[Tensor, "B M W"]:
        """Tokens mixed for the queries."""
        key, value = self.kv(tokens).chunk(2, dim=-1)
        return self.proj(mix(self.q(queries), key, value, self.heads))
