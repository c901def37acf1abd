"""Whole runs with histograms and with features of a teacher: resumed, they end in the same bits."""

from dataclasses import replace

import pytest
from killed import Killed, kill_after
from tiny import BEIT_ENCODER, DECODER, ENCODER, tiny_images, tiny_run

from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.masking.block import BlockMasker
from pantomim.masking.grid import GridMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.teachers.choice import TeacherConfig

BLOCKS = BlockMasker(ratio=0.4, exact=False, min_area=2)  # padded: the number varies
MAE = MAEConfig(encoder=ENCODER, decoder=DECODER)
METHODS = {
    "ema": BEiTConfig(
        encoder=BEIT_ENCODER,
        masker=BLOCKS,
        target=FeatureTargetConfig(teacher=TeacherConfig("ema", blocks=2, momentum=0.9)),
    ),
    "random": replace(MAE, target=FeatureTargetConfig(teacher=TeacherConfig("random"))),
    "hog": BEiTConfig(encoder=BEIT_ENCODER, masker=BLOCKS, target=HOGTargetConfig()),
    "l1": BEiTConfig(
        encoder=BEIT_ENCODER, masker=GridMasker(), target=PixelTargetConfig("pixels", distance=Distance("l1"))
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumes_to_the_same_bits(name, tmp_path, monkeypatch):
    source = tiny_images(tmp_path / "images.npz")
    config = tiny_run(source, steps=6, runtime={"save_every": 2, "log_every": 1})
    config = replace(config, method=METHODS[name])
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
    assert ("target_std" in read_metrics(whole / "metrics.jsonl")[0]) == (name in ("ema", "random"))
