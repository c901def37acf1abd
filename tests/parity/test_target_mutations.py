"""MaskFeat's and SimMIM's items notice: one thing is wrong at a time, and an item must fail."""

import pytest
import torch
from golden_items import failing, needs_all, outcome
from torch.nn import functional as F

from pantomim.methods import beit as method
from pantomim.nn import vit
from pantomim.parity import beit as parity
from pantomim.targets import distance, hog


def worst(name):
    return failing(name).worst


@needs_all
@pytest.mark.parametrize("name", ["maskfeat_hog_a", "simmim_pretrain_a"])
def test_as_it_is_it_passes(name):
    assert outcome(name).status == "PASS"


def test_arguments_of_the_angle_exchanged(monkeypatch):
    honest = torch.atan2
    monkeypatch.setattr(hog.torch, "atan2", lambda across, down: honest(down, across))
    worst("maskfeat_hog_b")


def test_zeros_around_the_image(monkeypatch):
    honest = F.pad
    monkeypatch.setattr(hog.F, "pad", lambda images, sides, mode: honest(images, sides))
    worst("maskfeat_hog_b")


def test_gradients_that_are_not_smoothed(monkeypatch):
    def plain(images):
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        return (padded[..., :-2] - padded[..., 2:])[..., 1:-1, :], (padded[..., :-2, :] - padded[..., 2:, :])[..., 1:-1]

    monkeypatch.setattr(hog, "gradients", plain)
    worst("maskfeat_hog_b")


def test_all_channels_normalised_together(monkeypatch):
    monkeypatch.setattr(hog.F, "normalize", lambda cells, dim, eps: cells / cells.norm(dim=(1, 2), keepdim=True))
    assert "labels" in worst("maskfeat_hog_b") or "histogram_normalised" in worst("maskfeat_hog_b")


def test_without_the_window(monkeypatch):
    monkeypatch.setattr(hog, "_tiled", lambda window, size: torch.ones(size))
    worst("maskfeat_hog_b")


@needs_all
def test_the_square_in_the_place_of_the_absolute_value(monkeypatch):
    monkeypatch.setattr(parity, "Distance", lambda form: distance.Distance("l2"))
    assert "loss" in worst("simmim_pretrain_a") or "grad" in worst("simmim_pretrain_a")


@needs_all
def test_pixels_in_our_order(monkeypatch):
    monkeypatch.setattr(parity, "_shuffled", lambda patch, channels: torch.arange(channels * patch**2))
    worst("simmim_pretrain_a")


@needs_all
def test_mask_token_after_the_positions_of_all_patches(monkeypatch):
    monkeypatch.setattr(vit.torch, "where", lambda masked, token, patches: torch.zeros_like(patches) + patches)
    worst("simmim_pretrain_a")


@needs_all
def test_a_head_that_begins_as_beits(monkeypatch):
    honest = method.BEiTConfig
    monkeypatch.setattr(parity, "BEiTConfig", lambda **given: honest(**given | {"initialise_head": True}))
    assert "official_initialisation/decoder" in worst("simmim_pretrain_a")


@needs_all
def test_another_weight_decay(monkeypatch):
    groups = parity.parameter_groups
    monkeypatch.setattr(
        parity, "parameter_groups", lambda *given, **named: groups(*given, **named | {"decay_mask_token": False})
    )
    assert "pretraining_parameter_groups" in worst("simmim_pretrain_a")
