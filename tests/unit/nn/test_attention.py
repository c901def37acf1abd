import pytest
import torch

from pantomim.nn.attention import Attention, CrossAttention, Places, PromptedAttention


def test_attention_weights_are_the_softmax_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).double()
    tokens = torch.rand(1, 5, 8, dtype=torch.float64)
    mixed, weights = attention(tokens, need_weights=True)
    query, key, value = (tokens[0] @ attention.qkv.weight.T + attention.qkv.bias).split(8, dim=1)
    heads = []
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        scores = (query[:, part] @ key[:, part].T / 4**0.5).exp()
        expected = scores / scores.sum(dim=1, keepdim=True)
        torch.testing.assert_close(weights[0, head], expected)
        heads.append(expected @ value[:, part])
    by_hand = torch.cat(heads, dim=1) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(mixed[0], by_hand)
    assert attention(tokens)[1] is None
    torch.testing.assert_close(attention(tokens)[0], mixed)


def test_keys_have_no_bias() -> None:
    attention = Attention(8, 2, bias="qv").double()
    assert {name for name, _ in attention.named_parameters() if "bias" in name} == {"q_bias", "v_bias", "proj.bias"}
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    fused = Attention(8, 2).double()
    weights = attention.state_dict()
    bias = torch.cat([weights.pop("q_bias"), torch.zeros(8), weights.pop("v_bias")])
    fused.load_state_dict(weights | {"qkv.bias": bias})
    tokens, only = torch.rand(2, 5, 8, dtype=torch.float64), torch.tensor([[1, 4, 0], [2, 0, 3]])
    for arguments in ({}, {"only": only}, {"need_weights": True}):
        torch.testing.assert_close(attention(tokens, **arguments), fused(tokens, **arguments))


def test_the_bias_is_added_before_the_softmax() -> None:
    attention = Attention(8, 2, relative_rows=4).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    tokens, index = torch.rand(3, 2, 8, dtype=torch.float64), torch.tensor([[[0, 1], [2, 3]]])
    bias = attention.relative_position_bias_table[index].permute(0, 3, 1, 2)
    _, plain = attention(tokens, need_weights=True)
    expected = (plain.log() + bias).softmax(dim=-1)
    mixed, weights = attention(tokens, need_weights=True, places=Places(rows=index))
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(attention(tokens, places=Places(rows=index))[0], mixed)
    torch.testing.assert_close(attention(tokens, places=Places(bias))[0], mixed)


@pytest.mark.parametrize("qk_norm", [None, 1e-6])
def test_the_attention_alone_is_that_of_the_call(qk_norm: float | None) -> None:
    attention = Attention(8, 2, bias="qv", relative_rows=4, qk_norm=qk_norm).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    tokens, index = torch.rand(3, 2, 8, dtype=torch.float64), torch.tensor([[[0, 1], [2, 3]]])
    _, weights = attention(tokens, need_weights=True, places=Places(rows=index))
    torch.testing.assert_close(attention.attend(tokens, slice(1, None), Places(rows=index)), weights[:, :, 1:])


def test_cross_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    head, keys = CrossAttention(8, 2).double(), torch.randn(4, 5, 8, dtype=torch.float64)
    torch.nn.init.normal_(head.q_bias)
    torch.nn.init.normal_(head.v_bias)
    values, query = keys + 1, keys[:, :2] * 2
    mixed = head(query, keys, values)
    q, k, v = query @ head.q.weight.T + head.q_bias, keys @ head.k.weight.T, values @ head.v.weight.T + head.v_bias
    parts = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (q[..., part] @ k[..., part].mT / 2).softmax(dim=-1)
        parts.append(weights @ v[..., part])
    torch.testing.assert_close(mixed, torch.cat(parts, dim=-1) @ head.proj.weight.T + head.proj.bias)


@pytest.mark.parametrize("kind", [Attention, CrossAttention, PromptedAttention])
def test_heads_must_divide_the_width(kind) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.heads must divide the width 16; got 3"):
        kind(16, 3)
