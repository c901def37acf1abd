"""Chains of runs: the student of each stage teaches the next; killed, moved and grown they are the same chain."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from killed import Killed, kill_after
from safetensors.torch import load_file
from tiny import DECODER, ENCODER, tiny_images, tiny_run

from pantomim.checkpoint import OPTIMIZER
from pantomim.cli import main
from pantomim.config import Pretrain, Stages, from_yaml, to_yaml
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.evaluate.knn import KNN
from pantomim.formats import load_encoder
from pantomim.methods.dbot import DBOTConfig
from pantomim.report import make_stages_report
from pantomim.study.stages import run_stages, stage_run
from pantomim.teachers.choice import TeacherConfig

STEPS = 6
METHOD = DBOTConfig(
    encoder=replace(ENCODER, drop_path=0.2),
    decoder=replace(DECODER, drop_path=0.2),
    teacher=TeacherConfig(source="random"),
)


def plan_of(source, stages=2, reinit="full", **changes):
    runtime = {"save_every": 2, "log_every": 1}
    return Stages(replace(tiny_run(source, steps=STEPS, runtime=runtime, **changes), method=METHOD), stages, reinit)


def losses(out, number):
    return [(line["loss"], line["lr"]) for line in read_metrics(out / f"stage-{number}" / "metrics.jsonl")]


def weights(folder):
    return load_file(folder / "encoder.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("chains") / "whole"
    run_stages(plan_of(source), out)
    return out


def test_the_folder_holds_the_stages_and_the_last_encoder(whole):
    names = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    parts = {f"{part}.{kind}" for part in ("encoder", "decoder") for kind in ("safetensors", "json")}
    assert names == parts | {"stages.yaml", "stage-0", "stage-1", "config.yaml", "finished.json"}
    assert equal(weights(whole), weights(whole / "stage-1"))
    assert not equal(weights(whole), weights(whole / "stage-0"))
    assert load_encoder(whole)(torch.rand(2, 3, 16, 16)).patches.shape == (2, 16, 16)


def test_each_stage_starts_its_schedule_and_its_student_anew(whole):
    rates = [[rate for _, rate in losses(whole, number)] for number in (0, 1)]
    assert rates[0] == rates[1]
    assert rates[0][0] == 0
    first, second = (from_yaml(Pretrain, whole / f"stage-{number}" / "config.yaml") for number in (0, 1))
    assert first.runtime.seed != second.runtime.seed
    assert first.method.teacher.source == "random"
    assert second.method.teacher.source == str(whole / "stage-0")
    assert second.init is None


def test_the_teacher_of_a_stage_is_the_student_of_the_one_before(source, whole):
    method = stage_run(plan_of(source), 1, whole).method.build()
    assert equal(method.teacher.encoder.state_dict(), weights(whole / "stage-0"))
    assert not equal(method.teacher.encoder.state_dict(), method.encoder.state_dict())


@pytest.mark.parametrize("step", [4, STEPS, STEPS + 3])
def test_killed_in_a_stage_it_is_resumed_as_if_it_had_never_stopped(source, whole, tmp_path, monkeypatch, step):
    plan, out = plan_of(source), tmp_path / "chain"
    with monkeypatch.context() as patch:
        kill_after(step, patch)
        with pytest.raises(Killed):
            run_stages(plan, out)
    assert (out / "stage-0" / "finished.json").exists() == (step >= STEPS)
    assert not (out / "encoder.safetensors").exists()
    run_stages(plan, out)
    for number in (0, 1):
        assert losses(out, number) == losses(whole, number)
    assert equal(weights(out), weights(whole))


def test_a_resumed_stage_takes_no_other_teacher(source, whole, tmp_path, monkeypatch):
    plan, out = plan_of(source), tmp_path / "chain"
    with monkeypatch.context() as patch:
        kill_after(STEPS + 3, patch)
        with pytest.raises(Killed):
            run_stages(plan, out)
    other = load_encoder(whole)  # of the same sizes
    from pantomim.formats.native import save_encoder

    save_encoder(out / "stage-0", other, scale={"rule": "", "divisor": 1.0}, recipe="other")
    summary = json.loads((out / "stage-0" / "finished.json").read_text())
    (out / "stage-0" / "finished.json").write_text(json.dumps(summary | {"files": {}}))  # as of earlier versions
    with pytest.raises(ValueError, match="teacher"):
        run_stages(plan, out)
    (out / "stage-0" / "finished.json").write_text(json.dumps(summary))  # knows its encoder, and writes it anew
    assert [stage.steps for stage in run_stages(plan, out)] == [STEPS, STEPS]


def test_a_finished_chain_is_left_as_it_is(source, whole):
    def times():
        return {path: path.stat().st_mtime_ns for path in whole.rglob("*") if ".lock" not in path.name}

    files = {path: time for path, time in times().items() if path.is_file()}
    finished = run_stages(plan_of(source), whole, (said := []).append)
    assert said == [f"Stage 1 of 2: {whole / 'stage-0'}", f"Stage 2 of 2: {whole / 'stage-1'}"]
    assert [stage.already for stage in finished] == [True, True]
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_another_plan_is_refused_and_what_differs_is_named(source, whole, tmp_path):
    with pytest.raises(ValueError, match=r"run\.optim\.base_lr: 0\.02 there, 0\.03 here"):
        run_stages(plan_of(source, optim={"base_lr": 0.03}), whole)
    with pytest.raises(ValueError, match="reinit: full there, none here"):
        run_stages(plan_of(source, reinit="none"), whole)
    with pytest.raises(ValueError, match="a chain can only grow"):
        run_stages(plan_of(source, stages=1), whole)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt and no stages\.yaml"):
        run_stages(plan_of(source), tmp_path)
    with pytest.raises(ValueError, match="must be of a method with a teacher"):
        run_stages(Stages(tiny_run(source)), tmp_path / "mae")


def test_a_moved_chain_is_resumed(source, whole, tmp_path, monkeypatch):
    plan = plan_of(source)
    with monkeypatch.context() as patch:
        kill_after(STEPS + 3, patch)
        with pytest.raises(Killed):
            run_stages(plan, tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    run_stages(plan, tmp_path / "there")
    assert losses(tmp_path / "there", 1) == losses(whole, 1)
    assert from_yaml(Pretrain, tmp_path / "there" / "stage-1" / "config.yaml").method.teacher.source == str(
        tmp_path / "there" / "stage-0"
    )


def test_a_chain_grows(source, whole, tmp_path):
    out = tmp_path / "chain"
    shutil.copytree(whole, out)
    finished = run_stages(plan_of(source, stages=3), out)
    assert [stage.already for stage in finished] == [True, True, False]
    assert equal(weights(out), weights(out / "stage-2"))
    run_stages(plan_of(source, stages=3), tmp_path / "three")
    assert losses(out, 2) == losses(tmp_path / "three", 2)


def test_the_student_keeps_its_weights_if_nothing_is_reinitialised(source, tmp_path):
    plan = plan_of(source, reinit="none")
    run_stages(plan, tmp_path)
    second = stage_run(plan, 1, tmp_path)
    assert second.init == str(tmp_path / "stage-0")
    # In step 0 the rate is 0: the first loss is that of the student of stage 0 against itself.
    first = replace(second, method=replace(second.method, teacher=TeacherConfig(source=str(tmp_path / "stage-0"))))
    pretrain(first, tmp_path / "again")
    again = read_metrics(tmp_path / "again" / "metrics.jsonl")
    assert losses(tmp_path, 1)[0][0] == again[0]["loss"]
    fresh = stage_run(plan_of(source), 1, tmp_path)
    pretrain(replace(fresh, init=None), tmp_path / "fresh")
    assert read_metrics(tmp_path / "fresh" / "metrics.jsonl")[0]["loss"] != again[0]["loss"]


def test_the_authors_way_keeps_the_bias_and_the_moments(source, whole, tmp_path, monkeypatch):
    plan, out = plan_of(source, reinit="reference"), tmp_path / "chain"
    with monkeypatch.context() as patch:
        kill_after(STEPS, patch)
        with pytest.raises(Killed):
            run_stages(plan, out)
    started = out / "stage-1" / "checkpoints" / "step-00000000"
    last = out / "stage-0" / "checkpoints" / f"step-{STEPS:08d}"
    assert equal(load_file(started / OPTIMIZER), load_file(last / OPTIMIZER))
    there, before = (load_file(folder / "weights.safetensors") for folder in (started, last))
    bias = "encoder.patch_embed.proj.bias"
    assert torch.equal(there[bias], before[bias])
    kept = {name for name in there if torch.equal(there[name], before[name])}
    assert kept == {bias, "encoder.pos_embed", "decoder.decoder_pos_embed"}
    fresh = stage_run(plan, 1, out)
    torch.manual_seed(0)
    assert there.keys() == {name for name in fresh.method.build().state_dict() if not name.startswith("teacher.")}
    run_stages(plan, out)
    assert losses(out, 0) == losses(whole, 0)
    assert losses(out, 1) != losses(whole, 1)
    run_stages(plan, tmp_path / "unstopped")
    assert losses(out, 1) == losses(tmp_path / "unstopped", 1)
    for folder in out.glob("stage-*/checkpoints"):  # to save room
        shutil.rmtree(folder)
    before = (out / "stage-1" / "config.yaml").stat().st_mtime_ns
    run_stages(plan, out)
    assert not list(out.glob("stage-1/checkpoints"))
    assert (out / "stage-1" / "config.yaml").stat().st_mtime_ns == before


def test_every_stage_is_scored_once(source, tmp_path, monkeypatch):
    plan, said = replace(plan_of(source), evaluate=str(source)), []
    run_stages(plan, tmp_path, said.append)
    for number, contenders in ((0, {"trained", "untrained", "pixels"}), (1, {"trained"})):
        files = sorted((tmp_path / f"stage-{number}" / "eval").iterdir())
        assert [file.name for file in files] == ["knn-images.json", "linear-images.json"]
        result = json.loads(files[0].read_text())
        assert result.keys() & {"trained", "untrained", "pixels"} == contenders
        assert result["seed"] == plan.run.runtime.seed
    assert sum("top-1" in line for line in said) == 4
    said.clear()
    run_stages(plan, tmp_path, said.append)
    assert not any("top-1" in line for line in said)
    _, result = KNN(encoder=str(tmp_path), data=str(source)).to_file()
    second = json.loads((tmp_path / "stage-1" / "eval" / "knn-images.json").read_text())
    assert result["trained"] == second["trained"]


def test_one_page_shows_all_stages_and_each_has_its_own(source, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "stages.yaml").write_text(to_yaml(plan_of(source)))
    with pytest.raises(ValueError, match="must have a stage"):
        make_stages_report(tmp_path / "empty")
    out = tmp_path / "chain"
    run_stages(plan_of(source), out)
    bare = make_stages_report(out).read_text()
    assert "No stage is scored yet" in bare
    run_stages(replace(plan_of(source), evaluate=str(source)), out)
    main(["report", str(out)])
    assert str(out / "report.html") in "".join(capsys.readouterr().out.split())
    page = (out / "report.html").read_text()
    for number in (0, 1):
        assert f'href="stage-{number}/report.html"' in page
        assert (out / f"stage-{number}" / "report.html").is_file()
        result = json.loads((out / f"stage-{number}" / "eval" / "knn-images.json").read_text())
        assert f"{100 * result['trained']['top1']:.1f}" in page
    assert page.count("<tr>") == 3 + 5  # headings and two stages; scores: the same, the encoder untrained, raw pixels
    assert "Loss, all stages" in page
    assert "step 12" in page


def test_images_without_labels_are_refused_before_training(source, tmp_path):
    import numpy as np

    np.savez(tmp_path / "bare.npz", images=np.zeros((20, 16, 16, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="label"):
        run_stages(replace(plan_of(source), evaluate=str(tmp_path / "bare.npz")), tmp_path / "chain")
    assert not (tmp_path / "chain" / "stage-0").exists()


@pytest.mark.slow
def test_two_processes_carry_out_a_chain(source, tmp_path, whole):
    plan = replace(plan_of(source), evaluate=str(source))
    (tmp_path / "plan.yaml").write_text(to_yaml(plan))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "pantomim", "pretrain", "--config", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *launcher, *command], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        one, two = losses(whole, number), losses(tmp_path / "two", number)
        assert len(two) == len(one)
        assert [loss for loss, _ in two] == pytest.approx([loss for loss, _ in one], rel=1e-3)
        assert (tmp_path / "two" / f"stage-{number}" / "eval" / "knn-images.json").exists()
    assert equal(weights(tmp_path / "two"), weights(tmp_path / "two" / "stage-1"))
