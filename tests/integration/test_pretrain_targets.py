"""A whole run with features of a teacher: resumed, it ends in the same bits. With an average: `test_held_out_loss`."""

from dataclasses import replace

import pytest
from killed import Killed, kill_after
from tiny import DECODER, ENCODER, tiny_images, tiny_run

from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.methods.mae import MAEConfig
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig


def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    source = tiny_images(tmp_path / "images.npz")
    config = tiny_run(source, steps=6, runtime={"save_every": 2, "log_every": 1})
    target = FeatureTargetConfig(teacher=TeacherConfig("random"))
    config = replace(config, method=MAEConfig(encoder=ENCODER, decoder=DECODER, target=target))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(config, whole)
    with monkeypatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    pretrain(config, cut)
    losses, again = ([row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (whole, cut))
    assert losses == again
    assert losses[-1] != losses[0]
    assert (whole / "encoder.safetensors").read_bytes() == (cut / "encoder.safetensors").read_bytes()
    assert "target_std" in read_metrics(whole / "metrics.jsonl")[0]
