"""Commands on run folders that an earlier version wrote."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pantomim.analysis.guidance import Guidance
from pantomim.analysis.views import write_rows_of
from pantomim.cli import main
from pantomim.config import Pretrain, from_yaml
from pantomim.engine.pretrain import pretrain
from pantomim.formats import load_encoder
from pantomim.nn.vit import Encoder
from pantomim.report import make_report
from pantomim.teachers.choice import TeacherConfig

RUNS = Path(__file__).parents[1] / "fixtures" / "runs_before_house"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Their configs name teacher and data by relative paths."""
    shutil.copytree(RUNS, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def test_a_run_is_repeated_to_the_same_bits_and_not_resumed(runs):
    config = from_yaml(Pretrain, runs / "cmt_mae" / "config.yaml")
    pretrain(config, runs / "again")
    for name in ("encoder.safetensors", "decoder.safetensors"):
        assert (runs / "again" / name).read_bytes() == (runs / "cmt_mae" / name).read_bytes()
    for name in ("mae", "cmt_mae"):
        with pytest.raises(ValueError, match="no run of an earlier version, which cannot be resumed"):
            pretrain(from_yaml(Pretrain, runs / name / "config.yaml"), runs / name)


def test_it_starts_and_teaches_another(runs):
    config = from_yaml(Pretrain, runs / "cmt_mae" / "config.yaml")
    led = replace(config.method, teacher=config.method.teacher.of("cmt_mae"))
    pretrain(replace(config, init="cmt_mae", method=led), runs / "next")
    encoder = load_encoder("cmt_mae")
    assert isinstance(encoder, Encoder)
    assert torch.isfinite(TeacherConfig(source="cmt_mae").build(encoder)(torch.rand(2, 3, 16, 16)).patches).all()


def test_pages_and_scores(runs, capsys):
    for name in ("mae", "cmt_mae"):
        main(["report", name])
        main(["evaluate", "knn", "--encoder", name, "--data", "images.npz"])
        main(["inspect", "spectrum", name])
    assert "no new pictures" not in capsys.readouterr().err
    page = (runs / "cmt_mae" / "report.html").read_text()
    assert "0.5, 1 in the first 10 % of the steps" in page
    assert "What guided the masks" in page
    with np.load(runs / "cmt_mae" / "analysis" / "guidance.npz") as found:
        assert found["row_1"].shape == (6, 16, 16, 3)  # laid over the photos
    assert make_report(runs / "mae").exists()


def test_guidance_of_another_teacher_is_refused(runs):
    shutil.copy(runs / "cmt_mae" / "encoder.safetensors", runs / "mae" / "encoder.safetensors")
    shutil.copy(runs / "cmt_mae" / "encoder.json", runs / "mae" / "encoder.json")
    with pytest.raises(ValueError, match="must be looked at with the teacher of its training; got another teacher"):
        write_rows_of(Guidance, runs / "cmt_mae")
    with pytest.raises(ValueError, match="must be a run of CMT-MAE"):
        write_rows_of(Guidance, runs / "mae")
