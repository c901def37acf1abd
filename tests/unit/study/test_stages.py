from dataclasses import replace
from pathlib import Path

import pytest
from tiny import DECODER, ENCODER, tiny_run

from pantomim.config import Stages
from pantomim.formats.native import save_encoder
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.guides import teacher_of
from pantomim.methods.mae import MAEConfig
from pantomim.study.stages import describe_stages, run_stages, stage_run, stage_seed
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig

OUT = Path("RUN")


def plan_of(teacher, reinit="full", stages=3, **changes):
    method = DBOTConfig(encoder=ENCODER, decoder=DECODER, teacher=teacher)
    return Stages(replace(tiny_run(Path("images.npz")), method=method, **changes), stages, reinit)


def test_the_first_stage_is_the_run_itself():
    plan = plan_of(TeacherConfig("random", depth=1), init="runs/other")
    assert stage_run(plan, 0, OUT) == plan.run


@pytest.mark.parametrize(
    ("first", "output", "blocks"),
    [
        (TeacherConfig("random", depth=0), "block", 1),
        (TeacherConfig("runs/mae", output="norm"), "norm", 1),
        (TeacherConfig("clip:FILE", output="projection"), "block", 1),
        (TeacherConfig("runs/mae", blocks=2), "block", 2),
    ],
)
def test_a_later_stage_differs_in_teacher_seed_and_init_alone(first, output, blocks):
    plan = plan_of(first, init="runs/other")
    later = stage_run(plan, 2, OUT)
    teacher = teacher_of(later.method)
    assert teacher == TeacherConfig(str(OUT / "stage-1"), output=output, blocks=blocks)
    assert later.init is None
    assert later.runtime.seed == stage_seed(plan.run.runtime.seed, 2)
    back = replace(later, init=plan.run.init, runtime=plan.run.runtime, method=replace(later.method, teacher=first))
    assert back == plan.run


def test_a_moving_average_has_no_second_stage():
    assert stage_run(plan_of(TeacherConfig("ema"), stages=1), 0, OUT).method.teacher.source == "ema"
    with pytest.raises(ValueError, match="must be 1 for an EMA teacher"):
        describe_stages(plan_of(TeacherConfig("ema"), stages=2), OUT)


def test_a_first_teacher_of_another_width_is_noticed_before_training(tmp_path):
    wide = replace(ENCODER, width=32)
    save_encoder(tmp_path / "wide", wide.build(), scale={"rule": "", "divisor": 1.0}, recipe="wide")
    first = TeacherConfig(str(tmp_path / "wide"))
    rows = dict(describe_stages(plan_of(first), OUT))
    assert rows["stage 0"].endswith("features of width 32")
    assert rows["stage 1"].endswith("features of width 16")
    with pytest.raises(ValueError, match="a teacher 32 wide and a student 16 wide"):
        describe_stages(plan_of(first, "reference"), OUT)
    with pytest.raises(ValueError, match="a teacher 32 wide and a student 16 wide"):
        run_stages(plan_of(first, "reference"), tmp_path / "chain")
    assert not (tmp_path / "chain").exists()
    assert dict(describe_stages(plan_of(TeacherConfig()), OUT))["stage 0"].endswith(
        "predicts the features of a teacher to be named"
    )


def test_no_two_stages_of_neighbouring_seeds_share_a_seed():
    seeds = {stage_seed(seed, number) for seed in range(5) for number in range(4)}
    assert len(seeds) == 20
    assert [stage_seed(seed, 0) for seed in range(5)] == list(range(5))


def test_a_student_that_keeps_its_weights_starts_with_those_of_the_stage_before():
    assert stage_run(plan_of(TeacherConfig("random"), "none"), 1, OUT).init == str(OUT / "stage-0")


def test_whatever_predicts_features_has_stages():
    target = FeatureTargetConfig(teacher=TeacherConfig("random"))
    run = replace(tiny_run(Path("images.npz")), method=MAEConfig(encoder=ENCODER, decoder=DECODER, target=target))
    later = stage_run(Stages(run), 1, OUT)
    assert later.method.target == replace(target, teacher=TeacherConfig(str(OUT / "stage-0")))
    with pytest.raises(ValueError, match="a run of mae, which has none"):
        stage_run(Stages(tiny_run(Path("images.npz"))), 1, OUT)


def test_each_stage_says_who_teaches():
    rows = dict(describe_stages(replace(plan_of(TeacherConfig("random", depth=0)), evaluate="labelled"), OUT))
    assert rows["stage 0"].startswith("teacher: random, no block: projected patches and positions")
    assert rows["stage 1"].startswith(f"teacher: {OUT / 'stage-0'}, output block; a new student and a new optimiser")
    assert rows["stage 2"].startswith(f"teacher: {OUT / 'stage-1'}")
    assert "labelled" in rows["scores"]
    kept = dict(describe_stages(plan_of(TeacherConfig("random"), "reference"), OUT))
    assert "AdamW's moments are kept" in kept["stage 1"]
