"""CMT-MAE is trained by the engine like MAE: resume to the same bits, export, scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from killed import Killed, kill_after
from safetensors.torch import load_file
from tiny import DECODER, ENCODER, tiny_images, tiny_run

from pantomim.analysis.guidance import who_decides
from pantomim.checkpoint import WEIGHTS, find_checkpoint
from pantomim.cli import main
from pantomim.engine.initial import start_from
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.evaluate.knn import KNN
from pantomim.formats import load_encoder
from pantomim.masking.attention import AttentionMasker
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.recipes import prepare
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing

METHOD = CMTMAEConfig(
    encoder=ENCODER,
    decoder=DECODER,
    masker=AttentionMasker(rule="sample_masked"),
    teacher=TeacherConfig(source="random", output="norm"),
    mixing=Mixing(warmup_share=0.5, schedule="cosine", start=0.9),
    half_life=0.2,
)


@pytest.fixture
def source(tmp_path):
    return tiny_images(tmp_path / "images.npz")


def run(source, **changes):
    return replace(tiny_run(source, **changes), method=METHOD)


def last_weights(out):
    return load_file(find_checkpoint(out / "checkpoints").path / WEIGHTS)


@pytest.mark.parametrize("killed_at", [4, 8])  # in the first phase, and in the second
def test_a_resumed_run_ends_in_the_same_bits_and_is_scored(source, tmp_path, monkeypatch, killed_at):
    config = run(source, steps=12, runtime={"save_every": 4})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(config, whole)
    with monkeypatch.context() as patch:
        kill_after(killed_at, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    pretrain(config, cut)

    names = ("step", "loss", "grad_norm", "entropy_teacher", "entropy_student", "entropy_mask", "student_std")
    curves = [
        [tuple(row[name] for name in names) for row in read_metrics(out / "metrics.jsonl")] for out in (whole, cut)
    ]
    assert curves[0] == curves[1]
    assert [row[4] is None for row in curves[0]] == [True] * 6 + [False] * 6  # not asked in the first phase
    assert all(0 < row[5] <= 1 for row in curves[0])
    one, other = last_weights(whole), last_weights(cut)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)
    assert not any(name.startswith("teacher.") for name in one)
    ours, average = one["encoder.norm.weight"], one["ema_student.encoder.norm.weight"]
    assert not torch.equal(ours, average)
    assert not torch.equal(average, torch.ones_like(average))
    assert (whole / "encoder.safetensors").read_bytes() == (cut / "encoder.safetensors").read_bytes()
    _, result = KNN(encoder=str(whole), data=str(source)).to_file()
    assert 0 <= result["trained"]["top1"] <= 1


def test_a_run_begins_where_another_ended(source, tmp_path):
    pretrain(run(source, steps=4), tmp_path / "first")
    method = METHOD.build()
    start_from(str(tmp_path / "first"), method)
    saved = last_weights(tmp_path / "first")
    ours = dict(method.encoder.named_parameters())
    assert all(torch.equal(weight, saved[f"encoder.{name}"]) for name, weight in ours.items())
    average = method.ema_student.encoder
    assert not torch.equal(saved["ema_student.encoder.norm.weight"], ours["norm.weight"])  # it was another
    assert all(torch.equal(weight, ours[name]) for name, weight in average.named_parameters())


@pytest.mark.slow
def test_from_the_command_line_with_a_teacher_of_ones_own(source, tmp_path, capsys):
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    pretrain(tiny_run(source, steps=4), teacher)
    command = ["cmt_mae", "--data", str(source), "--size", "micro", "--method.encoder.depth", "1", "--steps", "20"]
    command += ["--teacher", str(teacher), "--method.mixing.teacher-weight", "0.3", "--batch-size", "8"]
    command += ["--method.masker.kind", "attention", "--method.masker.rule", "topk_hint"]
    command += ["--runtime.tracker", "none", "--runtime.device", "cpu", "--runtime.save-every", "10"]
    main(["explain", *command])
    assert "FLOPs before" in capsys.readouterr().out
    main(["pretrain", *command, "--out", str(out)])
    main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "What guided the masks" in page
    assert page.count("0.3, 1 in the first 10 % of the steps") == 2  # in the mask and in the target
    assert "half is forgotten in 2 % of the steps" in page
    assert "No reconstructions yet" not in page
    settings = yaml.safe_load((out / "config.yaml").read_text())
    alone = settings["method"] | {"mixing": {"teacher_weight": 1.0}}
    assert who_decides(alone) == [(f"Teacher's weight in the {part}", "1") for part in ("mask", "target")]  # no average
    with pytest.raises(ValueError, match="teacher_weight"):
        who_decides(alone | {"mixing": {"teacher_weight": 3.0}})
    with np.load(out / "analysis" / "guidance.npz") as found:
        titles = json.loads(str(found["about"]))["titles"]
        texts = json.loads(str(found["about"]))["texts"]
        assert found["row_0"].shape == found["row_4"].shape == (6, 16, 16, 3)
        before, now = (
            (found[f"row_{n}"] == 128).all(axis=3) for n, title in enumerate(titles) if title.startswith("masked")
        )
    kinds = ("student's moving average", "mixed", "masked")  # the frozen teacher is shown once
    assert titles == ["images", "teacher, step 10", *(f"{kind}, step {step}" for step in (10, 20) for kind in kinds)]
    assert texts[-1] == f"{(before & now).sum() / now.sum():.0%} of it masked at step 10 too"
    assert json.loads((out / "decoder.json").read_text())["decoder"]["out_dim"] == 96 + 16
    again = prepare(None, config=out / "config.yaml").config
    assert again.method.mixing.teacher_weight == 0.3
    assert again.method.masker == AttentionMasker(rule="topk_hint")


def test_another_network_guides_the_masks_of_mae(source, tmp_path, capsys):
    guide, out = tmp_path / "guide", tmp_path / "guided"
    pretrain(tiny_run(source, steps=4), guide)
    command = ["mae", "--data", str(source), "--size", "micro", "--method.encoder.depth", "1", "--batch-size", "8"]
    command += ["--steps", "4", "--method.masker.kind", "attention", "--runtime.tracker", "none"]
    command += ["--runtime.device", "cpu", "--method.guide.source"]
    main(["pretrain", *command, str(guide), "--out", str(out)])
    main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "Guide of the masks" in page
    with np.load(out / "analysis" / "reconstructions.npz") as found:
        masks = found["mask"]
        images = torch.from_numpy(found["original_values"])
    attention = TeacherConfig(source=str(guide)).build(load_encoder(str(out)))(images, "class").attention
    expected = attention >= attention.sort(dim=1).values[:, 16:17]  # 48 of 64
    assert torch.equal(torch.from_numpy(masks).flatten(1), expected)
    assert not any(name.startswith("guide") for name in last_weights(out))  # known by its hash
    assert "guide.teacher" in find_checkpoint(out / "checkpoints").frozen
    capsys.readouterr()
    main(["pretrain", *command, "ema", "--method.guide.momentum", "0.5", "--out", str(tmp_path / "ema")])
    assert any(name.startswith("guide.teacher.") for name in last_weights(tmp_path / "ema"))
    main(["report", str(tmp_path / "ema")])
    assert "got ema, which the run does not export" in " ".join(capsys.readouterr().err.split())


def test_a_guided_masker_is_refused_where_nobody_guides(source, capsys):
    with pytest.raises(SystemExit):
        main(["explain", "mae", "--data", str(source), "--method.masker.kind", "attention"])
    assert "Name the network in --method.guide.source: RUN" in " ".join(capsys.readouterr().err.split())
