"""Numbers that look like a result and are none: another scale, NaN in weights, collapsed features, very few patches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from classifier_folder import write_classifier
from safetensors.torch import load_file
from segmenter_folder import write_segmenter
from tiny import BEIT_ENCODER, DECODER, ENCODER, tiny_images, tiny_run

from pantomim.cli import main
from pantomim.core.scales import BYTES
from pantomim.engine.pretrain import pretrain
from pantomim.formats import load_encoder
from pantomim.formats.native import save_encoder, save_tokenizer
from pantomim.methods.base import Method
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.dvae import DVAENetworks, DVAESizes
from pantomim.teachers.choice import TeacherConfig

pytestmark = pytest.mark.xdist_group("numbers")  # one process makes what many look at

QUIET = ["--runtime.tracker", "none", "--runtime.device", "cpu", "--steps", "3", "--batch-size", "8"]


def variant(source: Path, name: str, change) -> str:
    """The same labelled images with masks, their pixels changed."""
    arrays = dict(np.load(source))
    np.savez(source.with_name(f"{name}.npz"), **arrays | {"images": change(arrays["images"])})
    return str(source.with_name(f"{name}.npz"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a classifier, a segmenter, a tokenizer, and the same images in three number types."""
    folder = tmp_path_factory.mktemp("numbers")
    source = tiny_images(folder / "bytes.npz", 40)
    arrays = dict(np.load(source))
    labels = arrays["labels"].astype(str)
    np.savez(source, **arrays | {"labels": labels, "masks": (arrays["images"][..., 0] > 80).astype(np.uint8)})
    pretrain(tiny_run(source, steps=3, batch_size=8), folder / "run")
    write_classifier(folder / "classifier")
    write_segmenter(folder / "segmenter", ("class 0", "class 1"), test_size=[16, 16])
    sizes = DVAESizes(vocabulary=8, stride=4, width=4, blocks=1, code_width=4)
    (folder / "tokenizer").mkdir()
    save_tokenizer(folder / "tokenizer", DVAENetworks(sizes), scale=BYTES, recipe="tiny")
    variant(source, "floats", lambda images: images.astype(np.float32))
    variant(source, "twelve_bits", lambda images: images.astype(np.uint16) * 16)
    return folder


# Every place where a network meets images; RUN, DATA and OUT are filled in.
PROTOCOLS = ("knn", "linear", "few_labels", "linear_mae", "attentive", "segmentation")
COMMANDS = {
    "features": "features --encoder RUN --data DATA --out OUT.npz",
    **{name: f"evaluate {name} --encoder RUN --data DATA --out OUT.json" for name in PROTOCOLS},
    "classifier": "evaluate classifier --classifier WORLD/classifier --data DATA --out OUT.json",
    "robustness": "evaluate robustness --classifier WORLD/classifier --data DATA --out OUT.json",
    "segmenter": "evaluate segmenter --segmenter WORLD/segmenter --data DATA --out OUT.json",
    "predict classes": "predict WORLD/classifier DATA --out OUT.csv",
    "predict masks": "predict WORLD/segmenter DATA --out OUT",
    **{name: f"inspect {name} RUN --images DATA --out OUT.html" for name in ("spectrum", "cka", "attention-distance")},
    "encode": "tokenizer encode --tokenizer WORLD/tokenizer --data DATA --out OUT.npz",
    "explain": "explain mae --init RUN --data DATA",
    "init": "pretrain mae --init RUN --data DATA --out OUT",
    "config": "pretrain --config RUN/config.yaml --data DATA --out OUT",
    "teacher": "pretrain dbot --size micro --teacher RUN --data DATA --out OUT",
    "guide": "pretrain mae --size micro --method.masker.kind attention --method.guide.source RUN --data DATA --out OUT",
    "ids": "pretrain beit --size micro --tokenizer WORLD/tokenizer --data DATA --out OUT",
    "finetune": "finetune DATA --encoder RUN --out OUT",
    "segment": "segment DATA --encoder RUN --head linear --out OUT",
}


def words(command: str, world: Path, data: str, out: Path) -> list[str]:
    run = str(world / "run")
    named = command.replace("RUN", run).replace("DATA", str(world / f"{data}.npz")).replace("OUT", str(out))
    found = named.replace("WORLD", str(world)).split()
    return [*found, *QUIET] if found[0] in ("pretrain", "finetune", "segment") else found


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2
    return " ".join((said.err + said.out).split())


FLOATS, TWELVE_BITS = ("floats", "float32: as it is"), ("twelve_bits", "uint16: 65535 becomes 1")


@pytest.mark.parametrize(
    ("name", "data", "own"),
    [*((name, *FLOATS) for name in COMMANDS), *((name, *TWELVE_BITS) for name in ("features", "init", "config"))],
)
def test_images_of_another_scale_are_refused_everywhere(world, tmp_path, capsys, name, data, own) -> None:
    message = refusal(capsys, words(COMMANDS[name], world, data, tmp_path / "out"))
    assert own in message
    assert "Set --data.scale to" in message or "Set --scale to" in message
    assert name == "config" or "uint8: 255 becomes 1" in message
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("data", "scale"), [("floats", "255"), ("twelve_bits", "4080")])
def test_with_the_scale_that_is_given_features_are_those_of_bytes(world, tmp_path, data, scale) -> None:
    for name, more in (("bytes", []), (data, ["--scale", scale])):
        main([*words(COMMANDS["features"], world, name, tmp_path / name), *more])
    ours, theirs = (np.load(tmp_path / f"{name}.npz")["mean"] for name in ("bytes", data))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_given_scale_is_recorded_and_needs_no_second_word(world, tmp_path, capsys) -> None:
    more = ["--data.scale", "255"]
    main([*words("pretrain mae --size micro --data DATA --out OUT", world, "floats", tmp_path / "run"), *more])
    assert json.loads((tmp_path / "run" / "encoder.json").read_text())["scale"] == {
        "divisor": 255.0,
        "rule": "given: 255 becomes 1",
    }
    assert "Values: given: 255 becomes 1" in capsys.readouterr().err
    main(["report", str(tmp_path / "run")])
    assert (tmp_path / "run" / "analysis" / "reconstructions.npz").is_file()
    main(words("features --encoder OUT --data DATA --out OUT.npz", world, "bytes", tmp_path / "run"))


@pytest.mark.parametrize("mean", [0.0, 100.0], ids=["within", "far"])
def test_the_first_images_are_what_normalisation_promises(tmp_path, mean) -> None:
    source = tiny_images(tmp_path / "tiny.npz")
    config = tiny_run(source, steps=3)
    far = MAEConfig(encoder=type(ENCODER)(**{**vars(ENCODER), "mean": (mean,) * 3}), decoder=DECODER)
    run = type(config)(**{**vars(config), "method": far})
    if mean == 0:
        pretrain(run, tmp_path / "run")
        return
    with pytest.raises(ValueError, match=r"about mean 0 and std 1.*got mean -332 and std .*Dataset\.scale"):
        pretrain(run, tmp_path / "run")


@pytest.mark.parametrize("kind", ["constant", "sparse"])
def test_images_with_little_in_them_are_trained_on(tmp_path, kind, capsys) -> None:
    images = np.full((400, 16, 16), 7, np.uint8)
    if kind == "sparse":
        images[:] = 0
        images[::97, 4:8, 4:8] = 255
    np.savez(tmp_path / "few.npz", images=images)
    main(
        [
            "pretrain",
            "mae",
            "--data",
            str(tmp_path / "few.npz"),
            "--size",
            "micro",
            "--out",
            str(tmp_path / "r"),
            *QUIET,
        ]
    )
    assert ("channel 0 of" in capsys.readouterr().err) == (kind == "constant")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, float("nan")) for name in ("features", "linear_mae", "spectrum", "init", "teacher")),
        ("features", float("inf")),
    ],
)
def test_weights_that_are_not_finite_are_refused(world, tmp_path, capsys, name, value) -> None:
    broken = load_encoder(world / "run")
    broken.blocks[0].attn.qkv.weight.data[0, 0] = value
    save_encoder(tmp_path, broken, scale=BYTES, recipe="broken")
    command = COMMANDS[name].replace("RUN", str(tmp_path))
    message = refusal(capsys, words(command, world, "bytes", tmp_path / "out"))
    assert "must hold finite weights; got NaN or infinity in blocks.0.attn.qkv.weight" in message


def test_a_collapsed_encoder_is_named_wherever_it_is_looked_at(world, tmp_path, capsys) -> None:
    collapsed = load_encoder(world / "run")
    torch.nn.init.zeros_(collapsed.norm.weight)
    torch.nn.init.ones_(collapsed.norm.bias)
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "finished.json", "decoder.json", "decoder.safetensors", "metrics.jsonl"):
        (folder / name).write_bytes((world / "run" / name).read_bytes())
    save_encoder(folder, collapsed, scale=BYTES, recipe="collapsed")
    for name in ("features", "knn", "segmentation", "spectrum"):
        command = COMMANDS[name].replace("RUN", str(folder)).replace("OUT.json", f"{folder}/eval/{name}.json")
        main(words(command.replace("OUT.html", f"{folder}/analysis/{name}.html"), world, "bytes", tmp_path / name))
        said = capsys.readouterr()
        assert "the encoder has collapsed" in " ".join((said.err + said.out).split()), name
    assert "has collapsed" in json.loads((folder / "eval" / "knn.json").read_text())["warnings"][0]
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert page.count("has collapsed") >= 4, "two scores, an analysis and the pictures"
    assert "has collapsed" in (folder / "analysis" / "spectrum.html").read_text()


@pytest.mark.parametrize("name", ["target_std", "feature_std"])
def test_features_that_collapse_in_training_are_named(name: str) -> None:
    assert Method.warning(None, {name: 0.5}) is None
    assert Method.warning(None, {name: None}) is None
    assert "collapsed" in Method.warning(None, {name: 0.01})


def test_dbot_logs_how_far_its_targets_differ(tmp_path) -> None:
    config = tiny_run(tiny_images(tmp_path / "tiny.npz"), steps=3)
    method = DBOTConfig(encoder=BEIT_ENCODER, decoder=DECODER, teacher=TeacherConfig(source="ema"))
    pretrain(type(config)(**{**vars(config), "method": method}), tmp_path / "run")
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert 0.1 < logged["target_std"] < 2


@pytest.mark.parametrize("command", ["explain", "pretrain"])
def test_few_patches_are_told_with_the_choices(world, tmp_path, capsys, command) -> None:
    line = f"{command} mae --data DATA --size micro --method.encoder.patch_size 8 --out OUT"
    main(words(line, world, "bytes", tmp_path / "run"))
    told = " ".join(capsys.readouterr().err.split())
    assert "few patches: 2 x 2 of 8 pixels, of which 1 are visible" in told
    assert "method.encoder.image_size 64 64" in told
    if command == "pretrain":
        assert "few patches" in json.loads((tmp_path / "run" / "finished.json").read_text())["alarms"][0]


def test_an_encoder_goes_on_with_other_channels(world, tmp_path) -> None:
    """More of them than it has: `test_finetune`."""
    out, source = tmp_path / "run", tiny_images(tmp_path / "other.npz", 40, channels=1)
    main(["pretrain", "mae", "--init", str(world / "run"), "--data", str(source), "--out", str(out), *QUIET])
    weights = load_file(out / "encoder.safetensors")["patch_embed.proj.weight"]
    assert weights.shape[1] == 1
    assert len(json.loads((out / "encoder.json").read_text())["mean"]) == 1
    assert "summed: 1 channel(s) of 3" in (out / "environment.json").read_text()


def test_labels_of_bytes_are_words(tmp_path, capsys) -> None:
    from pantomim.data.sources import open_source

    labels = np.array([b"cat", "Köln".encode(), b"cat", b"dog"])
    np.savez(tmp_path / "b.npz", images=np.zeros((4, 8, 8), np.uint8), labels=labels, split=["train"] * 4)
    assert open_source(str(tmp_path / "b.npz")).classes == ("Köln", "cat", "dog")
