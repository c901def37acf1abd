"""Items of the known kinds with other settings and outputs: what is read is the item, not the first of its kind."""

import math
import random

import pytest
import torch
from golden_items import edited, failing, outcome, path_of, with_config

from pantomim.config import Duration
from pantomim.methods.beit import BEiT
from pantomim.methods.mae import MAEConfig
from pantomim.parity import mae, masks, milan, trajectory
from pantomim.parity.item import read_item


def without(*parts):
    """Leaves out every tensor whose name contains one of these."""

    def edit(spec, tensors):
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]
        for section in (spec["inputs"], spec["outputs"]):
            names = [name for name in section["tensors"] if any(part in section["prefix"] + name for part in parts)]
            for name in names:
                del section["tensors"][name]

    return edit


@pytest.mark.parametrize(
    "name",
    [
        "trajectory_mae_a",
        pytest.param("trajectory_dbot_a", marks=pytest.mark.slow),
        pytest.param("trajectory_colormae_a", marks=pytest.mark.slow),
        pytest.param("trajectory_cae_a", marks=pytest.mark.slow),
    ],
)
def test_a_run_in_micro_batches_is_the_same_run_where_all_images_weigh_the_same(tmp_path, name):
    assert with_config(tmp_path, name, accum_iter=2, batch_size=2).status == "PASS"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mae", {"norm_pix_loss": False}),
        ("mae", {"eps": 1e-7}),
        ("dbot", {"init_teacher_encoder_depth": 0}),
        ("dbot", {"tlayernorm": 1}),
        ("dbot", {"norm_feature_loss": False}),
        ("dbot", {"smooth_l1_beta": 1.0}),
        ("dbot", {"stage_epochs": [0, 2, 6]}),
        ("dbot", {"drop_path": 0.1}),
        ("data2vec", {"target_layers": [0, 2]}),
        ("data2vec", {"target_layers": [2]}),
        ("data2vec", {"post_target_layer_norm": False}),
        ("data2vec", {"l1_beta": 0}),
        ("data2vec", {"ema_decay": 0.5}),
        ("simmim", {"milestone": 5}),
        ("simmim", {"gamma": 0.2}),
        ("colormae", {"start_factor": 0.1}),
        ("mocov3", {"momentum_cosine": False}),
        ("mocov3", {"temperature": 0.5}),
        ("cae", {"align_loss_weight": 0.0}),
        ("cae", {"alignment_weights": "one step before"}),
        ("cae_lagging", {"alignment_weights": "the encoder's own"}),
        ("cae_lagging", {"base_momentum": 0.5}),
    ],
    ids=str,
)
def test_every_setting_of_a_run_counts(tmp_path, name, changes):
    result = with_config(tmp_path, f"trajectory_{name}_a", **changes)
    assert result.status == "FAIL"
    assert result.compared > 100, result.worst  # numbers differ; an exception is no finding


def test_settings_of_the_optimiser_are_the_items():
    """One of them shows above that a run with another is found."""
    item = read_item(path_of("trajectory_mae_a"))
    item.spec["config"] |= {"clip_grad": 0.1, "warmup_epochs": 3, "min_lr": 1e-4, "weight_decay": 0.1}
    item.spec["config"] |= {"betas": [0.9, 0.999], "eps": 1e-7, "lr": 0.02}
    optim = trajectory.run_config(item, MAEConfig(), Duration(steps=30)).optim
    assert (optim.clip_norm, optim.warmup, optim.min_lr, optim.weight_decay) == (0.1, Duration(epochs=3), 1e-4, 0.1)
    assert (optim.betas, optim.eps, optim.base_lr) == ((0.9, 0.999), 1e-7, 0.02 * 256 / 4)
    item.spec["config"]["clip_grad"] = None
    assert trajectory.run_config(item, MAEConfig(), Duration(steps=30)).optim.clip_norm is None


@pytest.mark.slow
def test_stochastic_depth_may_be_off(tmp_path):
    def off(spec, tensors):
        without("in/drop")(spec, tensors)
        spec["config"]["drop_path"] = 0.0

    assert edited(tmp_path, "trajectory_beit_a", off).compared > 100


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["update_ema", "draw"])
def test_a_run_without_one_of_the_methods_verbs_is_another(monkeypatch, verb):
    if verb == "update_ema":
        monkeypatch.setattr(BEiT, verb, lambda self, step: None)
        assert failing("trajectory_data2vec_a").compared > 100
    else:
        monkeypatch.setattr(trajectory.Tape, "now", lambda self, name: self.item.input(name)[0, self.rows])
        assert failing("trajectory_mae_a").compared > 100


def official_masks(grid, total, smallest, largest, seed):
    """The sampler of BEiT's authors, from the items' `procedure`, with all that it draws."""
    rng, draws = random.Random(seed), []
    mask = torch.zeros(grid, dtype=torch.uint8)

    def uniform(low, high):
        draws.append(["uniform", low, high, rng.uniform(low, high)])
        return draws[-1][-1]

    def integer(high):
        draws.append(["randint", 0, high, rng.randint(0, high)])
        return draws[-1][-1]

    while (count := int(mask.sum())) < total:
        budget = min(total - count, largest)
        for _ in range(10):
            area = uniform(smallest, budget)
            aspect = math.exp(uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width < grid[1] and height < grid[0]:
                top, left = integer(grid[0] - height), integer(grid[1] - width)
                box = mask[top : top + height, left : left + width]
                if 0 < height * width - int(box.sum()) <= budget:
                    box.fill_(1)
                    break
        else:
            break
    return mask, draws


def test_block_masks_with_a_largest_block(tmp_path):
    grid, total, smallest, largest = (10, 12), 50, 6, 15

    def edit(spec, tensors):
        setting = {"method": "beit", "grid": list(grid), "num_masking_patches": total}
        setting |= {"min_num_patches": smallest, "max_num_patches": largest}
        spec["config"]["settings"] = [setting]
        spec["outputs"]["tensors"] = {"masks_0": {"shape": [5, *grid]}}
        drawn = [official_masks(grid, total, smallest, largest, seed) for seed in range(5)]
        spec["numbers"]["traces"] = [
            {"setting": 0, "index": index, "draws": draws, "masked": int(mask.sum())}
            for index, (mask, draws) in enumerate(drawn)
        ]
        del tensors["out/masks_1"]
        tensors["out/masks_0"] = torch.stack([mask for mask, _ in drawn])

    result = edited(tmp_path, "block_mask_trace", edit)
    assert result.status == "PASS", result.worst


def inner_columns(spec, tensors):
    """Images that are not flat at their sides, and what is asked of them then."""
    without("labels_masked")(spec, tensors)
    spec["numbers"], spec["config"]["border"] = {}, "generic"
    tensors["in/images"][..., [0, -1]] = torch.rand(tensors["in/images"][..., [0, -1]].shape)
    rows = columns = spec["config"]["size"] // spec["config"]["patch"]
    for name in ("histogram_unnormalised", "histogram_normalised", "labels_all"):
        whole = tensors.pop(f"out/{name}")
        grid = whole if whole.ndim == 5 else whole.unflatten(1, (rows, columns))
        inner = grid[..., 1:-1] if whole.ndim == 5 else grid[:, :, 1:-1]
        tensors[f"out/{name}_inner_columns"] = inner.contiguous()
        entry = spec["outputs"]["tensors"].pop(name)
        spec["outputs"]["tensors"][f"{name}_inner_columns"] = {**entry, "shape": list(inner.shape)}


def fewer_statistics(spec, tensors):
    del spec["numbers"]["settings"][0]["blocks_per_mask"]
    without("probability_map_1")(spec, tensors)


def one_pooling(spec, tensors):
    without("cls_token_", "_cls_token", "state/norm.")(spec, tensors)
    spec["numbers"] = {name: value for name, value in spec["numbers"].items() if not name.endswith("_cls_token")}


def another_name(spec, tensors):
    spec["item"] = "mae_pretrain_c"


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("maskfeat_hog_b", inner_columns),
        ("block_mask_stats", fewer_statistics),
        ("mae_finetune_a", one_pooling),
        ("mae_pretrain_b", another_name),
        ("mae_pretrain_b", without("out/pred", "out/loss_raw")),
        ("colormae_masking", without("in/bank", "out/extracted")),
        ("mae_positions", lambda spec, tensors: (spec["config"].pop("tables"), without("out/table_")(spec, tensors))),
        ("attmask", lambda s, t: (without("hint")(s, t), s["numbers"].pop("hint"), s["config"].pop("hint"))),
        ("milan_sampling", lambda spec, tensors: spec.pop("numbers")),
        ("dalle_a", lambda spec, tensors: spec.pop("full_size_keys")),
        ("dalle_a", without("mapped_values", "in/values")),
        ("clip_visual_a", without("other_size")),
    ],
)
def test_what_an_item_does_not_ask_for_is_not_missed(tmp_path, monkeypatch, name, edit):
    monkeypatch.setattr(mae, "initialisation", lambda *_: {})  # it takes most of the time, as many draws do
    monkeypatch.setattr(masks, "DRAWS", 5000)
    monkeypatch.setattr(milan, "DRAWS", 2000)
    result = edited(tmp_path, name, edit)
    assert result.status == "PASS", result.worst


@pytest.mark.parametrize("name", ["trajectory_crossmae_a", "downstream_coco_ap_a", "trajectory_dino_a"])
def test_items_of_tasks_that_we_do_not_rebuild_are_called_unknown(name):
    assert outcome(name).status == "UNKNOWN ITEM"
