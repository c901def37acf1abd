"""The supervised baseline is trained, resumed, exported, scored and reported like any other run."""

from dataclasses import replace

import numpy as np
import pytest
from killed import Killed, kill_after
from tiny import ENCODER, tiny_images, tiny_run

from pantomim.cli import main
from pantomim.data.augment import Augment
from pantomim.engine.initial import start_from
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.evaluate.knn import KNN
from pantomim.methods.supervised import SupervisedConfig

AUGMENT = Augment(rand_augment=2, erasing=0.25)
METHOD = SupervisedConfig(encoder=replace(ENCODER, drop_path=0.1), num_classes=4)


def run(source, **changes):
    config = replace(tiny_run(source, **changes), method=METHOD)
    return replace(config, data=replace(config.data, augment=AUGMENT))


def test_a_run_resumes_to_the_same_bits_and_is_scored(tmp_path, monkeypatch):
    source = tiny_images(tmp_path / "images.npz")
    config = run(source, steps=12, runtime={"save_every": 4, "log_every": 1, "accumulation": 2})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(config, whole)
    metrics = read_metrics(whole / "metrics.jsonl")
    assert all(0 <= row["accuracy"] <= 1 for row in metrics)
    with monkeypatch.context() as patch:
        kill_after(11, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    pretrain(config, cut)
    assert [row["loss"] for row in read_metrics(cut / "metrics.jsonl")] == [row["loss"] for row in metrics]
    for name in ("encoder", "classifier"):
        assert (whole / f"{name}.safetensors").read_bytes() == (cut / f"{name}.safetensors").read_bytes()
    _, result = KNN(encoder=str(whole), data=str(source)).to_file()
    assert 0 <= result["trained"]["top1"] <= 1
    method = METHOD.build()
    assert "its classifier's head is taken too" in start_from(str(whole), method, ["0", "1", "2", "3"])
    assert "its classifier knows other classes" in start_from(str(whole), METHOD.build(), ["3", "2", "1", "0"])


def test_images_without_labels_or_with_other_classes_are_refused(tmp_path):
    source = tiny_images(tmp_path / "images.npz")
    config = run(source)
    with pytest.raises(ValueError, match=r"num_classes must be the classes of the images; got 9, .* Set it to 4"):
        pretrain(replace(config, method=replace(METHOD, num_classes=9)), tmp_path / "run")
    with np.load(source) as arrays:
        np.savez(tmp_path / "bare.npz", images=arrays["images"], split=arrays["split"])
    with pytest.raises(ValueError, match=r"must have a label for every image, as supervised learns from them"):
        pretrain(replace(config, data=replace(config.data, source=str(tmp_path / "bare.npz"))), tmp_path / "run")


def test_from_the_command_line(tmp_path, capsys):
    source, out = tiny_images(tmp_path / "images.npz"), tmp_path / "run"
    command = ["supervised", "--data", str(source), "--size", "micro", "--method.encoder.depth", "1", "--steps", "30"]
    command += ["--batch-size", "8", "--runtime.tracker", "none", "--runtime.device", "cpu"]
    main(["explain", *command])
    assert "label_smoothing  0.1" in capsys.readouterr().out
    main(["pretrain", *command, "--out", str(out)])
    main(["report", str(out)])
    assert "no new pictures" not in capsys.readouterr().err
    assert (out / "report.html").is_file()
