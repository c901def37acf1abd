from pathlib import Path
from typing import Any

import pytest
from study_plan import plan_values

from pantomim.config import Duration, from_dict, leaves, to_dict
from pantomim.study.cells import Study, expand
from pantomim.study.page import guided
from pantomim.study.placeholders import read_inputs
from pantomim.study.plan import Plan, shipped_plans

BOTH = {"data": "a.zip", "other": "b.zip"}


def make(inputs: dict[str, str] | None = None, *, scale: Any = None, without: Any = (), **changes: Any) -> Study:
    plan = from_dict(Plan, plan_values(**changes), "the plan")
    return expand(plan, BOTH if inputs is None else inputs, scale=scale, without=without)


def test_cells_are_numbered_seed_by_seed():
    study = make()
    assert [cell.name for cell in study.cells] == ["00-half-seed0", "01-most-seed0", "02-half-seed1", "03-most-seed1"]
    assert [cell.run.runtime.seed for cell in study.cells] == [0, 0, 1, 1]
    assert [cell.evaluations["knn"].seed for cell in study.cells] == [0, 0, 1, 1]


def test_arms_differ_in_what_they_name_and_in_nothing_else():
    half, most = (leaves(to_dict(cell.run)) for cell in make().cells[:2])
    assert {key for key in half if half[key] != most[key]} == {"method.masker.ratio"}
    assert (half["method.masker.ratio"], most["method.masker.ratio"]) == (0.5, 0.75)


def test_another_kind_of_masker_forgets_the_ratio_of_the_old_one():
    study = make(arms={"most": None, "block": {"method": {"masker": {"kind": "block"}}}})
    assert study.cells[1].run.method.masker.kind == "block"
    assert study.cells[1].run.method.masker.ratio != 0.75


def test_inputs_stand_where_their_names_are():
    cell = make().cells[0]
    assert cell.run.data.source == "a.zip"
    assert cell.evaluations["knn"].data == "a.zip"
    assert cell.evaluations["probe"].data == "b.zip"


def test_only_the_reference_scores_the_baselines_of_the_same_encoder():
    wide = {"method": {"encoder": {"width": 32}}}
    study = make(arms={"half": None, "most": None, "wide": wide, "wider": wide})
    contenders = {cell.arm: cell.evaluations["knn"].contenders for cell in study.cells}
    everyone = ("trained", "untrained", "pixels")
    baseline = ("trained", "untrained")  # raw pixels of images of the same size are the same
    assert contenders == {"half": ("trained",), "most": everyone, "wide": baseline, "wider": ("trained",)}
    assert study.owners["untrained"] == {"half": "most", "most": "most", "wide": "wide", "wider": "wide"}
    assert set(study.owners["pixels"].values()) == {"most"}


def test_scales_change_length_seeds_and_evaluations():
    scales = {
        "small": {"duration": {"steps": 2}},
        "large": {
            "base": "mae_tiny_cifar10",
            "duration": {"epochs": 40},
            "seeds": [5],
            "overrides": {"batch_size": 8, "optim": {"warmup": {"epochs": 1}}},
            "evaluations": {"probe": {"epochs": 7}},
        },
    }
    small, large = make(scales=scales), make(scales=scales, scale="large")
    assert small.scale == "small", "the first one, if none is asked for"
    assert small.cells[0].run.duration == Duration(steps=2)
    assert [cell.seed for cell in large.cells] == [5, 5]
    run = large.cells[0].run
    assert (run.recipe, run.duration, run.batch_size) == ("mae_tiny_cifar10", Duration(epochs=40), 8)
    assert large.cells[0].evaluations["probe"].epochs == 7
    assert large.cells[0].evaluations["probe"].lrs == (0.01, 0.1)


def test_the_warm_up_keeps_its_share_of_another_length():
    overrides = {"data": {"images": 100}}
    study = make(duration={"steps": 100}, overrides=overrides)
    assert study.cells[0].run.optim.warmup == Duration(steps=10)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (
            {},
            {},
            r"must name data, for evaluation knn; .*data=SRC\.\n.*other, for evaluation probe; .*other=SRC",
        ),
        ({"data": "a"}, {"without": ["knn"]}, r"for evaluation probe; got none\. Add the input other=SRC"),
        ({"other": "a"}, {}, r"must name the images of mae_micro_cifar10; got none\. Add the input data=SRC"),
        (
            BOTH,
            {"overrides": {"init": "{first}"}},
            r"must name first, for the arms; got none\. Add the input first=SRC",
        ),
        ({**BOTH, "othr": "x"}, {}, r"got othr\. Did you mean other\?"),
        (BOTH, {"without": ["prob"]}, r"got prob\. Did you mean probe\?"),
        (BOTH, {"without": ["probe", "knn"]}, "must leave an evaluation"),
        (BOTH, {"scale": "cpu"}, "the plan has none"),
        (BOTH, {"arms": {"most": {"method": {"maskr": {}}}}}, r"arm most of study tiny.*\n.*Did you mean masker\?"),
        (BOTH, {"arms": {"most": {"method": {"masker": {"ratio": 75}}}}}, r"ratio must be in \(0, 1\); got 75"),
        (BOTH, {"base": "mae_micro_cifar"}, r"Did you mean mae_micro_cifar10\?"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        make(inputs, **options)


def test_a_wrong_key_of_an_evaluation_names_the_nearest():
    evaluations = {"knn": {"protocol": "knn", "data": "{data}", "test_image": 5}}
    compare = {"metrics": ["knn.top1"], "reference": "most"}
    with pytest.raises(ValueError, match=r"evaluation knn of study tiny.*\n.*Did you mean test_images\?"):
        make({"data": "a"}, evaluations=evaluations, compare=compare)


def test_an_evaluation_left_out_needs_no_input_and_has_no_column():
    study = make({"data": "a"}, without=["probe"])
    assert study.metrics == ("knn.top1",)
    assert list(study.cells[0].evaluations) == ["knn"]
    assert "--without probe" in study.command(Path("out"))


def test_an_evaluation_whose_input_is_not_given_is_left_out_and_said_to_be():
    study = make({"data": "a"})
    assert study.metrics == ("knn.top1",)
    assert list(study.cells[0].evaluations) == ["knn"]
    assert study.lacking == {"probe": ("other",)}
    assert len(study.warnings) == 1
    assert "evaluation probe" in study.warnings[0]
    assert "other=SRC" in study.warnings[0]
    assert "without" not in study.command(Path("out"))
    assert make().warnings == make({"data": "a"}, without=["probe"]).warnings == []


def test_an_input_may_have_a_default():
    evaluations = {"knn": {"protocol": "knn", "data": "{data}"}, "more": {"protocol": "knn", "data": "{set:mnist}"}}
    evaluations["more"]["images"] = "{count:}"
    options = {"evaluations": evaluations, "compare": {"metrics": ["knn.top1"], "reference": "most"}}
    more = make({"data": "a"}, **options).cells[0].evaluations["more"]
    assert (more.data, more.images) == ("mnist", None)
    more = make({"data": "a", "set": "b", "count": "7"}, **options).cells[0].evaluations["more"]
    assert (more.data, more.images) == ("b", 7)


def test_inputs_as_typed():
    assert read_inputs("a", ["b=c=d"]) == {"data": "a", "b": "c=d"}
    with pytest.raises(ValueError, match="must be NAME=SRC; got b"):
        read_inputs(None, ["b"])
    with pytest.raises(ValueError, match="must name data once"):
        read_inputs("a", ["data=b"])


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_in_the_study_of_masks_only_the_masker_differs(scale):
    study = expand(shipped_plans()["masks"], {"data": "x", "segmentation": "y"}, scale=scale)
    assert len(study.cells) == 18
    assert set(study.arms) == {"random", "red", "blue", "green", "purple", "block"}
    runs = {cell.arm: to_dict(cell.run) for cell in study.cells if cell.seed == 0}
    maskers = {arm: run["method"].pop("masker") for arm, run in runs.items()}
    assert all(run == runs["random"] for run in runs.values())
    grid = study.cells[0].run.method.encoder.grid
    counts = {cell.run.method.masker.num_masked(grid) for cell in study.cells}
    assert counts == {48}
    assert len({str(masker) for masker in maskers.values()}) == 6
    assert not any(cell.run.method.masker.varies for cell in study.cells)


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        ("cae", {"dvae", "cae", "beit", "mae", "supervised"}),
        ("teachers", {"dbot", "supervised", "mae", "mocov3"}),
        ("collaboration", {"cmt_mae", "mae", "mocov3"}),
        ("systems", {"dvae", "mae", "cae", "dbot", "cmt_mae"}),
    ],
)
def test_studies_of_methods_compare_encoders_of_one_size_after_as_many_steps(plan, kinds, scale):
    study = expand(
        shipped_plans()[plan],
        {"data": "mnist", "segmentation": "x"} if plan == "teachers" else {"data": "mnist"},
        scale=scale,
    )
    runs = {cell.arm: cell.run for cell in study.cells}
    assert {run.method.kind for run in runs.values()} == kinds
    encoders = {arm: runs[arm].method.encoder for arm in study.arms if arm != "wider"}
    assert len({(encoder.width, encoder.depth, encoder.grid) for encoder in encoders.values()}) == 1
    apart = ("random", "longer", "mocov3", "longer-mae", "teacher", "tokenizer")
    alike = [runs[arm] for arm in study.arms if arm not in apart]
    assert len({(run.duration, run.batch_size, run.data.images) for run in alike}) == 1
    if plan == "collaboration":
        led = {arm for arm in study.arms if runs[arm].method.kind == "cmt_mae" and runs[arm].method.needs_teacher}
        needy = {arm: set(cell.needs.values()) for cell in study.cells for arm in [cell.arm] if cell.needs}
        assert needy.pop("teacher") == {"00-longer-mae-seed0"}
        assert set(needy) == led == set(study.arms) - {"longer-mae", "teacher", "mae", "weight-0"}
        assert all(needs == {"01-teacher-seed0"} for needs in needy.values())  # one for all seeds
        assert set(study.arms) - set(guided(study)) == {"longer-mae", "teacher", "mae", "random-both", "random-teacher"}
        method = runs["weight-1"].method
        assert "student" not in method.attended + method.predicted
    if plan == "systems":
        assert runs["colormae"].method.masker.kind == "color_noise"
        teachers = {cell.name: set(cell.needs.values()) for cell in study.cells}
        assert teachers["13-cmt_mae-seed1"] == teachers["14-distilled-mae-seed1"] == {"08-mae-seed1"}
        assert teachers["12-dbot-seed1"] == {"11-dbot-stage-1-seed1"}
    if plan == "teachers":
        assert runs["random"].duration == Duration(steps=0)
        needs = {
            cell.arm: [name.partition("-")[2].rpartition("-")[0] for name in cell.needs.values()]
            for cell in study.cells
        }
        assert [needs[arm] for arm in ("mae", "mae-1", "mae-2")] == [[], ["mae"], ["mae-1"]]
