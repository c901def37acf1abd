import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pantomim.parity import mae
from pantomim.parity.item import Computed, Item
from pantomim.parity.verification import differences, format_results, verify, verify_item


def lars_item(folder, name="mae_lars_x", *, edit=lambda spec, tensors: None):
    """An item of one parameter and one step of plain momentum SGD."""
    tensors = {
        "in/param_0": torch.tensor([1.0, 2.0]),
        "in/grad_0_0": torch.tensor([0.5, -0.5]),
        "out/param_0_after_step_1": torch.tensor([0.95, 2.05], dtype=torch.float64),
    }
    spec = {
        "item": name,
        "config": {"lr": [0.1], "weight_decay": 0.0, "momentum": 0.9, "trust_coefficient": 0.001},
        "inputs": {"prefix": "in/", "tensors": {"param_0": {}, "grad_0_0": {}}},
        "outputs": {
            "prefix": "out/",
            "tensors": {"param_0_after_step_1": {"shape": [2], "suggested_atol_float64": 1e-9}},
        },
    }
    edit(spec, tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(spec))
    return folder / f"{name}.json"


def test_an_item_never_seen_passes(tmp_path):
    result = verify_item(lars_item(tmp_path))
    assert result.status == "PASS"
    assert result.compared == 1


def test_what_the_package_does_not_do_is_left_out_and_named(tmp_path, monkeypatch):
    def lars(item: Item) -> Computed:
        computed = mae.mae_lars(item)
        return replace(
            computed, unbuilt=("numbers/epoch*", "param_0*") if item.numbers.get("epochs") else ("numbers/*",)
        )

    monkeypatch.setattr(mae, "lars", lars, raising=False)
    result = verify_item(lars_item(tmp_path, "lars", edit=unknown_number))
    assert (result.status, result.compared, result.unbuilt) == ("PASS", 1, ("numbers/*",))
    assert str(result).endswith("not built here: numbers/*")
    everything = verify_item(lars_item(tmp_path, "lars", edit=lambda spec, _: spec.update(numbers={"epochs": 3})))
    assert (everything.status, everything.worst) == ("FAIL", "nothing to compare")


def test_an_item_of_another_method_is_counted_as_unknown(tmp_path):
    lars_item(tmp_path)
    lars_item(tmp_path, "mae_larsen")
    lars_item(tmp_path, "quilt_pretrain_a")
    results = verify(tmp_path)
    assert [result.status for result in results] == ["PASS", "UNKNOWN ITEM", "UNKNOWN ITEM"]
    assert format_results(results)[-1] == "3 items: 1 PASS, 0 FAIL, 2 UNKNOWN ITEM"


@pytest.mark.parametrize(
    ("stated", "name", "status"),
    [
        ("mae_lars", "hidden_lars", "PASS"),
        ("quilt_pretrain_a", "mae_lars_x", "UNKNOWN ITEM"),
        (7, "mae_lars_x", "PASS"),
        (None, "hidden_lars", "UNKNOWN ITEM"),
    ],
)
def test_an_item_is_what_it_calls_itself(tmp_path, stated, name, status):
    result = verify_item(lars_item(tmp_path, name, edit=lambda spec, tensors: spec.update(item=stated)))
    assert (result.name, result.status) == (name, status)


def test_an_item_that_does_not_say_what_it_is_goes_by_its_file(tmp_path):
    assert verify_item(lars_item(tmp_path, edit=lambda spec, tensors: spec.pop("item"))).status == "PASS"


def drop_stored(spec, tensors):
    del tensors["out/param_0_after_step_1"]


def add_output(spec, tensors):
    tensors["out/param_0_after_step_2"] = torch.zeros(2)


def another_value(spec, tensors):
    tensors["out/param_0_after_step_1"][1] += 1e-6


def not_a_number(spec, tensors):
    tensors["out/param_0_after_step_1"][0] = float("nan")


def another_shape(spec, tensors):
    spec["outputs"]["tensors"]["param_0_after_step_1"]["shape"] = [1, 2]
    tensors["out/param_0_after_step_1"] = tensors["out/param_0_after_step_1"][None]


def integers(spec, tensors):
    tensors["out/param_0_after_step_1"] = torch.tensor([1, 2])


def unknown_number(spec, tensors):
    spec["numbers"] = {"epoch": 3}


def no_input(spec, tensors):
    del tensors["in/grad_0_0"]


def no_outputs(spec, tensors):
    spec["outputs"]["tensors"] = {}
    del tensors["out/param_0_after_step_1"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (drop_stored, "described but not stored"),
        (add_output, "not computed"),
        (another_value, "param_0_after_step_1"),
        (not_a_number, "not finite"),
        (another_shape, "ours is [2], expected [1, 2]"),
        (integers, "ours is torch.float64, expected torch.int64"),
        (unknown_number, "numbers/epoch (not computed)"),
        (no_input, "KeyError: 'in/grad_0_0'"),
        (no_outputs, "nothing to compare"),
    ],
)
def test_what_is_off_fails_with_its_reason(tmp_path, edit, reason):
    result = verify_item(lars_item(tmp_path, edit=edit))
    assert result.status == "FAIL"
    assert reason in result.worst


def test_the_error_is_a_multiple_of_the_tolerance(tmp_path):
    result = verify_item(lars_item(tmp_path, edit=another_value))
    assert result.error == pytest.approx(1000, rel=1e-3)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_text('{"item": '), "JSONDecodeError: Expecting value"),
        (lambda path: path.write_text("[1, 2]"), "must hold an object; got list"),
        (lambda path: path.write_bytes(b"\xff\xfe{}"), "UnicodeDecodeError"),
        (lambda path: path.write_text("{}"), "KeyError"),
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.with_suffix(".safetensors").unlink(), "mae_lars_x.safetensors"),
        (lambda path: path.with_suffix(".safetensors").write_bytes(b"\x00" * 20), "SafetensorError"),
    ],
)
def test_damaged_files_fail_and_the_others_are_still_checked(tmp_path, damage, reason):
    damage(lars_item(tmp_path))
    lars_item(tmp_path, "mae_lars_y")
    results = verify(tmp_path)
    assert [result.status for result in results] == ["FAIL", "PASS"]
    assert reason in results[0].worst


def test_a_folder_without_items_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold golden items"):
        verify(tmp_path)


def test_one_line_an_item(tmp_path):
    lars_item(tmp_path, edit=another_value)
    line, last = format_results(verify(tmp_path))
    assert line.split()[:5] == ["mae_lars_x", "1e+03", "x", "tolerance", "FAIL"]
    assert line.endswith("worst: param_0_after_step_1  (1 keys, 1 off)")
    assert last == "1 items: 0 PASS, 1 FAIL, 0 UNKNOWN ITEM"


def compared(want, ours, **kwargs):
    item = Item("x", {"numbers": {"n": want}, "outputs": {"prefix": "out/", "tensors": {}}}, {})
    found = list(differences(item, Computed({}, numbers={"n": ours}, **kwargs)))
    return max(difference.error for difference in found)


@pytest.mark.parametrize(
    ("want", "ours"),
    [
        (3, 3),
        (1.0, 1.0 + 1e-10),
        ({"a": [1, 2.0]}, {"a": [1, 2.0], "more": 3}),
        (["b", "a"], ["a", "b"]),
        ([{"wd": 0.1, "parameters": ["c"]}, {"wd": 0.0, "parameters": ["b", "a"]}],) * 2,
        (
            [{"wd": 0.1, "parameters": ["c"]}, {"wd": 0.0, "parameters": ["b", "a"]}],
            [{"wd": 0.0, "parameters": ["a", "b"]}, {"wd": 0.1, "parameters": ["c"]}],
        ),
        ({"large": 1.0, "noise": 1e-16}, {"large": 1.0, "noise": 0.0}),
    ],
)
def test_equal_numbers(want, ours):
    assert compared(want, ours) <= 1.0


@pytest.mark.parametrize(
    ("want", "ours"),
    [
        (3, 4),
        (3, True),
        ("a", "b"),
        (1.0, 1.0 + 1e-8),
        (1.0, float("nan")),
        ([1, 2], [1, 2, 3]),
        (["a", "b"], ["a"]),
        (["a"], ["a", "a"]),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, 1),
        ([{"wd": 0.1, "parameters": ["c"]}], [{"wd": 0.0, "parameters": ["c"]}]),
    ],
)
def test_different_numbers(want, ours):
    assert compared(want, ours) > 1.0


def test_float32_entries_have_their_own_tolerance():
    assert compared([0.1], [0.1 + 1e-9], relative={"n": 1e-7}) <= 1.0
    assert compared([0.1], [0.1 + 1e-9]) > 1.0


def test_integer_outputs_are_exact():
    spec = {"outputs": {"prefix": "out/", "tensors": {"ids": {"shape": [3]}}}}
    item = Item("x", spec, {"out/ids": torch.tensor([1, 2, 3])})
    (same,) = differences(item, Computed({"ids": torch.tensor([1, 2, 3])}))
    (other,) = differences(item, Computed({"ids": torch.tensor([1, 3, 2])}))
    assert same.error == 0.0
    assert other == ("ids", float("inf"), "2 of 3 differ")
