"""The golden item of the DALL-E tokenizer notices: one thing is broken at a time, and it must fail."""

import golden_items
import pytest
import torch
from golden_items import needs_all
from torch import nn

from pantomim.nn import dvae
from pantomim.parity import tokenizer
from pantomim.tokenizers import dvae as tokenizers

pytestmark = needs_all


def outcome():
    return golden_items.outcome("dalle_a")


def test_as_it_is():
    result = outcome()
    assert result.status == "PASS"
    assert result.compared == 10


def test_a_gain_of_the_published_size(monkeypatch):
    monkeypatch.setattr(dvae.DVAESizes, "gain", 1 / 64)
    assert outcome().status == "FAIL"


def test_relu_behind_the_convolutions(monkeypatch):
    def behind(self, maps):
        out = maps
        for layer in self.res_path:
            if isinstance(layer, dvae.Conv2d):
                out = layer(out).relu()
        return self.id_path(maps) + self.gain * out

    monkeypatch.setattr(dvae.ResidualBlock, "forward", behind)
    assert outcome().status == "FAIL"


def test_relu_on_the_skip_path(monkeypatch):
    honest = dvae.ResidualBlock.forward
    monkeypatch.setattr(dvae.ResidualBlock, "forward", lambda self, maps: honest(self, maps.relu()))
    assert outcome().status == "FAIL"


def test_average_instead_of_maximum(monkeypatch):
    monkeypatch.setattr(dvae.nn, "MaxPool2d", nn.AvgPool2d)
    assert outcome().status == "FAIL"


def test_smooth_instead_of_nearest(monkeypatch):
    class Smooth(nn.Upsample):
        def __init__(self, scale_factor, mode="nearest"):
            super().__init__(scale_factor=scale_factor, mode="bilinear")

    monkeypatch.setattr(dvae.nn, "Upsample", Smooth)
    result = outcome()
    assert result.status == "FAIL"
    assert result.worst in ("decoder_output", "reconstruction")


@pytest.mark.parametrize("name", ["w", "b"])
def test_one_set_of_parameters_left_out(monkeypatch, name):
    honest = tokenizer.load_exactly

    def without(module, weights, source):
        honest(
            module,
            {key: torch.zeros_like(t) if key.endswith(f"conv_1.{name}") else t for key, t in weights.items()},
            source,
        )

    monkeypatch.setattr(tokenizer, "load_exactly", without)
    assert outcome().status == "FAIL"


def test_pixels_not_mapped(monkeypatch):
    monkeypatch.setattr(tokenizers, "map_pixels", lambda images: images)
    result = outcome()
    assert result.status == "FAIL"
    assert "encoder_logits" in result.worst or "ids" in result.worst


def test_reconstruction_from_the_scales(monkeypatch):
    class Swapped(dvae.DVAEDecoder):
        def forward(self, codes):
            return super().forward(codes).roll(3, dims=1)

    monkeypatch.setattr(tokenizer, "DVAEDecoder", Swapped)
    assert outcome().status == "FAIL"


def test_columns_before_rows(monkeypatch):
    def transposed(self, images):
        return self.logits(images).argmax(dim=1).transpose(1, 2).flatten(1)

    monkeypatch.setattr(tokenizers.DVAETokenizer, "forward", transposed)
    assert outcome().status == "FAIL"


def test_another_vocabulary_at_full_size(monkeypatch):
    honest = tokenizer.DVAESizes
    monkeypatch.setattr(tokenizer, "DVAESizes", lambda **given: honest(**{"width": 128, **given}))
    result = outcome()
    assert result.status == "FAIL"
    assert result.worst.startswith("full_size_keys/")
