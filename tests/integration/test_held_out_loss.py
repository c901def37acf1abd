"""The loss on held-out images while training: it changes nothing, it repeats, and it is there wherever it can be."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from compiled_forwards import CASES
from killed import Killed, kill_after
from tiny import tiny_images, tiny_run

import pantomim.engine.pretrain as engine
from pantomim.config import DataConfig, Validation
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop, View
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.engine.runtime import start_accelerator
from pantomim.engine.setup import open_images
from pantomim.engine.validation import Judge, judged_by
from pantomim.methods.mae import MAE
from pantomim.report.page import make_report

KINDS = ("mae", "beit, ema", "cae, ema", "cmt_mae", "ijepa", "mocov3", "dvae", "vqkd")
FIGURES = {"held_out_loss", "held_out_rankme", "held_out_std"}


@pytest.fixture
def source(tmp_path):
    """Without a test part."""
    with np.load(tiny_images(tmp_path / "divided.npz")) as arrays:
        np.savez(tmp_path / "images.npz", images=arrays["images"])
    return tmp_path / "images.npz"


def run(source, kind="mae", **changes):
    config = replace(tiny_run(source, **{"steps": 6, **changes}), method=CASES[kind])
    return replace(config, data=replace(config.data, second=View())) if kind == "mocov3" else config


def rows(out):
    """What was logged, times and memory aside."""
    lines = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.endswith(("_s", "_gib"))} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_same_with_it_and_resumes_with_it(kind, source, tmp_path, monkeypatch):
    config = run(source, kind, runtime={"save_every": 2, "log_every": 1})
    with_it, cut, without = (tmp_path / name for name in ("with", "cut", "without"))
    pretrain(config, with_it)
    with monkeypatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    pretrain(config, cut)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "judged_by", lambda *_: (None, ""))
        pretrain(config, without)
    figures = FIGURES if kind not in ("dvae", "vqkd") else {"held_out_loss"}
    told = [row for row in rows(with_it) if "held_out_loss" in row]
    assert [row["step"] for row in told] == [2, 4, 6]
    assert all(figures <= row.keys() and np.isfinite([row[name] for name in figures]).all() for row in told)
    assert repr(rows(with_it)) == repr(rows(cut))  # NaN is equal to none
    plain = [{name: value for name, value in row.items() if name not in FIGURES} for row in rows(with_it)]
    assert repr(plain) == repr(rows(without))
    part = "encoder" if figures == FIGURES else "tokenizer"
    assert len({(out / f"{part}.safetensors").read_bytes() for out in (with_it, cut, without)}) == 1


def test_the_same_weights_have_the_same_loss_and_nothing_moves(source, tmp_path):
    config = run(source, optim={"base_lr": 1e-30})  # weights stay
    pretrain(config, tmp_path / "run")
    first, *others = [row for row in rows(tmp_path / "run") if "held_out_loss" in row]
    assert all(row["held_out_loss"] == first["held_out_loss"] for row in others)
    assert len({row["loss"] for row in rows(tmp_path / "run")}) > 1  # of other images and masks


def test_which_images_are_held_out(source, tmp_path, capfd):
    divided = tmp_path / "divided.npz"
    with np.load(divided) as arrays:
        split = np.where(np.arange(80) % 5 == 3, "val", arrays["split"])
        np.savez(tmp_path / "three.npz", images=arrays["images"], split=split)
    cases = {
        "held back": (run(source), "with the loss on 16 held-out images", 16),
        "none": (replace(run(source), data=DataConfig(str(source), holdout=0)), "data.holdout is 0", None),
        "test part": (run(divided), "no val part; validation.share 0.1 takes some of train", None),
        "val part": (run(tmp_path / "three.npz"), "with the loss on 16 held-out images", 16),
        "asked for": (replace(run(divided), validation=Validation(share=0.25)), "on 16 held-out images", 16),
        "too few": (replace(run(source), data=DataConfig(str(source), holdout=0.05)), "held back: 4", None),
    }
    for name, (config, words, count) in cases.items():
        pretrain(config, out := tmp_path / name)
        assert words in capfd.readouterr().err
        assert any("held_out_loss" in row for row in rows(out)) == (count is not None)
        listed = out / "held_out_images.txt"
        assert count == (len(listed.read_text().splitlines()) if listed.exists() else None)
    assert json.loads((tmp_path / "held back" / "data.json").read_text())["held_back"] == 16


@pytest.mark.parametrize(("kind", "rows", "batches"), [("mocov3", 12, 1), ("mae", 8, 2)])
def test_a_loss_that_compares_images_is_taken_on_batches_as_in_training(kind, rows, batches, source, tmp_path):
    config = run(source, kind, batch_size=12)
    images, method = open_images(config), config.method.build(6)
    dataset, _ = judged_by(method, images, config, 6, 1)
    accelerator = start_accelerator(config.runtime, tmp_path)
    how = {"image_size": (16, 16), "crop": Crop(), "seed": 0, "device": "cpu", "second": config.data.second}
    judge = Judge(method, dataset, None, partial(Stream, **how), 1, 6, config, accelerator, 1)
    assert (judge.stream.batch_size, judge.num_batches) == (rows, batches)


def test_broken_images_among_them_are_no_matter(source, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    with np.load(source) as arrays:
        for number, image in enumerate(arrays["images"]):
            np.save(folder / f"{number:02d}.npy", image)
    pretrain(run(folder, steps=3), tmp_path / "first")
    for name in (tmp_path / "first" / "held_out_images.txt").read_text().split()[:3]:
        (folder / name).write_bytes(b"broken")
    pretrain(run(folder, steps=3), tmp_path / "second")
    assert np.isfinite(rows(tmp_path / "second")[-1]["held_out_loss"])


def test_a_collapse_is_warned_of_and_stands_on_the_page(source, tmp_path, monkeypatch, capfd):
    def collapsed(self, *_, **__):  # all features alike
        for block in self.encoder.blocks:
            block.mlp.fc2.weight.data.mul_(0)
            block.attn.proj.weight.data.mul_(0)
        self.encoder.patch_embed.proj.weight.data.mul_(0)

    monkeypatch.setattr(MAE, "update_ema", collapsed)
    pretrain(run(source), tmp_path / "run")
    assert (
        "features have collapsed: they differ by less than 0.01 of their size (held_out_std)" in capfd.readouterr().err
    )
    page = make_report(tmp_path / "run").read_text()
    assert "features have collapsed" in page
    assert "16 held back" in page
    assert "These images have no labels" in page
    assert "evaluate label_free" in page
    assert "evaluate linear" not in page


@pytest.mark.parametrize("killed_after", [1, 3], ids=["before the first checkpoint", "after it"])
def test_given_weights_are_looked_at_before_the_first_step(source, tmp_path, monkeypatch, capfd, killed_after):
    given, whole, cut, lost = (tmp_path / name for name in ("given", "whole", "cut", "lost"))
    pretrain(run(source), given)
    config = run(source, init=str(given), runtime={"save_every": 2, "log_every": 1})
    pretrain(config, whole)
    with monkeypatch.context() as patch:
        kill_after(killed_after, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    pretrain(config, cut)
    first, *others = rows(whole)
    assert (first["step"], first.keys()) == (0, FIGURES | {"step"})
    assert [row["step"] for row in others] == [*range(1, 7)]
    assert repr(rows(whole)) == repr(rows(cut))
    told = capfd.readouterr().err
    assert f"The given weights, on held-out images: loss {first['held_out_loss']:.3g}, rankme" in told
    assert "the given weights had" not in told
    assert f"to {others[-1]['held_out_rankme']:.3g}" in make_report(whole).read_text()

    def flattened(self, *_, **__):
        self.encoder.patch_embed.proj.weight.data.mul_(0.1)

    monkeypatch.setattr(MAE, "update_ema", flattened)
    monkeypatch.setattr("pantomim.engine.validation.KEPT", 0.9)
    finished = pretrain(config, lost)
    assert sum("what these knew may be getting lost" in warning for warning in finished.alarms) == 1
