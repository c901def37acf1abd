from pathlib import Path
from typing import Any

import pytest
from study_plan import plan_values, write_plan

from pantomim.config import from_dict
from pantomim.study.plan import Plan, load_plan, merge, shipped_plans


def make(**changes: Any) -> Plan:
    return from_dict(Plan, plan_values(**changes), "the plan")


def test_nested_settings_are_changed_where_they_are_named():
    base = {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": 4}
    assert merge(base, {"a": {"c": {"d": 5}}}) == {"a": {"b": 1, "c": {"d": 5, "e": 3}}, "f": 4}
    assert base["a"]["c"]["d"] == 2, "the base stays as it is"


def test_a_part_of_another_kind_is_replaced_as_a_whole():
    base = {"masker": {"kind": "random", "ratio": 0.75}}
    assert merge(base, {"masker": {"kind": "grid", "cell": 2}}) == {"masker": {"kind": "grid", "cell": 2}}
    assert merge(base, {"masker": {"kind": "random"}}) == base
    assert merge(base, {"masker": {"ratio": 0.5}}) == {"masker": {"kind": "random", "ratio": 0.5}}


def test_a_duration_is_replaced_as_a_whole():
    base = {"warmup": {"steps": 600, "epochs": None}}
    assert merge(base, {"warmup": {"epochs": 2.0}}) == {"warmup": {"epochs": 2.0}}


def test_axes_are_multiplied_and_the_last_runs_fastest():
    axes = {
        "masker": {"few": {"method": {"masker": {"ratio": 0.5}}}, "many": None},
        "rate": {"slow": {"optim": {"base_lr": 0.1}}, "quick": {"optim": {"base_lr": 0.2}}},
    }
    plan = make(arms={}, axes=axes, compare={"metrics": ["knn.top1"], "reference": "many-slow"})
    assert plan.arm_overrides == {
        "few-slow": {"method": {"masker": {"ratio": 0.5}}, "optim": {"base_lr": 0.1}},
        "few-quick": {"method": {"masker": {"ratio": 0.5}}, "optim": {"base_lr": 0.2}},
        "many-slow": {"optim": {"base_lr": 0.1}},
        "many-quick": {"optim": {"base_lr": 0.2}},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, r"sedes: no such key\. Did you mean seeds\?"),
        ({"compare": {"metric": ["knn.top1"], "reference": "most"}}, r"Did you mean metrics\?"),
        ({"compare": {"metrics": ["knn.top1"], "reference": "mots"}}, r"one of the arms, .*Did you mean most\?"),
        ({"compare": {"metrics": ["kn.top1"], "reference": "most"}}, r"got kn\. Did you mean knn\?"),
        ({"compare": {"metrics": [], "reference": "most"}}, "at least one column"),
        ({"compare": {"metrics": ["knn"], "reference": "most"}}, r"EVALUATION\.METRIC"),
        ({"arms": {}}, "either arms or axes"),
        ({"axes": {"a": {"b": None}}}, "either arms or axes"),
        ({"arms": {"most": None, "a/b": None}}, r"part of a file name; got 'a/b'"),
        ({"seeds": []}, "seeds: must be different numbers"),
        ({"seeds": [1, 1]}, "seeds: must be different numbers"),
        ({"overrides": {"runtime": {"seed": 3}}}, r"leave runtime\.seed to Plan\.seeds"),
        ({"scales": {"big": {"seeds": [-1]}}}, r"scales\.big\.seeds: must be different numbers"),
        ({"scales": {"big": {"evaluations": {"knnn": {}}}}}, r"got knnn\. Did you mean knn\?"),
        ({"evaluations": {"knn": {"protocol": "knn", "data": "x", "seed": 1}}}, "must leave seed to the study"),
        ({"pictures": -1}, "pictures: Input should be greater than or equal to 0"),
    ],
)
def test_what_is_wrong_with_a_plan_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_plan_of_ones_own(tmp_path: Path):
    assert load_plan(str(write_plan(tmp_path / "mine.yaml"))) == make()
    with pytest.raises(ValueError, match=r"none\.yaml cannot be read as YAML: .* Study\.plan"):
        load_plan(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"(?s)bad\.yaml cannot be read as YAML: .* Study\.plan"):
        load_plan(str(tmp_path / "bad.yaml"))


def test_shipped_plans_are_named_as_their_files():
    plans = shipped_plans()
    assert "masks" in plans
    assert all(name == plan.name for name, plan in plans.items())
    with pytest.raises(ValueError, match=r"Did you mean masks\?"):
        load_plan("mask")
