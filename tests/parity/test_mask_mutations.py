"""The items about masks notice: one thing in a sampler is wrong at a time, and an item must fail."""

import dataclasses

import numpy as np
import pytest
import torch
from golden_items import GOLDEN, edited, mutations, outcome

from pantomim.masking import block, grid, rectangles
from pantomim.parity import masks
from pantomim.parity.item import read_item
from pantomim.parity.verification import differences

STATS, TRACE, SIMMIM = "block_mask_stats", "block_mask_trace", "simmim_mask_stats"


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(masks, "DRAWS", 5000)


def with_rule(monkeypatch, **changes):
    """Every rule has other values: given ones, or made from the right ones."""
    rule = block.BlockMasker.rule

    def changed(self, size):
        right = rule(self, size)
        return dataclasses.replace(right, **{name: value(getattr(right, name)) for name, value in changes.items()})

    monkeypatch.setattr(block.BlockMasker, "rule", changed)


def failing(result):
    assert result.status == "FAIL"
    return result.worst


def exclusive(self, images, high):
    return np.floor(self.generator.random(len(images)) * np.maximum(high, 1))


def aspect_itself(self, images, low, high, right=rectangles.FromGenerator.uniform):
    if low > 0:
        return right(self, images, low, high)
    return np.log(right(self, images, np.exp(low), np.exp(high)))


def other_exactness(setting, right=masks.block_masker):
    return right({**setting, "method": {"cae": "beit"}.get(setting["method"], "cae")})


def any_patches(scores, count, right=grid.Mask.from_scores):
    return right(torch.rand(scores.shape, generator=torch.Generator()), count)


@mutations(
    upper_end_left_out=(STATS, rectangles.FromGenerator, "integers", exclusive),
    aspect_itself=(STATS, rectangles.FromGenerator, "uniform", aspect_itself),
    tries_9=(TRACE, block, "TRIES", 9),
    tries_11=(TRACE, block, "TRIES", 11),
    tries_7=(STATS, block, "TRIES", 7),
    tries_14=(STATS, block, "TRIES", 14),
    exactness=(STATS, masks, "block_masker", other_exactness),
    exactness_in_traces=(TRACE, masks, "block_masker", other_exactness),
    rounded_up=(STATS, rectangles.np, "rint", np.ceil),
    rounded_down=(STATS, rectangles.np, "rint", np.floor),
    rounded_down_in_traces=(TRACE, rectangles.np, "rint", np.floor),
    # A later proposal counts where an earlier one was acceptable: large rectangles are favoured.
    later_proposals=(
        STATS,
        rectangles.np,
        "diff",
        lambda images, prepend: np.append(images[1:] != images[:-1], True),
    ),
    larger_cells=(SIMMIM, masks, "GridMasker", lambda ratio, cell: grid.GridMasker(ratio=ratio, cell=2 * cell)),
    patches=(SIMMIM, grid.Mask, "from_scores", any_patches),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(outcome(item))


@pytest.mark.parametrize("name", [STATS, TRACE])
@pytest.mark.parametrize(
    "changes",
    [
        {"min_area": lambda area: area + 1},
        {"min_area": lambda area: area - 1},
        {"total": lambda total: total - 1},
        {"log_aspect": lambda bound: bound * 0.95},
        {"max_area": lambda area: area // 2},
    ],
    ids=["larger", "smaller", "fewer", "rounder", "capped"],
)
def test_another_rule(monkeypatch, name, changes):
    with_rule(monkeypatch, **changes)
    failing(outcome(name))


def test_rows_and_columns_swapped(monkeypatch):
    cover = rectangles.cover

    def transposed(batch_size, grid, *arguments):
        covered = cover(batch_size, grid, *arguments)
        masked = covered.masked.reshape(-1, *grid).swapaxes(1, 2).reshape(batch_size, -1)
        return dataclasses.replace(covered, masked=masked)

    monkeypatch.setattr(block, "cover", transposed)
    assert failing(outcome(TRACE)).startswith("masks_")  # statistics cannot tell: square grids, symmetric aspects


def test_one_block_too_many_reported(monkeypatch):
    cover = block.BlockMasker.cover

    def counted(self, *arguments, **options):
        covered = cover(self, *arguments, **options)
        return dataclasses.replace(
            covered, num_rectangles=covered.num_rectangles + (np.arange(len(covered.first)) % 5 == 0)
        )

    monkeypatch.setattr(block.BlockMasker, "cover", counted)
    assert "blocks_per_mask" in failing(outcome(STATS))


def test_cells_rounded_down(monkeypatch):
    monkeypatch.setattr(grid.math, "ceil", lambda value: int(value))
    assert "numbers/masked_" in failing(outcome(SIMMIM))


def test_one_cell_preferred(monkeypatch):
    right = grid.Mask.from_scores

    def biased(cls, scores, count):
        return right(torch.where(scores == scores[:, :1], scores + 3.5, scores), count)

    monkeypatch.setattr(grid.Mask, "from_scores", classmethod(biased))
    assert failing(outcome(SIMMIM)).startswith("probability_map")


def test_every_statistic_counts():
    item = read_item(GOLDEN / f"{STATS}.json")
    first, second, third, _, last = item.numbers["settings"]
    first["min_num_patches"] = 15
    first["first_block_new_cells"]["mean"] -= 2
    first["masked_count"]["std"] *= 0.6
    first["vertical_pairs_both_masked"]["mean"] *= 1.01
    del second["blocks_per_mask"]  # what is not stated is not compared
    second["unknown"] = 3
    del third["masked_count"]["std"]
    third["masked_count"]["median"] = 98
    histogram = last["connected_components_4"]["histogram"]
    histogram["1"], histogram["2"] = histogram["2"], histogram["1"]

    computed = masks.block_mask_stats(item)
    off = {difference.key for difference in differences(item, computed) if difference.error > 1}
    assert off == {
        "numbers/settings/0/min_num_patches",
        "numbers/settings/0/first_block_new_cells/mean",
        "numbers/settings/0/masked_count/std",
        "numbers/settings/0/vertical_pairs_both_masked/mean",
        "numbers/settings/1/unknown",
        "numbers/settings/2/masked_count/median",
        "numbers/settings/4/connected_components_4/histogram",
    }


@pytest.mark.parametrize(
    ("edit", "worst"),
    [
        (lambda s: s["numbers"]["settings"].pop(), "ValueError"),
        (lambda s: s["config"]["settings"][0].update(method="mae"), "config.method must be"),
    ],
    ids=["missing", "unknown"],
)
def test_every_setting_counts(tmp_path, edit, worst):
    assert worst in failing(edited(tmp_path, STATS, lambda spec, _: edit(spec)))


@pytest.mark.parametrize(
    ("edit", "worst"),
    [
        (lambda s: s["numbers"]["traces"][3]["draws"].pop(), "must not end here"),
        (lambda s: s["numbers"]["traces"][3]["draws"].append(["uniform", 16, 75, 20.0]), "traces/3/draws"),
        (lambda s: s["numbers"]["traces"][7].update(masked=31), "traces/7/masked"),
        (lambda s: s["numbers"]["traces"][7]["draws"][0].__setitem__(2, 31), "traces/7/draws/0/2"),
        (lambda s: s["numbers"]["traces"].pop(), "masks_1"),
        (
            lambda s: s["numbers"]["traces"].append({"setting": 2, "index": 0, "draws": [], "masked": 0}),
            "numbers/traces",
        ),
    ],
    ids=["short", "long", "count", "bound", "missing", "unknown"],
)
def test_every_recorded_number_counts(tmp_path, edit, worst):
    assert worst in failing(edited(tmp_path, TRACE, lambda spec, _: edit(spec)))


@pytest.mark.parametrize("name", [STATS, TRACE, SIMMIM])
def test_a_map_changed_on_disk(tmp_path, name):
    changed = []

    def edit(spec, tensors):
        changed.append(max(key for key in tensors if key.startswith("out/")))
        tensors[changed[0]][..., 2, 0] = tensors[changed[0]][..., 2, 0] < 0.5

    result = edited(tmp_path, name, edit)
    assert changed[0].removeprefix("out/") in failing(result)
