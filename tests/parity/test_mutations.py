"""Golden items are worth something only if they notice: one thing is broken at a time, and an item must fail."""

import functools
import math

import pytest
import torch
from golden_items import GOLDEN, edited, outcome, with_config
from torch.nn import functional as F

from pantomim import optim
from pantomim.core.mask import Mask
from pantomim.masking import noise
from pantomim.masking.color_noise import round_windows
from pantomim.nn import blocks, decoder, heads, vit
from pantomim.nn.init import initialise
from pantomim.nn.position import sincos_2d
from pantomim.parity import colormae, mae
from pantomim.parity.item import read_item
from pantomim.targets import pixels


def swapped_axes(width, grid, num_prefix=0):
    table = sincos_2d(width, grid, num_prefix)
    return table.roll(width // 2, dims=1)


@pytest.mark.parametrize("name", ["mae_pretrain_b", "mae_finetune_a"])
def test_layer_norm_eps(monkeypatch, tmp_path, name):
    for module in (blocks, vit, decoder, heads):
        monkeypatch.setattr(module, "NORM_EPS", 1e-5)
    result = with_config(tmp_path, name, layer_norm_eps=None)  # the numbers alone must tell
    assert result.status == "FAIL"
    assert 100 < result.error < math.inf


@pytest.mark.parametrize("name", ["mae_pretrain_b", "mae_finetune_a"])
def test_an_item_made_with_another_layer_norm_eps(tmp_path, name):
    assert with_config(tmp_path, name, layer_norm_eps=None).status == "PASS"
    result = with_config(tmp_path, name, layer_norm_eps=1e-5)
    assert result.status == "FAIL"
    assert result.worst == "config/layer_norm_eps (our modules have 1e-06, the item has 1e-05)"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mae_pretrain_b", {"mask_ratio": 0.62}),
        ("mae_pretrain_b", {"num_heads": 4}),
        ("mae_pretrain_b", {"decoder_num_heads": 4}),
        ("mae_pretrain_b", {"mlp_ratio": 4.0}),
        ("mae_pretrain_b", {"weight_decay": 0.1}),
        ("mae_finetune_a", {"num_heads": 6}),
        ("mae_finetune_a", {"drop_path_rate": 0.2}),
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
    result = with_config(tmp_path, "mae_finetune_a", drop_path_rate=None)
    assert result.worst.startswith("numbers/drop_path_per_block")
    assert result.off == 2  # of three blocks: the first never drops


def test_tanh_gelu(monkeypatch):
    monkeypatch.setattr(vit.F, "gelu", functools.partial(F.gelu, approximate="tanh"))
    assert outcome("mae_pretrain_b").error > 100


def test_biased_variance(monkeypatch):
    statistics = pixels.token_statistics
    monkeypatch.setattr(
        pixels, "token_statistics", lambda values, unbiased, eps: statistics(values, unbiased=False, eps=eps)
    )
    result = outcome("mae_pretrain_b")
    assert result.status == "FAIL"
    assert "norm_pix" in result.worst


def test_rows_and_columns_swapped(monkeypatch):
    for module in (vit, decoder, mae):
        monkeypatch.setattr(module, "sincos_2d", swapped_axes)
    assert outcome("mae_positions").status == "FAIL"
    result = outcome("mae_pretrain_b")  # the stored table is loaded, but the one that we build is compared, too
    assert result.status == "FAIL"
    assert "pos_embed" in result.worst


def test_class_token_not_decayed(monkeypatch):
    monkeypatch.setattr(mae, "parameter_groups", functools.partial(mae.parameter_groups, decay_tokens=False))
    result = outcome("mae_pretrain_b")
    assert result.status == "FAIL"
    assert "pretraining_weight_decay_groups" in result.worst


def test_the_wrong_patches_hidden(monkeypatch):
    monkeypatch.setattr(
        mae.Mask, "from_scores", classmethod(lambda cls, scores, count, old=Mask.from_scores: old(-scores, count))
    )
    assert outcome("mae_pretrain_b").status == "FAIL"


def test_another_initialisation(monkeypatch):
    monkeypatch.setattr(decoder, "initialise", lambda module, scheme: initialise(module, "normal"))
    result = outcome("mae_pretrain_b")
    assert result.status == "FAIL"
    assert "official_initialisation/decoder" in result.worst


def test_layer_scales_one_layer_off(monkeypatch):
    def shifted(classifier, weight_decay, decay):
        groups = layer_decay_groups(classifier, weight_decay, decay)
        return [{**group, "lr_scale": group["lr_scale"] * decay} for group in groups]

    layer_decay_groups = mae.layer_decay_groups
    monkeypatch.setattr(mae, "layer_decay_groups", shifted)
    assert "layer_decay_groups" in outcome("mae_finetune_a").worst


def test_schedule_without_its_minimum(monkeypatch):
    schedule = mae.cosine_schedule
    monkeypatch.setattr(mae, "cosine_schedule", lambda step, **kw: schedule(step, **{**kw, "minimum": 0.0}))
    assert "lr_schedules" in outcome("mae_finetune_a").worst


def test_lars_without_trust_ratio(monkeypatch):
    monkeypatch.setattr(optim, "_trust_ratio", lambda parameter, update, coefficient: torch.ones(()))
    result = outcome("mae_lars")
    assert result.status == "FAIL"
    assert "param_1" not in result.worst  # a vector has none


def test_mixing_with_the_neighbour(monkeypatch):
    monkeypatch.setattr(mae, "mix_images", lambda images, mixing: images.roll(1, dims=0))
    assert "images" in outcome("finetune_losses").worst


def test_one_weight_changed_on_disk(tmp_path):
    def nudge(spec, tensors):
        tensors["state/decoder_norm.bias"][0] += 1e-6

    assert edited(tmp_path, "mae_pretrain_b", nudge).status == "FAIL"


def test_lowest_values_shown_instead_of_highest(monkeypatch):
    honest = Mask.from_scores
    monkeypatch.setattr(Mask, "from_scores", lambda scores, num_masked: honest(-scores, num_masked))
    assert outcome("colormae_masking").status == "FAIL"


def test_windows_not_divided_by_their_maximum(monkeypatch):
    monkeypatch.setattr(colormae, "round_windows", lambda *given: 2 * round_windows(*given))
    assert outcome("colormae_masking").worst == "extracted_windows"


def test_a_kernel_cut_too_early(monkeypatch):
    monkeypatch.setattr(noise, "CUT", 4)
    result = outcome("colormae_filters")
    assert result.status == "FAIL"
    assert result.worst.endswith("sampled_kernel")


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
