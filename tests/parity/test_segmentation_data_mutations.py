"""The items about training crops notice: one thing is wrong at a time, and an item must fail."""

import pytest
from golden_items import edited, mutations, outcome, with_config

from pantomim.data import distortion, mask_crops

CROP, COLOURS = "downstream_class_share_crop_a", "downstream_photometric_a"


def failing(result):
    assert result.status == "FAIL"
    assert result.compared or "must not end here" in result.worst


def left_first(mask, size, max_share, ignore, random, right=mask_crops.crop_place):
    return right(mask.T, size[::-1], max_share, ignore, random)[::-1]


def ignored_too(mask, ignore, right=mask_crops.class_counts):
    return right(mask, 256)


@mutations(
    tries_9=(CROP, mask_crops, "_TRIES", 9),
    ignored_pixels_count=(CROP, mask_crops, "class_counts", ignored_too),
    blue_for_red=(COLOURS, distortion, "to_hsv", lambda image, right=distortion.to_hsv: right(image[::-1])),
    green_for_blue=(COLOURS, distortion, "to_rgb", lambda image, right=distortion.to_rgb: right(image)[[0, 2, 1]]),
)
def test_mutation_is_found(item, owner, name, wrong, monkeypatch):
    monkeypatch.setattr(owner, name, wrong)
    failing(outcome(item))


def test_left_before_top(monkeypatch):
    monkeypatch.setattr("pantomim.parity.segmentation.crop_place", left_first)
    failing(outcome(CROP))


@pytest.mark.parametrize(
    ("item", "changes"),
    [
        (CROP, {"cat_max_ratio": 0.6}),
        (CROP, {"crop": [23, 24]}),
        (CROP, {"ignore_index": 0}),
        (COLOURS, {"brightness_delta": 31}),
        (COLOURS, {"contrast_range": [0.4, 1.5]}),
        (COLOURS, {"saturation_range": [0.5, 1.4]}),
        (COLOURS, {"hue_delta": 17}),
    ],
)
def test_settings_are_read_from_the_item(tmp_path, item, changes):
    failing(with_config(tmp_path, item, **changes))


@pytest.mark.parametrize("item", [CROP, COLOURS])
def test_every_draw_counts(tmp_path, item):
    missing = edited(tmp_path, item, lambda spec, _: spec["numbers"]["traces"][0]["draws"].pop())
    assert "must not end here" in missing.worst
    more = edited(tmp_path, item, lambda spec, _: spec["numbers"]["traces"][0]["draws"].append([0, 2, 1]))
    assert (more.status, more.worst.split()[0]) == ("FAIL", "numbers/traces/0/draws")


@pytest.mark.parametrize(("repeats", "levels", "status"), [(1, 1, "FAIL"), (3, 3, "PASS"), (3, 4, "FAIL")])
def test_short_rows_are_exact_and_long_ones_within_three_levels(tmp_path, repeats, levels, status):
    def edit(spec, tensors):
        for key in ("in/image_bgr_4", "out/image_bgr_4"):
            tensors[key] = tensors[key].repeat(1, repeats, 1)
            group = spec["inputs" if key.startswith("in/") else "outputs"]["tensors"]
            group["image_bgr_4"]["shape"] = list(tensors[key].shape)
        tensors["out/image_bgr_4"][0, 0] += levels

    assert edited(tmp_path, COLOURS, edit).status == status
