"""BEiT's items notice: one thing is wrong at a time, and an item must fail."""

import functools

import pytest
import torch
from golden_items import edited, needs_all, with_config
from golden_items import failing as failing_item

from pantomim.nn import attention, blocks, init, resize, vit
from pantomim.nn.relative import num_relative_rows, relative_index
from pantomim.parity import beit
from pantomim.targets import tokens

PRETRAIN, FINETUNE, INDEX, RESIZE = "beit_pretrain_b", "beit_finetune_a", "beit_relative_index", "beit_relative_resize"
SHARED_TABLE = "beit_pretrain_a"
IN_WHOLE_COLLECTION = (SHARED_TABLE, FINETUNE)  # which alone holds them


def failing(name):
    return failing_item(name).worst


def with_index(monkeypatch, change):
    """Every matrix of relative positions is another one."""
    for module in (vit, beit):
        monkeypatch.setattr(
            module,
            "relative_index",
            lambda grid, class_token: change(relative_index(grid, class_token), grid, class_token),
        )


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


@pytest.mark.parametrize("change", [key_minus_query, patch_to_class_first, columns_first])
def test_another_order_of_the_table(monkeypatch, change):
    with_index(monkeypatch, change)
    failing(INDEX)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_all) for name in IN_WHOLE_COLLECTION])
@pytest.mark.parametrize("change", [key_minus_query, patch_to_class_first])
def test_another_order_of_the_table_in_the_network(monkeypatch, name, change):
    with_index(monkeypatch, change)
    failing(name)


def test_offsets_slightly_too_far_apart(monkeypatch):
    real = resize.make_interp_spline

    def longer(places, values, degree, axis):
        return real(places * 1.01, values, degree, axis=axis)

    monkeypatch.setattr(resize, "make_interp_spline", longer)
    failing(RESIZE)


def test_a_straight_line_instead_of_a_cubic(monkeypatch):
    real = resize.make_interp_spline
    monkeypatch.setattr(resize, "make_interp_spline", lambda x, y, degree, axis: real(x, y, 1, axis=axis))
    failing(RESIZE)


def test_offsets_at_equal_distances(monkeypatch):
    def even(side, to):
        return (resize.np.arange(side) - side // 2) * (to // 2) / (side // 2)

    for module in (resize, beit):
        monkeypatch.setattr(module, "growing_offsets", even)
    failing(RESIZE)


def test_class_rows_in_front(monkeypatch):
    real = beit.resize_relative_table
    monkeypatch.setattr(beit, "resize_relative_table", lambda *given: real(*given).roll(3, dims=0))
    failing(RESIZE)


def test_mask_token_after_the_positions(monkeypatch):
    embed = vit.Encoder.embed

    def late(self, images, ids_keep=None, mask_tokens=None):
        plain = embed(self, images, ids_keep)
        return plain if mask_tokens is None else torch.where(mask_tokens.masked[..., None], mask_tokens.token, plain)

    monkeypatch.setattr(vit.Encoder, "embed", late)
    failing(PRETRAIN)


def test_padding_counted(monkeypatch):
    monkeypatch.setattr(tokens, "weighted_mean", lambda values, weight: values.mean())
    failing(PRETRAIN)


def test_every_image_weighs_the_same(monkeypatch):
    real = tokens.weighted_mean

    def image_by_image(values, weight):
        return real(values, weight / weight.sum(dim=1, keepdim=True))

    monkeypatch.setattr(tokens, "weighted_mean", image_by_image)
    failing(PRETRAIN)


@pytest.mark.parametrize("part", ["q_bias", "v_bias"])
def test_a_bias_left_out(monkeypatch, part):
    project = attention.Attention._project

    def without(self, tokens, queries):
        bias = getattr(self, part)
        with monkeypatch.context() as inner:
            inner.setitem(self._parameters, part, bias * 0)
            return project(self, tokens, queries)

    monkeypatch.setattr(attention.Attention, "_project", without)
    failing(PRETRAIN)


@pytest.mark.parametrize("change", [{"decay_tokens": True}, {"decay_mask_token": False}])
def test_other_parameters_decayed(monkeypatch, change):
    groups = beit.parameter_groups
    monkeypatch.setattr(beit, "parameter_groups", lambda *given, **named: groups(*given, **named | change))
    assert "pretraining_parameter_groups" in failing(PRETRAIN)


@pytest.mark.parametrize("change", ["wide", "not scaled"])
def test_another_initialisation(monkeypatch, change):
    if change == "wide":
        normal = functools.partial(torch.nn.init.trunc_normal_, std=0.02)
        monkeypatch.setitem(init.SCHEMES, "beit", init.SCHEMES["beit"]._replace(matrix=normal, kernel=normal))
    else:
        monkeypatch.setattr(vit, "initialise", lambda module, scheme, blocks: init.initialise(module, scheme))
    assert "official_initialisation" in failing(PRETRAIN)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_all) for name in IN_WHOLE_COLLECTION])
def test_layer_scale_on_one_branch_alone(monkeypatch, name):
    forward = blocks.Block.forward

    def unscaled(self, *given, **named):
        with monkeypatch.context() as inner:
            if self.gamma_2 is not None:
                inner.setitem(self._parameters, "gamma_2", torch.nn.Parameter(torch.ones_like(self.gamma_2)))
            return forward(self, *given, **named)

    monkeypatch.setattr(blocks.Block, "forward", unscaled)
    failing(name)


@needs_all
def test_warm_up_of_another_length(monkeypatch):
    def plain(step, *, start, **named):
        return beit_schedule(step, **named | {"warmup": named["warmup"] + 1}, start=start)

    beit_schedule = beit.beit_schedule
    monkeypatch.setattr(beit, "beit_schedule", plain)
    assert "lr_schedules" in failing(FINETUNE)


@pytest.mark.parametrize("name", [PRETRAIN, pytest.param(FINETUNE, marks=needs_all), INDEX, RESIZE])
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
