"""CLIP's golden item notices: one thing is broken at a time, and it must fail."""

import torch
from golden_items import failing, needs_all, outcome
from torch import nn

from pantomim.formats import clip as format_clip
from pantomim.formats import timm as format_timm
from pantomim.nn.resize import resample
from pantomim.parity import clip

pytestmark = needs_all


def broken():
    """The outcome of an item that was rebuilt, compared and found wrong."""
    result = failing("clip_visual_a")
    assert result.compared > 8, result
    return result


def with_tower(monkeypatch, **changes):
    build = format_clip.clip_encoder
    monkeypatch.setattr(clip, "clip_encoder", lambda *given, **settings: build(*given, **settings | changes))


def test_as_it_is():
    assert outcome("clip_visual_a").status == "PASS"


def test_exact_gelu(monkeypatch):
    with_tower(monkeypatch, activation="gelu")
    assert broken().off >= 6


def test_layer_norm_eps(monkeypatch):
    with_tower(monkeypatch, norm_eps=1e-6)
    assert broken().worst.startswith("config/layer_norm_eps")


def test_another_number_of_heads(monkeypatch):
    with_tower(monkeypatch, heads=4)
    broken()


def test_no_norm_before_the_blocks(monkeypatch):
    build = format_clip.clip_encoder

    def without(*given, **settings):
        encoder = build(*given, **settings)
        encoder.model.norm_pre = nn.Identity()
        return encoder

    monkeypatch.setattr(clip, "clip_encoder", without)
    broken()


def test_positions_resampled_to_a_size(monkeypatch):
    monkeypatch.setattr(format_timm, "resample_stretched", resample)
    result = broken()
    assert result.off == 2
    assert "other_size" in result.worst


def test_attention_of_another_block(monkeypatch):
    monkeypatch.setattr(format_timm, "attention_rows", lambda block, tokens, rows: rows_of(block, tokens.flip(1), rows))
    assert broken().off == 2  # the class token's, and the mean over patches


rows_of = format_timm.attention_rows


def test_temperature(monkeypatch):
    monkeypatch.setattr(format_timm, "attention_rows", lambda *given: (rows_of(*given) * 2).softmax(dim=-1))
    broken()


def test_a_projection_the_wrong_way(monkeypatch):
    monkeypatch.setattr(
        format_timm.TimmEncoder, "project", lambda self, tokens: tokens @ -torch.flip(self.projection, [0])
    )
    assert broken().off == 4
