"""BEiT's items notice: one thing is wrong at a time, and an item must fail."""

import functools
from dataclasses import replace

import pytest
import torch
from golden_items import edited, failing, mutations, with_config
from scipy import interpolate

from pantomim.nn import attention, blocks, init, resize, vit
from pantomim.nn.relative import num_relative_rows, relative_index
from pantomim.optim import Schedule
from pantomim.parity import beit
from pantomim.targets import tokens

PRETRAIN, FINETUNE, INDEX, RESIZE = "beit_pretrain_b", "beit_finetune_a", "beit_relative_index", "beit_relative_resize"
SHARED_TABLE = "beit_pretrain_a"
spline, table_of, embed = interpolate.make_interp_spline, beit.resize_relative_table, vit.Encoder.embed
weighted_mean, groups, schedule = tokens.weighted_mean, beit.parameter_groups, Schedule.beit
project, block_forward = attention.Attention._project, blocks.Block.forward


@pytest.fixture(autouse=True)
def _one_draw(request, monkeypatch):
    """Initial weights are compared where that is the question; they take most of the time."""
    if "initialisation" not in request.node.name:
        monkeypatch.setattr(beit, "initialisation", lambda *_: {})


def key_minus_query(index, grid, class_token):
    return index.mT


def patch_to_class_first(index, grid, class_token):
    last = num_relative_rows(grid, class_token)
    exchanged = {last - 3: last - 2, last - 2: last - 3}
    return index.clone().apply_(lambda row: exchanged.get(row, row))


def columns_first(index, grid, class_token):
    rows, cols = grid
    changed = index.clone()
    inner = changed[1:, 1:]
    down, right = inner // (2 * cols - 1), inner % (2 * cols - 1)
    changed[1:, 1:] = right * (2 * rows - 1) + down
    return changed


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (INDEX, columns_first),
        *(
            (name, change)
            for name in (INDEX, SHARED_TABLE, FINETUNE)
            for change in (key_minus_query, patch_to_class_first)
        ),
    ],
)
def test_another_order_of_the_table(monkeypatch, name, change):
    def changed(grid, class_token):
        return change(relative_index(grid, class_token), grid, class_token)

    for module in (vit, beit):
        monkeypatch.setattr(module, "relative_index", changed)
    failing(name)


def test_offsets_at_equal_distances(monkeypatch):
    def even(side, to):
        return (resize.np.arange(side) - side // 2) * (to // 2) / (side // 2)

    for module in (resize, beit):
        monkeypatch.setattr(module, "growing_offsets", even)
    failing(RESIZE)


def late_mask_token(self, images, ids_keep=None, mask_tokens=None):
    plain = embed(self, images, ids_keep)
    return plain if mask_tokens is None else torch.where(mask_tokens.masked[..., None], mask_tokens.token, plain)


def image_by_image(values, weight):
    return weighted_mean(values, weight / weight.sum(dim=1, keepdim=True))


def without(part):
    def project_without(self, tokens, queries):
        with pytest.MonkeyPatch.context() as inner:
            inner.setitem(self._parameters, part, getattr(self, part) * 0)
            return project(self, tokens, queries)

    return project_without


def unscaled(self, *given, **named):
    with pytest.MonkeyPatch.context() as inner:
        if self.gamma_2 is not None:
            inner.setitem(self._parameters, "gamma_2", torch.nn.Parameter(torch.ones_like(self.gamma_2)))
        return block_forward(self, *given, **named)


def warmer(self, step):
    return schedule(replace(self, warmup=self.warmup + 1), step)


@mutations(
    offsets_too_far_apart=(
        RESIZE,
        interpolate,
        "make_interp_spline",
        lambda places, values, degree, axis: spline(places * 1.01, values, degree, axis=axis),
    ),
    straight_line=(RESIZE, interpolate, "make_interp_spline", lambda x, y, degree, axis: spline(x, y, 1, axis=axis)),
    class_rows_in_front=(RESIZE, beit, "resize_relative_table", lambda *given: table_of(*given).roll(3, dims=0)),
    late_mask_token=(PRETRAIN, vit.Encoder, "embed", late_mask_token),
    padding_counted=(PRETRAIN, tokens, "weighted_mean", lambda values, weight: values.mean()),
    every_image_alike=(PRETRAIN, tokens, "weighted_mean", image_by_image),
    no_query_bias=(PRETRAIN, attention.Attention, "_project", without("q_bias")),
    no_value_bias=(PRETRAIN, attention.Attention, "_project", without("v_bias")),
    one_branch_scaled=(SHARED_TABLE, blocks.Block, "forward", unscaled),
    one_branch_scaled_in_the_classifier=(FINETUNE, blocks.Block, "forward", unscaled),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)


@pytest.mark.parametrize("change", [{"decay_tokens": True}, {"decay_mask_token": False}])
def test_other_parameters_decayed(monkeypatch, change):
    monkeypatch.setattr(beit, "parameter_groups", lambda *given, **named: groups(*given, **named | change))
    assert "pretraining_parameter_groups" in failing(PRETRAIN).worst


@pytest.mark.parametrize("change", ["wide", "not scaled"])
def test_another_initialisation(monkeypatch, change):
    if change == "wide":
        normal = functools.partial(torch.nn.init.trunc_normal_, std=0.02)
        monkeypatch.setitem(init.SCHEMES, "beit", init.SCHEMES["beit"]._replace(matrix=normal, kernel=normal))
    else:
        monkeypatch.setattr(vit, "initialise", lambda module, scheme, blocks: init.initialise(module, scheme))
    assert "official_initialisation" in failing(PRETRAIN).worst


def test_warm_up_of_another_length(monkeypatch):
    monkeypatch.setattr(Schedule, "beit", warmer)
    assert "lr_schedules" in failing(FINETUNE).worst


@pytest.mark.parametrize("name", [PRETRAIN, FINETUNE, INDEX, RESIZE])
def test_a_number_changed_on_disk(tmp_path, name):
    changed = []

    def nudge(spec, tensors):
        changed.append(max(key for key in tensors if key.startswith("out/") and tensors[key].is_floating_point()))
        tensors[changed[0]].flatten()[1] += 1e-4

    result = edited(tmp_path, name, nudge)
    assert result.status == "FAIL"
    assert changed[0].removeprefix("out/") in result.worst


@pytest.mark.parametrize("changes", [{"num_heads": 4}, {"masked_counts": [9, 6, 4]}, {"layer_norm_eps": 1e-5}], ids=str)
def test_what_the_config_states_is_what_is_rebuilt(tmp_path, changes):
    assert with_config(tmp_path, PRETRAIN, **changes).status == "FAIL"
