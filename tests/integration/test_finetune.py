"""Fine-tuning from end to end: a run of the one engine, judged by held-out images, that leaves a classifier."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from killed import Killed, kill_after
from PIL import Image
from safetensors.torch import load_file
from tiny import BEIT_ENCODER, CAE_ENCODER, ENCODER, tiny_images, tiny_run

from pantomim.checkpoint import find_checkpoint
from pantomim.cli import main
from pantomim.config import Validation
from pantomim.data.stream import evaluation_batches
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.engine.setup import open_images
from pantomim.evaluate.knn import KNN
from pantomim.formats import load_encoder
from pantomim.formats.native import load_classifier, save_encoder
from pantomim.methods.supervised import SupervisedConfig

METHOD = SupervisedConfig(
    encoder=replace(ENCODER, drop_path=0.1),
    num_classes=4,
    pool="mean",
    head_init="mae",
    learn_positions=True,
    ema=0.9,
    mixup=0.0,
    cutmix=0.0,
    test_margin=1.0,
)
SCALE = {"rule": "uint8: 255 becomes 1", "divisor": 255.0}


@pytest.fixture
def source(tmp_path):
    return tiny_images(tmp_path / "images.npz")


def encoder_at(folder, config=ENCODER, seed=0):
    torch.manual_seed(seed)
    save_encoder(folder, config.build(), scale=SCALE, recipe="tiny")
    return str(folder)


def finetuning(source, encoder=None, **changes):
    optim = {"layer_decay": 0.75, "decay_tokens": False, "base_lr": 0.05} | changes.pop("optim", {})
    run = tiny_run(source, optim=optim, init=encoder, **changes)
    return replace(run, recipe="finetune_mae", method=METHOD, validation=Validation(0.25, every=4))


def test_a_killed_run_resumes_to_the_same_bits_and_the_same_best_step(source, tmp_path, monkeypatch):
    config = finetuning(source, encoder_at(tmp_path), runtime={"save_every": 4, "log_every": 1, "accumulation": 2})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(config, whole)
    with monkeypatch.context() as patch:
        kill_after(10, patch)
        with pytest.raises(Killed):
            pretrain(config, cut)
    pretrain(config, cut)
    for name in ("encoder.safetensors", "classifier.safetensors", "classifier.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    logged = read_metrics(whole / "metrics.jsonl")
    scores = {
        (row["step"], whose): row[f"val_top1{ending}"]
        for row in logged
        if "val_top1" in row
        for whose, ending in (("weights", ""), ("ema", "_ema"))
    }
    assert {step for step, _ in scores} == {4, 8, 12}
    chosen = json.loads((whole / "classifier.json").read_text())["chosen"]
    assert chosen["validation"] == max(scores.values()) == scores[chosen["step"], chosen["weights"]]


def test_what_is_exported_scores_as_it_did_on_the_held_out_images(source, tmp_path):
    config = finetuning(source, encoder_at(tmp_path))
    pretrain(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "classifier.json").read_text())
    checkpoint = find_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    classifier, images = load_classifier(tmp_path / "run"), open_images(config)
    train, held_out = images.train, images.held_out
    assert not set(train.names) & set(held_out.names)
    assert len(held_out) == 16, "a quarter of 64, evenly over four classes"
    (images, ids), *_ = evaluation_batches(held_out, (16, 16), 64, "cpu")
    right = classifier(images).argmax(dim=1) == torch.from_numpy(held_out.labels[ids])
    assert right.double().mean().item() == about["chosen"]["validation"]


@pytest.mark.parametrize("encoder", [ENCODER, BEIT_ENCODER])
def test_timm_loads_the_classifier(source, tmp_path, encoder):
    start = encoder_at(tmp_path, encoder)
    fitted = replace(encoder, relative_position="blocks" if encoder is BEIT_ENCODER else "none")
    config = replace(finetuning(source, start), method=replace(METHOD, encoder=fitted, ema=None))
    pretrain(config, tmp_path / "run")
    network = json.loads((tmp_path / "run" / "classifier.json").read_text())["timm"]
    kind = timm.models.beit.Beit if "class" in network else timm.models.vision_transformer.VisionTransformer
    model = kind(**network["kwargs"]).eval()
    weights = load_file(tmp_path / "run" / "classifier.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("relative_position_index" in name for name in missing)
    images = torch.rand(2, 3, 16, 16)
    ours = load_classifier(tmp_path / "run")
    torch.testing.assert_close(model((images - 0.5) / 0.3), ours(images), rtol=1e-4, atol=1e-5)


def test_a_fine_tuned_run_serves_where_an_encoder_is_wanted(source, tmp_path):
    pretrain(finetuning(source, encoder_at(tmp_path)), tmp_path / "run")
    _, result = KNN(encoder=str(tmp_path / "run"), data=str(source)).to_file()
    assert 0 <= result["trained"]["top1"] <= 1
    encoder, classifier = load_encoder(str(tmp_path / "run")), load_classifier(tmp_path / "run")
    for name, weight in encoder.state_dict().items():
        theirs = classifier.fc_norm if name.startswith("norm.") else classifier.encoder
        assert torch.equal(weight, theirs.state_dict()[name.removeprefix("norm.")]), name


def test_every_adaptation_is_told(source, tmp_path, capfd):
    start = encoder_at(tmp_path, replace(CAE_ENCODER, image_size=(24, 24)))
    wanted = replace(CAE_ENCODER, relative_position="blocks")
    method = replace(METHOD, encoder=wanted, head_init="beit", norm_init="pretrained", learn_positions=False)
    pretrain(replace(finetuning(source, start, steps=4), method=method), tmp_path / "run")
    told = capfd.readouterr().err
    for words in (
        "positions are resampled from (6, 6) to (4, 4)",
        "relative positions are new, zero at first",
        "but the fixed position table, which is that of its formula",
        "the norm after pooling starts as it",
    ):
        assert words in told, words
    assert torch.equal(
        load_file(tmp_path / "run" / "encoder.safetensors")["pos_embed"], wanted.build().state_dict()["pos_embed"]
    )


def test_patches_of_another_size_are_resampled(source, tmp_path, capfd):
    start = encoder_at(tmp_path, replace(ENCODER, patch_size=8))
    pretrain(finetuning(source, start, steps=4), tmp_path / "run")
    assert "the projection of patches is resampled from 8 to 4 pixels" in capfd.readouterr().err


def test_frozen_blocks_stay_as_they_were(source, tmp_path):
    start = encoder_at(tmp_path)
    pretrain(finetuning(source, start, optim={"freeze_blocks": 1}), tmp_path / "run")
    before, after = load_encoder(start).state_dict(), load_classifier(tmp_path / "run").encoder.state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in after if name.startswith("blocks.1.")}


def test_the_encoder_of_pre_training_can_be_frozen_in_part(source, tmp_path):
    start = encoder_at(tmp_path)
    config = tiny_run(source, optim={"freeze_blocks": 1}, init=start)
    pretrain(config, tmp_path / "run")
    before, after = load_encoder(start).state_dict(), load_encoder(str(tmp_path / "run")).state_dict()
    frozen = {name for name in after if torch.equal(after[name], before[name])}
    assert {name for name in frozen if name.startswith("blocks.")} == {n for n in after if n.startswith("blocks.0.")}
    with pytest.raises(ValueError, match=r"freeze_blocks must be at most the blocks of the encoder; got 5"):
        pretrain(replace(config, optim=replace(config.optim, freeze_blocks=5)), tmp_path / "other")


def test_a_few_labels_of_every_class_are_all_that_is_used(source, tmp_path, capfd):
    config = finetuning(source, encoder_at(tmp_path), batch_size=8, steps=4)
    few = replace(config, data=replace(config.data, labels_per_class=4))
    pretrain(few, tmp_path / "run")
    assert "out of 12 (images), judged by 4 held-out images" in capfd.readouterr().err
    assert len((tmp_path / "run" / "training_images.txt").read_text().split()) == 12
    with pytest.raises(ValueError, match="at most one of images, fraction and labels_per_class"):
        replace(config.data, images=4, fraction=0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": replace(METHOD, mixup=0.8), "batch_size": 15}, "even number of images, as mixup and CutMix"),
        ({"method": replace(METHOD, num_classes=7)}, "num_classes must be the classes of the images; got 7"),
        ({"method": replace(METHOD, encoder=replace(ENCODER, width=32))}, "width: 16 there, 32 here"),
        (
            {"method": replace(METHOD, encoder=replace(ENCODER, in_chans=4, mean=(0.5,) * 4, std=(0.3,) * 4))},
            "in_chans must be the channels of the images; got 4",
        ),
    ],
)
def test_what_cannot_work_never_begins(source, tmp_path, changes, words):
    config = replace(finetuning(source, encoder_at(tmp_path)), **changes)
    with pytest.raises(ValueError, match=words):
        pretrain(config, tmp_path / "run")


def test_a_class_with_one_image_is_trained_on_and_not_held_out(tmp_path):
    path = tiny_images(tmp_path / "images.npz")
    with np.load(path) as arrays:
        labels = arrays["labels"].copy()
        train = np.flatnonzero(arrays["split"] == "train")
        labels[train[labels[train] == 3][1:]] = 2
        np.savez(path, images=arrays["images"], labels=labels, split=arrays["split"])
    pretrain(finetuning(path, encoder_at(tmp_path), steps=4), tmp_path / "run")
    assert "val_top1" in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]


def test_it_learns_eight_images_by_heart(tmp_path):
    source = tiny_images(tmp_path / "images.npz", num_images=10)
    config = finetuning(source, encoder_at(tmp_path), batch_size=8, steps=150, optim={"base_lr": 0.3})
    config = replace(config, validation=None, method=replace(METHOD, ema=None, label_smoothing=0.0))
    pretrain(replace(config, data=replace(config.data, crop=replace(config.data.crop, kind="none"))), tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["accuracy"] == 1.0


def test_from_the_command_line(source, tmp_path, capsys):
    command = ["finetune", str(source), "--encoder", encoder_at(tmp_path), "--steps", "6", "--batch-size", "8"]
    command += ["--runtime.tracker", "none", "--runtime.device", "cpu"]
    out = tmp_path / "scratch"
    main([*command, "--scratch", "--out", str(out)])
    said = capsys.readouterr().out
    assert f"Classifier: {out / 'classifier.safetensors'}" in said
    assert f"pantomim predict {out} new_photos/ --out {out / 'predictions.csv'}\n" in said
    assert "init: null" in (tmp_path / "scratch" / "config.yaml").read_text()
    assert "layer_decay: 1.0" in (tmp_path / "scratch" / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        main(["finetune", str(source), "--out", str(tmp_path / "none")])
    assert "--encoder must name pre-trained weights" in capsys.readouterr().err.replace("\n", " ")


def test_an_encoder_of_other_channels_is_adapted(tmp_path, capsys):
    bands = tiny_images(tmp_path / "bands.npz", channels=7)
    options = ["--encoder", encoder_at(tmp_path), "--out", str(tmp_path / "run"), "--steps", "4"]
    main(["finetune", str(bands), *options, "--runtime.tracker", "none", "--runtime.device", "cpu"])
    assert "summed, repeated and rescaled: 7 channel(s) of 3" in " ".join(capsys.readouterr().err.split())
    assert len(load_classifier(tmp_path / "run").encoder.config.mean) == 7


def test_without_held_out_images_the_last_step_is_taken(source, tmp_path):
    config = replace(finetuning(source, encoder_at(tmp_path), steps=4), validation=Validation(0.0))
    pretrain(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "classifier.json").read_text())
    assert about["chosen"] == {"weights": "ema"}
    assert "val_top1" not in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]


def test_images_for_validation_need_labels(tmp_path):
    for name in ("train/a/{}.png", "train/b/{}.png", "test/a/{}.png", "test/b/{}.png", "val/{}.png"):
        for number in range(20):
            path = tmp_path / "set" / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), number, dtype=np.uint8)).save(path)
    config = finetuning(tmp_path / "set", encoder_at(tmp_path))
    with pytest.raises(ValueError, match=r"Source\.val must have labels"):
        pretrain(replace(config, method=replace(METHOD, num_classes=2)), tmp_path / "run")
