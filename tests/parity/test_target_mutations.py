"""The items of CLIP, DALL-E, MaskFeat and SimMIM notice: one thing is wrong at a time, and an item must fail."""

import pytest
import torch
from golden_items import failing, mutations, outcome
from torch import nn
from torch.nn import functional as F

from pantomim.formats import clip, timm
from pantomim.methods.beit import BEiTConfig
from pantomim.nn import dvae, vit
from pantomim.nn.resize import resample
from pantomim.parity import beit, networks, targets
from pantomim.targets import hog
from pantomim.targets.distance import Distance
from pantomim.tokenizers import dvae as tokenizers

CLIP, DALLE, HOG, SIMMIM = "clip_visual_a", "dalle_a", "maskfeat_hog_b", "simmim_pretrain_a"
angle, pad, rows_of, project = torch.atan2, F.pad, timm.attention_rows, timm.TimmEncoder.project
groups, residual, sizes = beit.parameter_groups, dvae.ResidualBlock.forward, targets.DVAESizes


@pytest.fixture(autouse=True)
def _one_draw(request, monkeypatch):
    """Initial weights are compared where that is the question; they take most of the time."""
    if "initialise" not in request.node.name:
        monkeypatch.setattr(beit, "initialisation", lambda *_: {})


def test_as_it_is():
    assert outcome(SIMMIM).status == "PASS"


def tower(**changes):
    return lambda *given, **settings: clip.clip_encoder(*given, **settings | changes)


def no_norm_before_the_blocks(*given, **settings):
    encoder = clip.clip_encoder(*given, **settings)
    encoder.model.norm_pre = nn.Identity()
    return encoder


def not_smoothed(images):
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    return (padded[..., :-2] - padded[..., 2:])[..., 1:-1, :], (padded[..., :-2, :] - padded[..., 2:, :])[..., 1:-1]


def relu_behind(self, maps):
    out = maps
    for layer in self.res_path:
        if isinstance(layer, dvae.Conv2d):
            out = layer(out).relu()
    return self.id_path(maps) + self.gain * out


def left_out(parameter, load=networks.load_exactly):
    def load_others(module, weights, source):
        end = f"conv_1.{parameter}"
        load(module, {key: torch.zeros_like(t) if key.endswith(end) else t for key, t in weights.items()}, source)

    return load_others


class Smooth(nn.Upsample):
    def __init__(self, scale_factor, mode="nearest"):
        super().__init__(scale_factor=scale_factor, mode="bilinear")


class Rolled(dvae.DVAEDecoder):
    def forward(self, codes):
        return super().forward(codes).roll(3, dims=1)


@mutations(
    exact_gelu=(CLIP, targets, "clip_encoder", tower(activation="gelu")),
    layer_norm_eps=(CLIP, targets, "clip_encoder", tower(norm_eps=1e-6)),
    heads=(CLIP, targets, "clip_encoder", tower(heads=4)),
    no_first_norm=(CLIP, targets, "clip_encoder", no_norm_before_the_blocks),
    resampled_to_a_size=(CLIP, timm, "resample_stretched", resample),
    another_block=(CLIP, timm, "attention_rows", lambda block, tokens, rows: rows_of(block, tokens.flip(1), rows)),
    temperature=(CLIP, timm, "attention_rows", lambda *given: (rows_of(*given) * 2).softmax(dim=-1)),
    projection=(CLIP, timm.TimmEncoder, "project", lambda self, tokens: tokens @ -torch.flip(self.projection, [0])),
    gain=(DALLE, dvae.DVAESizes, "gain", 1 / 64),
    relu_behind=(DALLE, dvae.ResidualBlock, "forward", relu_behind),
    relu_on_the_skip_path=(DALLE, dvae.ResidualBlock, "forward", lambda self, maps: residual(self, maps.relu())),
    average=(DALLE, dvae.nn, "MaxPool2d", nn.AvgPool2d),
    smooth=(DALLE, dvae.nn, "Upsample", Smooth),
    no_weights=(DALLE, networks, "load_exactly", left_out("w")),
    no_biases=(DALLE, networks, "load_exactly", left_out("b")),
    not_mapped=(DALLE, tokenizers, "map_pixels", lambda images: images),
    scales=(DALLE, targets, "DVAEDecoder", Rolled),
    columns_first=(
        DALLE,
        tokenizers.DVAETokenizer,
        "forward",
        lambda self, images: self.logits(images).argmax(dim=1).transpose(1, 2).flatten(1),
    ),
    full_size=(DALLE, targets, "DVAESizes", lambda **given: sizes(**{"width": 128, **given})),
    angle=(HOG, hog.torch, "atan2", lambda across, down: angle(down, across)),
    zeros_around=(HOG, hog.F, "pad", lambda images, sides, mode: pad(images, sides)),
    not_smoothed=(HOG, hog, "gradients", not_smoothed),
    channels_together=(
        HOG,
        hog.F,
        "normalize",
        lambda cells, dim, eps: cells / cells.norm(dim=(1, 2), keepdim=True),
    ),
    no_window=(HOG, hog, "_tiled", lambda window, size: torch.ones(size)),
    squares=(SIMMIM, beit, "Distance", lambda form: Distance("l2")),
    our_order=(SIMMIM, beit, "_regrouped", lambda rows, groups: rows),
    late_mask_token=(SIMMIM, vit.torch, "where", lambda masked, token, patches: torch.zeros_like(patches) + patches),
    initialised_head=(SIMMIM, beit, "BEiTConfig", lambda **given: BEiTConfig(**given | {"initialise_head": True})),
    decay=(
        SIMMIM,
        beit,
        "parameter_groups",
        lambda *given, **named: groups(*given, **named | {"decay_mask_token": False}),
    ),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)


def test_what_is_wrong_is_named(monkeypatch):
    monkeypatch.setattr(targets, "clip_encoder", tower(norm_eps=1e-6))
    assert failing(CLIP).worst.startswith("config/layer_norm_eps")
    monkeypatch.setattr(targets, "DVAESizes", lambda **given: sizes(**{"width": 128, **given}))
    assert failing(DALLE).worst.startswith("full_size_keys/")
