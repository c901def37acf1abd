"""The golden item of dBOT's analyses notices: one thing is broken at a time, and it must fail."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pantomim.nn import blocks, vit
from pantomim.parity import analyses
from pantomim.parity.verification import verify_item

SHARED = Path(__file__).parents[2] / ".." / "shared" / "golden"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the whole collection is not beside this repository")


def outcome():
    return verify_item(SHARED / "dbot_analysis.json")


def worst():
    result = outcome()
    assert result.status == "FAIL"
    assert result.compared == 8
    return result


def test_unbroken():
    result = outcome()
    assert result.status == "PASS"
    assert result.error < 0.1


def test_rows_made_to_sum_to_one_again(monkeypatch):
    honest = analyses.attention_distance

    def renormalised(attention, distances, num_prefix):
        kept = attention[..., num_prefix:, num_prefix:]
        return honest(kept / kept.sum(dim=-1, keepdim=True), distances, 0)

    monkeypatch.setattr(analyses, "attention_distance", renormalised)
    assert worst().off == 3


def test_distances_in_patches(monkeypatch):
    honest = analyses.patch_distances
    monkeypatch.setattr(analyses, "patch_distances", lambda grid, patch: honest(grid, (1, 1)))
    assert "distance" in worst().worst


def test_squared_singular_values(monkeypatch):
    def squared(tokens):
        values = torch.linalg.svdvals(F.normalize(tokens, dim=-1)).square()
        return (values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True))[:, :5]

    monkeypatch.setattr(analyses, "concentration", squared)
    assert worst().off == 2


def test_tokens_of_their_own_length(monkeypatch):
    def unnormalised(tokens):
        values = torch.linalg.svdvals(tokens)
        return (values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True))[:, :5]

    monkeypatch.setattr(analyses, "concentration", unnormalised)
    assert worst().off == 2


def test_tokens_without_their_mean(monkeypatch):
    honest = analyses.concentration
    monkeypatch.setattr(
        analyses, "concentration", lambda tokens: honest(F.normalize(tokens, dim=-1) - tokens.mean(dim=1, keepdim=True))
    )
    assert worst().off == 2


def test_the_norm_behind_the_last_block(monkeypatch):
    honest = analyses.block_features

    def normed(encoder, images, need_attention):
        for block in honest(encoder, images, need_attention):
            yield block._replace(patches=encoder.norm(block.patches))

    monkeypatch.setattr(analyses, "block_features", normed)
    assert worst().off == 2


def test_layer_norm_eps(monkeypatch):
    for module in (blocks, vit):
        monkeypatch.setattr(module, "NORM_EPS", 1e-5)
    assert worst().off >= 3
