"""MoCo v3 is trained by the engine like MAE: resume to the same bits, export, scores, continued."""

import json
from dataclasses import replace

import pytest
import torch
from killed import Killed, kill_after
from safetensors.torch import load_file
from tiny import MOCO_ENCODER, tiny_images, tiny_run

from pantomim.checkpoint import WEIGHTS, find_checkpoint
from pantomim.cli import main
from pantomim.data.transforms import View
from pantomim.engine.initial import start_from
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.evaluate.knn import KNN
from pantomim.formats import load_encoder
from pantomim.methods.mocov3 import MoCoV3Config
from pantomim.recipes import prepare

METHOD = MoCoV3Config(encoder=MOCO_ENCODER, hidden=16, dim=8)


@pytest.fixture
def source(tmp_path):
    return tiny_images(tmp_path / "images.npz")


def run(source, **changes):
    config = replace(tiny_run(source, **changes), method=METHOD)
    return replace(config, data=replace(config.data, second=View()))


def last_weights(out):
    return load_file(find_checkpoint(out / "checkpoints").path / WEIGHTS)


def test_a_run_resumes_to_the_same_bits_and_is_scored(source, tmp_path, monkeypatch):
    config = run(source, steps=12, runtime={"save_every": 4})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(config, whole)
    with monkeypatch.context() as patch:
        kill_after(4, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    pretrain(config, cut)

    names = ("step", "loss", "accuracy", "feature_std", "grad_norm")
    curves = [
        [tuple(row[name] for name in names) for row in read_metrics(out / "metrics.jsonl")] for out in (whole, cut)
    ]
    assert curves[0] == curves[1]
    assert all(0 < spread < 2 for _, _, _, spread, _ in curves[0])
    one, other = last_weights(whole), last_weights(cut)
    for name, value in one.items():  # student, teacher, and the running statistics of both
        assert torch.equal(value, other[name]), name
    assert one["teacher_projector.copy.norms.0.running_mean"].any()
    assert not torch.equal(one["teacher_encoder.copy.norm.weight"], one["encoder.norm.weight"])
    initial = config.method.build().state_dict()
    assert not torch.equal(one["teacher_encoder.copy.norm.weight"], initial["teacher_encoder.copy.norm.weight"])
    for name in ("encoder", "predictor"):
        file = f"{name}.safetensors"
        assert (whole / file).read_bytes() == (cut / file).read_bytes()

    frozen = load_encoder(whole)
    assert all(parameter.requires_grad for parameter in frozen.patch_embed.parameters())  # for fine-tuning
    _, result = KNN(encoder=str(whole), data=str(source)).to_file()
    assert 0 <= result["trained"]["top1"] <= 1


def test_a_run_begins_where_another_ended(source, tmp_path):
    pretrain(run(source, steps=3), tmp_path / "first")
    method = METHOD.build()
    assert "what it predicts with is taken too" in start_from(str(tmp_path / "first"), method)
    saved = last_weights(tmp_path / "first")
    for name, weight in method.named_parameters():
        students = name.removeprefix("teacher_").replace("copy.", "")
        assert torch.equal(weight, saved[students]), name  # the teacher begins as the student


def test_micro_batches_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"accumulation must be 1 for mocov3, whose loss of an image"):
        pretrain(run(source, steps=4, runtime={"accumulation": 2}), tmp_path / "run")


def test_a_second_view_is_asked_for(source, tmp_path):
    config = run(source, steps=4)
    with pytest.raises(ValueError, match=r"DataConfig\.second must say how the other view"):
        pretrain(replace(config, data=replace(config.data, second=None)), tmp_path / "run")


@pytest.mark.slow
def test_from_the_command_line(source, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["mocov3", "--data", str(source), "--size", "micro", "--method.encoder.depth", "1", "--steps", "20"]
    command += ["--batch-size", "8", "--runtime.tracker", "none", "--runtime.device", "cpu"]
    command += ["--method.momentum.start", "0.9"]
    main(["explain", *command])
    told = " ".join(capsys.readouterr().out.split())
    for words in ("teacher_encoder B x 3 x 16 x 16", "{start: 0.9, end: 1.0, shape: cosine", "FLOPs per image"):
        assert words in told
    main(["pretrain", *command, "--out", str(out)])
    main(["report", str(out)])
    assert (out / "report.html").is_file()
    assert json.loads((out / "predictor.json").read_text())["method"] == "mocov3"
    again = prepare(None, config=out / "config.yaml").config
    assert again.method.momentum.start == 0.9
    assert again.data.second == View(again.data.crop, again.data.augment)
    assert again.data.augment.active
