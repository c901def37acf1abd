"""Items of segmentation notice: one thing is wrong at a time, and an item must fail."""

import functools

import pytest
import torch
from golden_items import edited, failing, mutations, outcome, with_config
from torch import nn
from torch.nn import functional as F

from pantomim import optim
from pantomim.core import scores
from pantomim.nn import pyramid, segmenter, upernet, windows
from pantomim.parity import segmentation

BACKBONES = [f"downstream_seg_backbone_{name}_a" for name in ("beit", "cae", "mae")]
PYRAMID, UPERNET, WINDOWS = "downstream_pyramid_a", "downstream_upernet_a", "downstream_sliding_window_a"
IOU, GROUPS, SIZES = "downstream_mean_iou_a", "downstream_optimizer_groups_a", "downstream_sizes_and_positions_a"
as_map, starts, iou = pyramid.as_map, windows.window_starts, scores.intersection_over_union
layer_scale, parameter_groups = optim.layer_scale, optim.parameter_groups


def corners(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def by_counted_pixels(logits, labels, ignore):
    scores = upernet.enlarge(logits, labels.shape[1:])
    return F.cross_entropy(scores, labels, ignore_index=ignore), torch.zeros(())


def labelled_classes(counts):
    return iou(counts).masked_fill(counts[..., 2, :] == 0, torch.nan)


class LargeEps(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width, eps=1e-3)


class Slow(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width, momentum=0.01)


def neck_in_the_encoder(depth, decay):
    scale = layer_scale(depth, decay)
    return lambda name: scale(name.replace("neck.", "encoder.neck."))


@mutations(
    tanh_gelu=(PYRAMID, nn, "GELU", functools.partial(nn.GELU, approximate="tanh")),
    another_eps=(PYRAMID, nn, "BatchNorm2d", LargeEps),
    mean_instead_of_maximum=(PYRAMID, nn, "MaxPool2d", nn.AvgPool2d),
    corners=(UPERNET, upernet, "enlarge", corners),
    corners_in_the_loss=(UPERNET, segmenter, "enlarge", corners),
    momentum=(UPERNET, nn, "BatchNorm2d", Slow),
    counted_pixels=(UPERNET, segmentation, "pixel_loss", by_counted_pixels),
    columns_first=(BACKBONES[0], pyramid, "as_map", lambda patches, grid: as_map(patches, grid).mT),
    first_window_moved=(WINDOWS, windows, "window_starts", lambda *given: [max(k - 1, 0) for k in starts(*given)]),
    probabilities=(WINDOWS, windows, "enlarge", lambda maps, size: upernet.enlarge(maps, size).softmax(dim=1)),
    only_labelled_classes=(IOU, segmentation, "intersection_over_union", labelled_classes),
    neck_in_the_encoder=(GROUPS, segmentation, "layer_scale", neck_in_the_encoder),
    one_layer_more=(GROUPS, segmentation, "layer_scale", lambda depth, decay: layer_scale(depth + 1, decay)),
    rounded_down=(SIZES, segmentation, "fitted_size", lambda size, *box: (size[0] // 2, size[1] // 2)),
    positions_by_size=(SIZES, segmentation, "resample_stretched", segmentation.resample),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)


@pytest.mark.parametrize("item", BACKBONES)
def test_taps_with_a_norm(monkeypatch, item):
    tap = segmenter.Segmenter.tap

    def normed(self, images):
        with pytest.MonkeyPatch.context() as inner:
            inner.setitem(self.encoder._modules, "norm", nn.LayerNorm(self.encoder.width, dtype=torch.float64))
            return tap(self, images)

    monkeypatch.setattr(segmenter.Segmenter, "tap", normed)
    failing(item)


def test_tokens_and_positions_are_decayed(monkeypatch):
    def spared(*given, decay_tokens, **named):
        return parameter_groups(*given, decay_tokens=False, **named)

    monkeypatch.setattr(segmentation, "parameter_groups", spared)
    result = failing(GROUPS)
    assert "weight_decay" in result.worst
    assert result.off == 2


@pytest.mark.parametrize(
    ("name", "other"),
    [("segmentation_poly_old", optim.Schedule.poly), ("segmentation_poly_new", optim.Schedule.mmcv)],
)
def test_a_rate_of_the_other_generation(monkeypatch, name, other):
    monkeypatch.setitem(segmentation.SCHEDULES, name, other)
    assert f"schedules/{name}" in failing(GROUPS).worst


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (BACKBONES[0], {"out_indices": [0, 2, 3, 4]}),
        (BACKBONES[2], {"layer_norm_eps": 1e-5}),
        (UPERNET, {"aux_weight": 0.5}),
        (UPERNET, {"ignore_index": 0}),
        (UPERNET, {"batch_norm_momentum": 0.2}),
        (IOU, {"reduce_zero_label": False}),
        (GROUPS, {"layer_decay": 0.75}),
        (GROUPS, {"weight_decay": 0.1}),
        (SIZES, {"position_grid": [7, 5]}),
    ],
    ids=str,
)
def test_what_the_config_states_is_what_is_rebuilt(tmp_path, name, changes):
    assert with_config(tmp_path, name, **changes).status == "FAIL"


@pytest.mark.parametrize("name", [PYRAMID, UPERNET, IOU, SIZES])
def test_a_number_changed_on_disk(tmp_path, name):
    changed = []

    def nudge(spec, tensors):
        floats = [key for key in tensors if key.startswith("out/") and tensors[key].is_floating_point()]
        changed.append(max(key for key in floats if "accuracy" not in key))
        tensors[changed[0]].flatten()[0] += 1e-4

    result = edited(tmp_path, name, nudge)
    assert result.status == "FAIL"
    assert changed[0].removeprefix("out/") in result.worst


def test_what_is_of_detection_is_named_and_nothing_else_left_out(tmp_path):
    assert "not built here: numbers/vitdet*, numbers/schedules/vitdet*" in str(outcome(GROUPS))

    def rename(spec, tensors):
        spec["numbers"]["schedules"]["segmentation_cosine (step, rate)"] = [[0, 1.0]]

    assert "segmentation_cosine" in edited(tmp_path, GROUPS, rename).worst
