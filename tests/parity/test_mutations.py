"""Items of MAE and ColorMAE are worth something only if they notice: one thing is broken, and an item must fail."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from golden_items import GOLDEN, edited, failing, mutations, other_norm_eps, with_config
from torch.nn import functional as F

from pantomim import optim
from pantomim.core.mask import Mask
from pantomim.masking import noise
from pantomim.masking.color_noise import round_windows
from pantomim.nn import decoder, mlp, vit
from pantomim.nn.init import initialise
from pantomim.nn.position import sincos_2d
from pantomim.parity import colormae, mae
from pantomim.parity.item import read_item
from pantomim.targets import pixels

PRETRAIN, FINETUNE = "mae_pretrain_b", "mae_finetune_a"
from_scores, schedule, statistics = Mask.from_scores, optim.Schedule.mae, pixels.token_statistics
layer_scale = mae.layer_scale


@pytest.fixture(autouse=True)
def _one_draw(request, monkeypatch):
    """Initial weights are compared where that is the question; they take most of the time."""
    if "initialisation" not in request.node.name:
        monkeypatch.setattr(mae, "initialisation", lambda *_: {})


@pytest.mark.parametrize("name", [PRETRAIN, FINETUNE])
def test_layer_norm_eps(monkeypatch, tmp_path, name):
    other_norm_eps(monkeypatch)
    result = with_config(tmp_path, name, layer_norm_eps=None)  # the numbers alone must tell
    assert result.status == "FAIL"
    assert 100 < result.error < math.inf


@pytest.mark.parametrize("name", [PRETRAIN, FINETUNE])
def test_an_item_made_with_another_layer_norm_eps(tmp_path, name):
    assert with_config(tmp_path, name, layer_norm_eps=None).status == "PASS"
    result = with_config(tmp_path, name, layer_norm_eps=1e-5)
    assert result.status == "FAIL"
    assert result.worst == "config/layer_norm_eps (our modules have 1e-06, the item has 1e-05)"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (PRETRAIN, {"mask_ratio": 0.62}),
        (PRETRAIN, {"num_heads": 4}),
        (PRETRAIN, {"decoder_num_heads": 4}),
        (PRETRAIN, {"mlp_ratio": 4.0}),
        (PRETRAIN, {"weight_decay": 0.1}),
        (FINETUNE, {"num_heads": 6}),
        (FINETUNE, {"drop_path_rate": 0.2}),
        ("mae_lars", {"momentum": 0.8}),
        ("mae_lars", {"weight_decay": 0.02}),
        ("mae_lars", {"trust_coefficient": 0.002}),
        ("finetune_losses", {"boxes": [[1, 5, 2, 8], [0, 3, 0, 4]]}),
        ("colormae_masking", {"ratios": [0.75, 0.62, 0.9]}),
        ("colormae_masking", {"rounds": [[3, 7, 1, 1], [16, 0, 0, 0], [0, 12, 1, 0]]}),
        ("colormae_filters", {"presets": [{"colour": "red", "sigma": [4.6], "passes": 1}]}),
    ],
    ids=str,
)
def test_what_the_config_states_is_what_is_rebuilt(tmp_path, name, changes):
    assert with_config(tmp_path, name, **changes).status == "FAIL"


def test_drop_path_is_off_unless_stated(tmp_path):
    result = with_config(tmp_path, FINETUNE, drop_path_rate=None)
    assert result.worst.startswith("numbers/drop_path_per_block")
    assert result.off == 2  # of three blocks: the first never drops


def shifted(depth, decay):
    scale = layer_scale(depth, decay)
    return lambda name: scale(name) * decay


@mutations(
    tanh_gelu=(PRETRAIN, mlp, "ACTIVATIONS", {"gelu": functools.partial(F.gelu, approximate="tanh")}),
    wrong_patches=(PRETRAIN, Mask, "from_scores", lambda scores, count: from_scores(-scores, count)),
    lowest_values=("colormae_masking", Mask, "from_scores", lambda scores, count: from_scores(-scores, count)),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)


@pytest.mark.parametrize(
    ("item", "owner", "name", "wrong", "worst"),
    [
        (
            PRETRAIN,
            pixels,
            "token_statistics",
            lambda values, unbiased, eps: statistics(values, unbiased=False, eps=eps),
            "norm_pix",
        ),
        (
            PRETRAIN,
            mae,
            "parameter_groups",
            functools.partial(mae.parameter_groups, decay_tokens=False),
            "pretraining_weight_decay_groups",
        ),
        (FINETUNE, mae, "layer_scale", shifted, "layer_decay_groups"),
        (
            FINETUNE,
            optim.Schedule,
            "mae",
            lambda self, step: schedule(replace(self, minimum=0.0), step),
            "lr_schedules",
        ),
        ("finetune_losses", mae, "mix_images", lambda images, mixing: images.roll(1, dims=0), "images"),
        ("colormae_masking", colormae, "round_windows", lambda *given: 2 * round_windows(*given), "extracted_windows"),
        ("colormae_filters", noise, "CUT", 4, "sampled_kernel"),
    ],
    ids=["variance", "decay", "scales", "schedule", "neighbours", "maximum", "kernel"],
)
def test_what_is_wrong_is_named(monkeypatch, item, owner, name, wrong, worst):
    monkeypatch.setattr(owner, name, wrong)
    assert worst in failing(item).worst


def test_lars_without_trust_ratio(monkeypatch):
    monkeypatch.setattr(optim, "_trust_ratio", lambda parameter, update, coefficient: torch.ones(()))
    assert "param_1" not in failing("mae_lars").worst  # a vector has none


def test_rows_and_columns_swapped(monkeypatch):
    for module in (vit, decoder, mae):
        monkeypatch.setattr(
            module,
            "sincos_2d",
            lambda width, grid, num_prefix=0: sincos_2d(width, grid, num_prefix).roll(width // 2, dims=1),
        )
    failing("mae_positions")
    assert "pos_embed" in failing(PRETRAIN).worst  # the stored table is loaded, but the one that we build is compared


def test_another_initialisation(monkeypatch):
    monkeypatch.setattr(decoder, "initialise", lambda module, scheme: initialise(module, "normal"))
    assert "official_initialisation/decoder" in failing(PRETRAIN).worst


def test_one_weight_changed_on_disk(tmp_path):
    def nudge(spec, tensors):
        tensors["state/decoder_norm.bias"][0] += 1e-6

    assert edited(tmp_path, PRETRAIN, nudge).status == "FAIL"


@pytest.mark.slow
def test_spectra_tell_one_pass_from_five(monkeypatch):
    """With a quarter of the draws, so with wider tolerances: what is as stated passes, what is not does not."""
    monkeypatch.setattr(colormae, "FIELDS", 8)
    item = read_item(GOLDEN / "colormae_spectra.json")
    presets = item.config["presets"]
    item.spec["config"]["presets"] = [*presets[:2], presets[2] | {"passes": 1}, presets[3] | {"sigma": [0.8, 1.8]}]
    off = colormae.colormae_spectra(item).errors
    worst = [max(error for key, error in off.items() if key.endswith(name)) for name in ("white_0", "red_1")]
    assert max(worst) < 1
    assert off["mask_spectrum_mean_blue_2"] > 1
    assert off["field_bands_blue_2"] > 1
    assert off["mask_spectrum_mean_green_3"] > 1
    assert off["numbers/presets/2/components_4/mean"] > 1
