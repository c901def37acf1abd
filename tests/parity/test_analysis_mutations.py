"""The golden item of dBOT's dbot notices: one thing is broken at a time, and it must fail."""

import torch
from golden_items import failing, needs_all, outcome
from torch.nn import functional as F

from pantomim.nn import blocks, vit
from pantomim.parity import dbot

pytestmark = needs_all


def worst():
    result = failing("dbot_analysis")
    assert result.compared == 8
    return result


def test_unbroken():
    result = outcome("dbot_analysis")
    assert result.status == "PASS"
    assert result.error < 0.1


def test_rows_made_to_sum_to_one_again(monkeypatch):
    honest = dbot.attention_distance

    def renormalised(attention, distances, num_prefix):
        kept = attention[..., num_prefix:, num_prefix:]
        return honest(kept / kept.sum(dim=-1, keepdim=True), distances, 0)

    monkeypatch.setattr(dbot, "attention_distance", renormalised)
    assert worst().off == 3


def test_distances_in_patches(monkeypatch):
    honest = dbot.patch_distances
    monkeypatch.setattr(dbot, "patch_distances", lambda grid, patch: honest(grid, (1, 1)))
    assert "distance" in worst().worst


def test_squared_singular_values(monkeypatch):
    def squared(tokens):
        values = torch.linalg.svdvals(F.normalize(tokens, dim=-1)).square()
        return (values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True))[:, :5]

    monkeypatch.setattr(dbot, "concentration", squared)
    assert worst().off == 2


def test_tokens_of_their_own_length(monkeypatch):
    def unnormalised(tokens):
        values = torch.linalg.svdvals(tokens)
        return (values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True))[:, :5]

    monkeypatch.setattr(dbot, "concentration", unnormalised)
    assert worst().off == 2


def test_tokens_without_their_mean(monkeypatch):
    honest = dbot.concentration
    monkeypatch.setattr(
        dbot, "concentration", lambda tokens: honest(F.normalize(tokens, dim=-1) - tokens.mean(dim=1, keepdim=True))
    )
    assert worst().off == 2


def test_the_norm_behind_the_last_block(monkeypatch):
    honest = dbot.block_features

    def normed(encoder, images, need_attention):
        for block in honest(encoder, images, need_attention):
            yield block._replace(patches=encoder.norm(block.patches))

    monkeypatch.setattr(dbot, "block_features", normed)
    assert worst().off == 2


def test_layer_norm_eps(monkeypatch):
    for module in (blocks, vit):
        monkeypatch.setattr(module, "NORM_EPS", 1e-5)
    assert worst().off >= 3
