"""Segmentation from end to end: a run of the one engine, its scores, predicted masks, and what pre-training changed."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from classifier_folder import labelled, write_classifier
from image_files import fill, png
from killed import Killed, kill_after
from masked_images import ade20k_files, encoded, masked_arrays, masked_folder, regions
from PIL import Image
from tiny import ENCODER, tiny_images, tiny_run

from pantomim.checkpoint import find_checkpoint
from pantomim.cli import main
from pantomim.config import DataConfig, MaskConfig, Validation
from pantomim.core.batch import IGNORE
from pantomim.core.scores import count_pixels, means
from pantomim.data.mask_crops import MaskCrop
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.engine.setup import open_images
from pantomim.evaluate.segmenter import TrainedSegmenter, most_frequent, unpacked
from pantomim.formats import load_encoder
from pantomim.formats.native import load_segmenter, save_encoder
from pantomim.methods.segment import SegmentConfig
from pantomim.nn.segmenter import LinearHeadConfig, UPerNetConfig

UPERNET = UPerNetConfig(channels=8, auxiliary_channels=8, pool_scales=(1, 2))
SCALES = {3: {"rule": "uint8: 255 becomes 1", "divisor": 255.0}, 7: {"rule": "int16", "divisor": 10000.0}}
QUICK = ["--steps", "6", "--batch-size", "8", "--runtime.tracker", "none", "--runtime.device", "cpu"]


def encoder_of(channels=3):
    values = {"mean": (0.5,) * channels, "std": (0.3,) * channels}
    return replace(ENCODER, image_size=(32, 32), depth=4, in_chans=channels, **values)


def encoder_at(folder, channels=3):
    torch.manual_seed(0)
    save_encoder(folder, encoder_of(channels).build(), scale=SCALES[channels], recipe="tiny")
    return str(folder)


def segmenting(source, encoder=None, *, channels=3, head=UPERNET, optim=None, **changes):
    optim = {"layer_decay": 0.75, "base_lr": 0.2} | (optim or {})
    run = tiny_run(source, batch_size=8, optim=optim, init=encoder, **changes)
    encoder_config = replace(encoder_of(channels), drop_path=0.1, relative_position="blocks", layer_scale=1.0)
    crop = MaskCrop(base=(160, 40), ratio=(0.75, 1.5), distortion=None, fill=encoder_config.mean)
    return replace(
        run,
        recipe="segment_mae",
        data=DataConfig(str(source), masks=MaskConfig(crop=crop)),
        method=SegmentConfig(encoder=encoder_config, num_classes=3, head=head),
        validation=Validation(0.25, every=4),
    )


def said_by(capsys, *words):
    main([str(word) for word in words])
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def fails(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def result_of(run, data="arrays"):
    return json.loads((run / "eval" / f"segment-{data}.json").read_text())


@pytest.fixture
def source(tmp_path):
    return masked_arrays(tmp_path / "arrays.npz")


@pytest.fixture
def run(source, tmp_path):
    pretrain(segmenting(source, encoder_at(tmp_path / "encoder"), head=LinearHeadConfig(), steps=4), tmp_path / "run")
    return tmp_path / "run"


def test_a_killed_run_resumes_to_the_same_bits_and_the_same_best_step(source, tmp_path, monkeypatch):
    start = encoder_at(tmp_path / "encoder")
    config = segmenting(source, start, runtime={"save_every": 4, "log_every": 1, "accumulation": 2})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(config, whole)
    with monkeypatch.context() as patch:
        kill_after(10, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    assert find_checkpoint(cut / "checkpoints").step == 4
    pretrain(config, cut)
    for name in ("encoder.safetensors", "segmenter.safetensors", "segmenter.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    scores = {row["step"]: row["val_miou"] for row in read_metrics(whole / "metrics.jsonl") if "val_miou" in row}
    assert list(scores) == [4, 8, 12]
    chosen = json.loads((whole / "segmenter.json").read_text())["chosen"]
    assert chosen["validation"] == max(scores.values()) == scores[chosen["step"]]


@pytest.mark.parametrize(("head", "channels"), [(UPERNET, 7), (LinearHeadConfig(), 3)])
def test_each_head_learns_and_what_is_exported_scores_as_it_did(tmp_path, head, channels):
    source, start = masked_arrays(tmp_path / "arrays.npz", channels), encoder_at(tmp_path / "encoder", channels)
    config = segmenting(source, start, channels=channels, head=head, steps=40)
    pretrain(replace(config, validation=Validation(0.25, every=20)), tmp_path / "run")
    trained, masks = TrainedSegmenter.open(tmp_path / "run", torch.device("cpu")), open_images(config).masks
    held_out = open_images(config).held_out
    counts, _ = trained.counts(held_out, masks)
    found = means(counts.sum(dim=0))["miou"]
    assert found == trained.about["chosen"]["validation"]
    assert found > 2 * most_frequent(counts, trained.classes)["miou"], "colours are classes"


@pytest.mark.parametrize("head", [UPERNET, LinearHeadConfig()], ids=["upernet", "linear"])
def test_a_frozen_encoder_keeps_its_bits(source, tmp_path, head):
    start = encoder_at(tmp_path / "encoder")
    pretrain(segmenting(source, start, head=head, optim={"freeze_blocks": 4}), tmp_path / "run")
    after = load_segmenter(tmp_path / "run").encoder.state_dict()
    before = {name: weight for name, weight in load_encoder(start).state_dict().items() if name in after}
    assert {name for name in before if name.startswith("norm.")} == ({"norm.weight", "norm.bias"} & after.keys())
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    assert not any(after[name].any() for name in after if name.endswith("relative_position_bias_table"))


def test_a_folder_like_ade20k_from_the_command_line(tmp_path, capsys):
    data, start, out = (
        fill(tmp_path / "ade", ade20k_files(counts=(16, 6))),
        encoder_at(tmp_path / "encoder"),
        tmp_path / "run",
    )
    said = said_by(capsys, "segment", data, "--encoder", start, "--head", "linear", *QUICK, "--out", out)
    assert "segment on ade: mean IoU" in said
    assert f"pantomim predict {out} new_photos/ --out {out / 'predictions'} " in said, "masks lie beside the images"
    about, result = json.loads((out / "segmenter.json").read_text()), result_of(out, "ade")
    assert about["classes"] == ["wall", "bed", "windowpane, window"]
    assert (about["class_ids"], about["no_class"]) == ([1, 2, 3], 0)
    assert result["data"]["num_test"] == 6
    said_by(capsys, "predict", out, data / "images" / "validation", "--out", tmp_path / "masks")
    written = sorted((tmp_path / "masks").glob("*.png"))
    assert [file.stem for file in written] == [f"ADE_val_{k:08}" for k in range(6)]
    assert json.loads((tmp_path / "masks" / "classes.json").read_text()) == dict(
        zip("123", about["classes"], strict=True)
    )
    truth = [np.asarray(Image.open(data / "annotations" / "validation" / file.name)) for file in written]
    guesses = [np.asarray(Image.open(file)) for file in written]
    assert {int(value) for guess in guesses for value in np.unique(guess)} <= {1, 2, 3}
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for guess, ids in zip(guesses, truth, strict=True):
        labels = torch.from_numpy(np.where((ids == 0) | (ids == 255), IGNORE, ids - 1).astype(np.int64))
        counts += count_pixels(torch.from_numpy(guess.astype(np.int64) - 1)[None], labels[None], 3)[0]
    assert means(counts)["miou"] == pytest.approx(result["trained"]["miou"]), "written masks are what was scored"


def test_predicted_masks_lie_as_the_images_do(run, tmp_path, capsys):
    files = {"a/one.png": png(1, (20, 30)), "a/one.tiff": b"no image", "b/two.png": png(2, (40, 18))}
    files |= {"b/cut.png": png(3, (20, 20))[:-60]}
    photos, out = fill(tmp_path / "photos", files), tmp_path / "masks"
    said = said_by(capsys, "predict", run, photos, "--out", out, "--overlays")
    assert "2 images predicted" in said
    assert "2 images cannot be read" in said
    there = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    shown = {"a/one.png.png", "a/one.png.overlay.png", "b/two.png", "b/two.overlay.png"}
    assert there == {*shown, "classes.json", "errors.csv", ".pantomim"}
    assert np.asarray(Image.open(out / "b/two.png")).shape == (40, 18)
    assert np.asarray(Image.open(out / "b/two.overlay.png")).shape == (40, 18, 3)
    rows = csv.DictReader((out / "errors.csv").read_text().splitlines())
    assert [row["file"] for row in rows] == ["a/one.tiff", "b/cut.png"]
    assert "--out must be a new or an empty folder" in fails(capsys, "predict", run, photos, "--out", out)
    said_by(capsys, "predict", run, photos / "b" / "two.png", "--out", out, "--overwrite")
    assert (out / "two.png").read_bytes() == (out / "b" / "two.png").read_bytes()
    assert not (out / "errors.csv").exists(), "of this time"
    for place in (photos, photos / "b"):
        image = photos if place == photos else photos / "b" / "two.png"
        assert "apart from the images" in fails(capsys, "predict", run, image, "--out", place, "--overwrite")


def test_how_much_pre_training_changed(source, tmp_path, capsys):
    start, out = encoder_at(tmp_path / "encoder"), tmp_path / "run"
    command = ["segment", source, "--encoder", start, "--head", "linear", *QUICK, "--out", out]
    said_by(capsys, *command)
    plain = result_of(out)
    said = said_by(capsys, *command, "--compare")
    assert "is complete and was left as it is" in said
    assert "From scratch: segment on arrays" in said
    assert "points against the same training from scratch" in said
    config, scratch = ((folder / "config.yaml").read_text() for folder in (out, out / "scratch"))
    assert "init: null" in scratch
    changed = [line for line in zip(config.splitlines(), scratch.splitlines(), strict=True) if line[0] != line[1]]
    assert all("init" in line or "layer_decay" in line for line, _ in changed), changed
    result, theirs = result_of(out), result_of(out / "scratch")
    assert result["trained"] == plain["trained"]
    other = result["against"]
    assert (other["from_scratch"], other["miou"]) == (True, theirs["trained"]["miou"])
    assert other["difference"] == pytest.approx(result["trained"]["miou"] - theirs["trained"]["miou"])
    before = (out / "eval" / "segment-arrays.json").stat().st_mtime_ns
    assert "points against" in said_by(capsys, *command, "--compare")
    assert (out / "eval" / "segment-arrays.json").stat().st_mtime_ns == before, "what is there is not scored again"
    (out / "eval" / "segment-arrays.json").unlink()
    said_by(capsys, *command)
    assert result_of(out)["trained"] == plain["trained"], "what is missing is"
    said_by(capsys, *command, "--compare")
    main(["report", str(out)])
    page = " ".join((out / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ").split())
    assert f"the same training from scratch, in {out / 'scratch'}, reaches" in page
    assert "From scratch" in page
    scratch_run = ["segment", source, "--scratch", "--size", "micro", *QUICK, "--out", tmp_path / "other", "--compare"]
    assert "--compare must be left out for a run from scratch" in fails(capsys, *scratch_run)
    assert not (tmp_path / "other").exists()


def test_the_same_of_classifiers(tmp_path, capsys):
    source, out = tiny_images(tmp_path / "images.npz"), tmp_path / "run"
    command = ["finetune", source, "--encoder", encoder_at(tmp_path / "encoder"), *QUICK, "--out", out, "--compare"]
    said = said_by(capsys, *command)
    assert "From scratch: finetune on images: top-1" in said
    assert re.search(r"finetune on images: top-1 [^;]*; next the same from scratch", said)
    result = json.loads((out / "eval" / "finetune-images.json").read_text())
    theirs = json.loads((out / "scratch" / "eval" / "finetune-images.json").read_text())
    assert result["against"]["from_scratch"]
    assert result["against"]["top1"] == theirs["trained"]["top1"]
    main(["report", str(out)])
    assert "Pre-training changes top-1 by" in (out / "report.html").read_text()


def test_the_run_of_a_file_is_the_same_run(source, tmp_path, capsys):
    start, out, again = encoder_at(tmp_path / "encoder"), tmp_path / "run", tmp_path / "again"
    said_by(capsys, "segment", source, "--encoder", start, "--head", "linear", *QUICK, "--out", out)
    said_by(capsys, "segment", "--config", out / "config.yaml", "--out", again)
    for name in ("config.yaml", "segmenter.safetensors"):
        assert (out / name).read_bytes() == (again / name).read_bytes(), name
    message = fails(capsys, "segment", "--config", out / "config.yaml", "--masks", "other", "--out", tmp_path / "new")
    assert "--masks" in message
    assert "must be left out beside --config" in message


def test_without_a_test_part_there_is_a_run_and_no_score(tmp_path, capsys):
    data = masked_folder(tmp_path / "set", {"train": 12, "val": 3, "test": 3})
    shutil.rmtree(data / "masks" / "test")
    arguments = ["--encoder", encoder_at(tmp_path / "encoder"), "--head", "linear", *QUICK, "--out", tmp_path / "run"]
    said = said_by(capsys, "segment", data, *arguments)
    assert "no score: Dataset.broken must" in said
    assert "has no mask in masks" in said
    assert (tmp_path / "run" / "segmenter.safetensors").is_file()
    unlabelled = fill(tmp_path / "photos", {f"train/{c}/{k}.png": png(k, (16, 16)) for c in "ab" for k in range(9)})
    fill(unlabelled, {f"test/{k}.png": png(k, (16, 16)) for k in range(4)})
    said = said_by(capsys, "finetune", unlabelled, *arguments[:2], *QUICK, "--out", tmp_path / "classifier")
    assert "no score: Classifier.images must have labels" in said


def masks_with(change):
    """A folder whose masks are changed one by one."""

    def make(tmp_path):
        root = masked_folder(tmp_path / "changed", {"train": 12, "val": 3, "test": 3})
        for file in sorted((root / "masks" / "train").iterdir())[:2]:
            change(file)
        return root

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (masks_with(lambda file: file.write_bytes(encoded(regions(0, (40, 30)) + 7))), "with class 7, 8, 9, neither"),
        (masks_with(lambda file: file.write_bytes(encoded(regions(0, (9, 9))))), "has a mask of 9x9 pixels, itself"),
        (masks_with(lambda file: file.unlink()), "has no mask in masks"),
        (
            lambda at: masked_folder(at / "two", folder="masks_a") and masked_folder(at / "two"),
            "--masks must say which",
        ),
        (lambda at: fill(at / "photos", {"1.png": png(1, (40, 40))}), "DATA must have masks beside its images"),
        (lambda at: tiny_images(at / "images.npz"), "must be an array (N, H, W) of class ids; got none of that name"),
    ],
    ids=[
        "beyond the list",
        "another size",
        "no mask",
        "which masks",
        "no masks",
        "no array of masks",
    ],
)
def test_data_that_cannot_work_are_refused_by_name(tmp_path, capsys, make, message):
    command = ["segment", make(tmp_path), "--encoder", encoder_at(tmp_path / "encoder"), "--head", "linear", *QUICK]
    assert message in fails(capsys, *command, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "finished.json").exists()


def test_a_network_of_another_kind_is_refused_by_name(run, source, tmp_path, capsys):
    classifier, photos = (
        write_classifier(tmp_path / "classifier"),
        fill(tmp_path / "photos", {"1.png": png(1, (16, 16))}),
    )
    data = labelled(tmp_path / "set.npz", tuple("0123"))
    message = fails(capsys, "evaluate", "segmenter", "--segmenter", classifier, "--data", source)
    assert "--segmenter must be the folder of a fine-tuned run" in message
    assert "which has a classifier. `pantomim segment` makes a segmenter" in message
    message = fails(capsys, "evaluate", "classifier", "--classifier", run, "--data", data)
    assert "which has a segmenter. `pantomim finetune` makes a classifier" in message
    message = fails(capsys, "predict", encoder_at(tmp_path / "pre"), photos, "--out", tmp_path / "masks")
    assert "which has an encoder alone. `pantomim finetune` makes a classifier" in message
    message = fails(capsys, "predict", run, photos, "--out", tmp_path / "masks", "--top", "2")
    assert "--top must be left out for a segmenter" in message
    message = fails(capsys, "predict", classifier, photos, "--out", tmp_path / "p.csv", "--overlays")
    assert "--overlays must be left out for a classifier" in message
    assert "must be a folder apart from" in fails(capsys, "predict", run, photos, "--out", tmp_path / "p.csv")


def test_two_runs_on_the_same_images(run, source, tmp_path, capsys):
    pretrain(segmenting(source, head=LinearHeadConfig(), steps=4), tmp_path / "other")
    score = ["evaluate", "segmenter", "--data", source, "--segmenter"]
    assert "--masks must be an array (N, H, W)" in fails(capsys, *score, run, "--masks", "other")
    message = fails(capsys, *score, run, "--against", tmp_path / "other")
    assert "--against must be a run that was scored on the same images" in message
    said_by(capsys, *score, tmp_path / "other")
    assert f"points against {tmp_path / 'other'}" in said_by(capsys, *score, run, "--against", tmp_path / "other")
    counts = unpacked(result_of(run)["trained"]["counts"])
    assert counts.shape == (8, 3, 3)
    assert means(counts.sum(dim=0))["miou"] == result_of(run)["trained"]["miou"]
