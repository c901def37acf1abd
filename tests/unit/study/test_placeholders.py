from pathlib import Path
from typing import Any

import pytest
from study_plan import plan_values

from pantomim.config import Duration, from_dict, to_dict
from pantomim.study.cells import Study, expand
from pantomim.study.placeholders import moved, needed_arms, with_runs
from pantomim.study.plan import Plan

ONE = {"knn": {"protocol": "knn", "data": "{data}"}}


def make(arms: dict[str, Any], scale: str | None = None, **changes: Any) -> Study:
    compare = {"metrics": ["knn.top1"], "reference": "most"}
    values = plan_values(**{"evaluations": ONE, "compare": compare, "arms": {"most": None, **arms}} | changes)
    return expand(from_dict(Plan, values, "the plan"), {"data": "mnist"}, scale=scale)


def test_an_arm_uses_the_run_of_another_at_the_same_seed():
    study = make({"second": {"init": "{run:most}"}, "third": {"init": "{run:second}/encoder.safetensors"}})
    needs = {cell.name: list(cell.needs.values()) for cell in study.cells}
    assert needs == {
        "00-most-seed0": [],
        "01-second-seed0": ["00-most-seed0"],
        "02-third-seed0": ["01-second-seed0"],
        "03-most-seed1": [],
        "04-second-seed1": ["03-most-seed1"],
        "05-third-seed1": ["04-second-seed1"],
    }
    assert study.settings()["arms"]["second"]["init"] == "{run:most}", "no path decides what a study is"
    assert study.inputs == {"data": "mnist"}, "another arm is no input"


def test_an_arm_of_a_single_seed_is_there_for_all():
    study = make({"one": {"seeds": [7]}, "second": {"init": "{run:one}"}})
    assert [cell.name for cell in study.cells][:2] == ["00-one-seed7", "01-most-seed0"]
    assert {tuple(cell.needs.values()) for cell in study.of("second")} == {("00-one-seed7",)}
    assert study.settings()["own_seeds"] == {"one": [7]}
    assert make({}).settings()["own_seeds"] == {}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (
            {"a": {"init": "{run:mots}"}},
            r"in Plan\.arms\.a must be one of the arms, most, a; got mots\. Did you mean most",
        ),
        (
            {"a": {"init": "{run:b}"}, "b": {"init": "{run:a}"}},
            r"in a circle; got (a needs b needs a|b needs a needs b)",
        ),
        ({"a": {"init": "{run:a}"}}, "in a circle; got a needs a"),
        (
            {"a": {"seeds": [0, 2]}, "b": {"init": "{run:a}"}},
            r"arms\.a\.seeds must be one, or all that b has.*without 1",
        ),
        ({"a": {"seeds": [0, 0]}}, r"arm a of study tiny.*\n  seeds: must be different numbers"),
        ({"a": {"bases": "mae"}}, "bases: no such key"),
        ({"a": {"base": "mae_micro_cifar"}}, r"Did you mean mae_micro_cifar10\?"),
    ],
)
def test_what_an_arm_cannot_be_is_told_before_anything_runs(arms, message):
    with pytest.raises(ValueError, match=message):
        make(arms)


def test_arms_may_be_of_different_methods_and_lengths():
    plain = {"overrides": {"runtime": {"device": "cpu"}}, "duration": {"steps": 100}}
    arms = {
        "tokenizer": {"base": "dvae_micro_cifar10", "seeds": [0]},
        "beit": {"base": "beit_micro_cifar10", "method": {"target": {"tokenizer": "{run:tokenizer}"}}},
        "drawn": {"duration": {"steps": 0}},
        "longer": {"duration": {"steps": 300}},
    }
    study = make(arms, **plain, baselines=["untrained", "pixels"])
    runs = {cell.arm: cell.run for cell in study.cells}
    assert study.helpers == ("tokenizer",)
    assert study.arms == ("most", "beit", "drawn", "longer")
    assert {arm: run.duration for arm, run in runs.items()} == {
        "most": Duration(steps=100),
        "tokenizer": Duration(steps=100),
        "beit": Duration(steps=100),
        "drawn": Duration(steps=0),
        "longer": Duration(steps=300),
    }
    assert runs["longer"].optim.warmup == Duration(steps=30), "the warm-up keeps its share"
    assert runs["tokenizer"].method.temperature.steps == 50, "schedules of the run's length"
    assert study.of("tokenizer")[0].evaluations == {}
    contenders = {arm: study.of(arm)[0].evaluations["knn"].contenders for arm in study.arms}
    assert contenders["beit"] == ("trained", "untrained"), "another encoder, the same pixels"
    assert contenders["longer"] == ("trained",)


def test_a_scale_may_change_single_arms():
    scales = {"gpu": {"base": "mae_tiny_cifar10", "arms": {"beit": {"base": "beit_tiny_cifar10", "seeds": [1]}}}}
    arms = {"beit": {"base": "beit_micro_cifar10", "method": {"target": {"kind": "pixels"}}}}
    small = make(arms, overrides={}, scales={"cpu": {}, **scales})
    large = make(arms, overrides={}, scales={"cpu": {}, **scales}, scale="gpu")
    assert {cell.run.recipe for cell in small.of("beit")} == {"beit_micro_cifar10"}
    assert [(cell.run.recipe, cell.seed) for cell in large.of("beit")] == [("beit_tiny_cifar10", 1)]
    assert {cell.run.recipe for cell in large.of("most")} == {"mae_tiny_cifar10"}
    with pytest.raises(ValueError, match=r"scales\.gpu\.arms must be one of the arms.*got bait\. Did you mean beit"):
        make(arms, scales={"gpu": {"arms": {"bait": {}}}})


def test_a_helper_is_nothing_to_compare_with():
    arms = {"tokenizer": {"base": "dvae_micro_cifar10"}}
    compare = {"metrics": ["knn.top1"], "reference": "tokenizer"}
    with pytest.raises(ValueError, match=r"Compare\.reference must name arms that train an encoder; got tokenizer"):
        make(arms, overrides={}, compare=compare)


def test_folders_are_filled_in_and_follow_a_move(tmp_path: Path):
    planned = {"a": {"source": "tokenizer:{run:x}", "other": 1}, "b": ["{run:x}", "y"]}
    assert needed_arms(planned) == ("x",)
    folders = {"x": tmp_path / "cells" / "00-x-seed0"}
    filled = with_runs(planned, folders)
    assert filled == {"a": {"source": f"tokenizer:{folders['x']}", "other": 1}, "b": [str(folders["x"]), "y"]}
    written = {"a": {"source": "tokenizer:/old/cells/00-x-seed0", "other": 2}, "b": filled["b"]}
    assert moved(written, planned, folders) == {**filled, "a": {**filled["a"], "other": 2}}, "and nothing else changes"


def test_a_config_keeps_the_name_of_the_arm():
    (cell,) = make({"second": {"init": "{run:most}"}}, seeds=[0]).of("second")
    assert to_dict(cell.run)["init"] == "{run:most}"
