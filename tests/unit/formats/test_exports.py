"""Networks of ours as files of other libraries, read back by these alone."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import RepoUrl
from PIL import Image
from tiny import BEIT_ENCODER, CAE_ENCODER, ENCODER, MOCO_ENCODER, tiny_images

import pantomim
from pantomim.cli import main
from pantomim.formats.exports import DESTINATIONS, export
from pantomim.formats.exports.card import placeless
from pantomim.formats.exports.destination import largest_difference, quiet
from pantomim.formats.exports.network import Network, Outputs
from pantomim.formats.exports.to_timm import ToTimm
from pantomim.formats.native import save_classifier, save_encoder, save_segmenter
from pantomim.nn.heads import Classifier
from pantomim.nn.mlp import MlpConfig
from pantomim.nn.rope import Rope
from pantomim.nn.segmenter import LinearHeadConfig, Segmenter
from pantomim.nn.vit import Norms

PLACES = {place.name: place for place in DESTINATIONS}
SCALE = {"rule": "uint8: 255 becomes 1", "divisor": 255.0}
GATED, LEARNED = MlpConfig("silu", gated=True), replace(ENCODER, position="learned")
ROPE = replace(ENCODER, width=32, position="none", attention_bias="qv", rope=Rope(), registers=2, norms=Norms(1e-5))
EVA = replace(ROPE, position="learned", registers=0, norms=Norms(), rope=Rope(1e4, "patches", (16, 16)), mlp=GATED)
# An encoder, the networks it becomes in timm and transformers, and the same of a classifier; None: there is none
NETWORKS = {
    "mae, dbot, colormae, milan, cmt_mae": (ENCODER, "VisionTransformer", "ViTModel"),
    "beit, simmim, maskfeat": (BEIT_ENCODER, "Beit", "BeitModel"),
    "data2vec": (replace(BEIT_ENCODER, relative_position="blocks"), "Beit", "BeitModel"),
    "cae": (CAE_ENCODER, "Beit", "BeitModel"),
    "mocov3": (MOCO_ENCODER, "VisionTransformer", "ViTModel"),
    "ijepa": (replace(ENCODER, class_token=False), "VisionTransformer", "IJepaModel"),
    "DINOv2": (replace(LEARNED, layer_scale=0.1), "VisionTransformer", "Dinov2Model"),
    "DINOv2, registers": (replace(LEARNED, registers=2), "VisionTransformer", "Dinov2WithRegistersModel"),
    "DINOv3": (ROPE, "Eva", "DINOv3ViTModel"),
    "DINOv3, gated": (replace(ROPE, mlp=GATED, attention_bias="none", layer_scale=0.1), "Eva", "DINOv3ViTModel"),
    "EVA-02, tiny": (EVA, "Eva", None),
    "EVA-02, base": (replace(EVA, mlp=replace(GATED, norm=True)), "Eva", None),
    "SigLIP": (replace(LEARNED, class_token=False, mlp=MlpConfig("gelu_tanh")), "VisionTransformer", "SiglipVision"),
    "CLIP": (
        replace(LEARNED, norms=Norms(1e-5, first=True), mlp=MlpConfig("quick_gelu")),
        "VisionTransformer",
        "CLIPVisionModel",
    ),
    "norms of queries and keys": (replace(LEARNED, norms=Norms(qk=True)), "VisionTransformer", None),
    "EVA-02, norms of queries and keys": (replace(EVA, norms=Norms(qk=True)), "Eva", None),
    "gated": (replace(LEARNED, mlp=GATED), "VisionTransformer", None),
    "no final norm": (replace(BEIT_ENCODER, norms=Norms(final=False)), "Beit", "BeitModel"),
    "rope, bias of keys": (replace(ROPE, attention_bias="qkv", norms=Norms()), None, "DINOv3ViTModel"),
    "not square, five bands": (
        replace(ENCODER, image_size=(16, 24), in_chans=5, mean=(0.1,) * 5, std=(0.5,) * 5),
        "VisionTransformer",
        "ViTModel",
    ),
}
CLASSIFIERS = {
    ("mae", "mean"): (ENCODER, "VisionTransformer", "BeitForImageClassification"),
    ("mae", "class"): (ENCODER, "VisionTransformer", "ViTForImageClassification"),
    ("mae", "normed_mean"): (ENCODER, "VisionTransformer", "Dinov2ForImageClassification"),
    ("beit", "mean"): (BEIT_ENCODER, "Beit", "BeitForImageClassification"),
    ("cae", "class"): (CAE_ENCODER, "Beit", "BeitForImageClassification"),
    ("ijepa", "normed_mean"): (replace(ENCODER, class_token=False), "VisionTransformer", "IJepaForImage"),
    ("registers", "class"): (replace(LEARNED, registers=2), "VisionTransformer", "Dinov2WithRegistersForImage"),
    ("EVA-02", "mean"): (EVA, "Eva", None),
}


def scrambled(module):
    """No weight at a value at which it has no effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return module.eval()


def network_of(kind, config, pool="mean"):
    encoder = config.build()
    if kind == "encoder":
        return Network("tiny", kind, scrambled(encoder))
    about = {"classes": ["a", "b", "c"], kind: {"num_classes": 3}}
    module = Classifier(encoder, 3, pool) if kind == "classifier" else Segmenter(encoder, 3, LinearHeadConfig())
    return Network("tiny", kind, scrambled(module), about=about)


def check(network, to, expected, folder):
    """That what is written is of this class and computes the same for any number of images, or is refused."""
    if expected is None:
        with pytest.raises(ValueError, match=rf"got {to}, which has none: .* Use onnx or exported_program"):
            PLACES[to].write(network, folder)
        return
    assert expected in PLACES[to].write(network, folder)[0]
    with quiet(), torch.no_grad():
        loaded = PLACES[to].read(network, folder)
        for count in (3, 1):
            images = torch.randint(256, (count, network.encoder.in_chans, *network.encoder.image_size)) / 255
            assert largest_difference(loaded(images), Outputs(network.module)(images)) < 1e-4


@pytest.mark.parametrize("to", ["timm", "hf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_encoder_is_the_librarys_own(name, to, tmp_path):
    config, *expected = NETWORKS[name]
    check(network_of("encoder", config), to, expected[to == "hf"], tmp_path)


@pytest.mark.parametrize("to", ["timm", "hf"])
@pytest.mark.parametrize("name", CLASSIFIERS, ids=str)
def test_a_classifier_is_the_librarys_own(name, to, tmp_path):
    config, *expected = CLASSIFIERS[name]
    network = network_of("classifier", config, name[1])
    check(network, to, expected[to == "hf"], tmp_path)
    if expected[to == "hf"] is not None:
        about = json.loads((tmp_path / "config.json").read_text())
        named = about["label_names"] if to == "timm" else list(about["id2label"].values())
        assert named == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        *((kind, "exported_program") for kind in ("encoder", "classifier", "segmenter")),
        *(pytest.param(kind, "onnx", marks=pytest.mark.slow) for kind in ("encoder", "segmenter")),
    ],
)
def test_every_network_has_a_graph(kind, to, tmp_path):
    config = BEIT_ENCODER if kind == "encoder" else ROPE
    check(network_of(kind, config), to, "whose batch is free", tmp_path)


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_segmenters_are_for_graphs(to, tmp_path):
    check(network_of("segmenter", ENCODER), to, None, tmp_path)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    save_encoder(folder, scrambled(ENCODER.build()), scale=SCALE, recipe="mae_tiny")
    source = tiny_images(tmp_path / "images.npz")
    (folder / "config.yaml").write_text(
        f"data: {{source: {source}, scale: null}}\nmethod: {{kind: mae}}\nbatch_size: 8\n"
    )
    (folder / "eval").mkdir()
    result = {"protocol": "knn", "dataset": "tiny", "data": {"num_test": 16}, "trained": {"top1": 0.5}}
    (folder / "eval" / "knn.json").write_text(json.dumps(result | {"pixels": {"top1": 0.25}}))
    (folder / "eval" / "torn.json").write_text("{")
    return folder


def test_a_run_leaves_with_its_card(run, capsys):
    main(["export", str(run), "--to", "timm"])
    said = capsys.readouterr().out
    assert "timm's VisionTransformer" in said
    assert "on 12 images of images" in said
    out = run / "export" / "timm"
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1
    card = (out / "README.md").read_text()
    for line in (
        "- recipe: mae_tiny",
        "- data: images.npz",
        "| knn | tiny | 16 of 16 x 16 | top-1 | 50.0 % |  | 25.0 % |",
    ):
        assert line in card
    assert "Not read: torn.json" in card
    assert str(run.parent) not in card, "places on the disk are nobody's business"
    with pytest.raises(ValueError, match=r"export\.out must be a new or an empty folder; got .*timm"):
        export(run, "timm")


def test_what_differs_is_not_left_behind(run, tmp_path, monkeypatch):
    honest = ToTimm.read
    monkeypatch.setattr(
        ToTimm, "read", lambda *given: lambda images: tuple(output + 1e-3 for output in honest(*given)(images))
    )
    with pytest.raises(ValueError, match=r"got 1\.0e-03 as the largest difference of timm's VisionTransformer"):
        export(run, "timm", tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images.npz", "run"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "tensorflow"}, r"export\.to must be one of timm, hf, onnx, exported_program"),
        ({"run": "encoder.safetensors", "out": None}, r"export\.out must be given"),
        ({"image_size": (18, 16)}, r"multiple of the patches of the encoder, 4 x 4 pixels; got 18 x 16\. Choose 16 16"),
        ({"images": "mnist"}, r"export\.images must have 3 channel\(s\), as the network takes; got 1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_explained(run, tmp_path, changes, message):
    asked = {"run": run, "to": "timm", "out": tmp_path / "out"} | changes
    if "run" in changes:
        asked["run"] = run / changes["run"]
    with pytest.raises(ValueError, match=message):
        export(**asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("to", "package", "extra"), [("onnx", "onnxruntime", "onnx"), ("hf", "transformers", "hf")])
def test_a_missing_package_is_named(run, tmp_path, monkeypatch, to, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"`pip install 'pantomim\[{extra}\]'`"):
        export(run, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_gone_are_drawn_and_said_so(run, tmp_path, caplog):
    (tmp_path / "images.npz").unlink()
    found = export(run, "timm", image_size=(24, 16))
    assert found.out.name == "timm-24x16"
    assert "on 12 drawn images, which are no photographs.\n" in str(found)
    assert str(tmp_path) in caplog.text
    assert str(tmp_path) not in (found.out / "README.md").read_text()
    assert "16 of 16 x 16 |" in (found.out / "README.md").read_text(), "not of the size that leaves"


@pytest.mark.parametrize("side", [24, 16])
def test_few_images_that_must_be_resized_are_tried_too(run, tmp_path, side):
    source = tiny_images(tmp_path / "few.npz", 15, side=side)
    assert "on 12 images of few" in str(export(run, "hf", tmp_path / "out", images=str(source)))


def test_a_network_of_a_given_scale_is_tried_on_named_images(run, tmp_path):
    save_encoder(run, ENCODER.build(), scale={"rule": "given: 200 becomes 1", "divisor": 200.0}, recipe="tiny")
    assert "on 12 images" in str(export(run, "timm", images=str(tmp_path / "images.npz")))
    about = json.loads((run / "export" / "timm" / "config.json").read_text())["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=about))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    expected = (pantomim.load(run).transform(picture)[0] - 0.5) / 0.3
    torch.testing.assert_close(transform(picture), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("init", "named"),
    [
        ("hf:/home/alice/dino", "hf:dino"),
        ("timm:vit_small@/home/alice/w.pth", "timm:vit_small@w.pth"),
        ("clip:../alice/b.pt", "clip:b.pt"),
        ("/home/alice/runs/mae/", "mae"),
        ("hf:facebook/dino", "hf:facebook/dino"),
        ("open_clip:ViT-B-16:laion", "open_clip:ViT-B-16:laion"),
    ],
)
def test_no_place_on_the_disk_is_told(init, named):
    assert placeless(init) == named


def test_the_card_tells_what_is_there_alone(run):
    result = {"protocol": "label-free", "dataset": "tiny", "data": {"num_test": 16, "image_size": [24, 24]}}
    (run / "eval" / "knn.json").write_text(json.dumps(result | {"trained": {"rankme": 7.25}}))
    (run / "config.yaml").unlink()
    card = (export(run, "timm").out / "README.md").read_text()
    assert "| label-free | tiny | 16 of 24 x 24 | effective rank | 7.2 |  |  |" in card
    assert "- initial weights" not in card
    assert "- data" not in card
    assert "not evaluated" not in card


def test_a_name_that_no_repository_can_have_is_refused_first(run):
    with pytest.raises(ValueError, match=r"export\.push must be NAME or OWNER/NAME of a repository; got me/my photos"):
        export(run, "timm", push="me/my photos")
    assert not (run / "export").exists()


def test_a_push_makes_a_private_repository(run, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, private):
            calls.append((name, private))
            return RepoUrl(f"https://huggingface.co/me/{name.removeprefix('me/')}")

        def upload_folder(self, folder_path, repo_id):
            calls.append((folder_path, repo_id))
            if folder_path.name == "timm":
                raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(ConnectionError, match=r"got me/mine: no network\. The export is whole in"):
        export(run, "timm", push="me/mine")
    assert calls == [("me/mine", True), (run / "export" / "timm", "me/mine")]
    found = export(run, "timm", run.parent / "out", push="mine")  # the hub adds whose it is
    assert calls[2:] == [("mine", True), (run.parent / "out", "me/mine")]
    assert str(found).endswith("Uploaded to https://huggingface.co/me/mine, for you alone to see.")


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_trained_network_leaves_before_its_encoder_at_another_size(run, kind):
    module = network_of(kind, replace(ENCODER, drop_path=0.1)).module
    about = {"scale": SCALE, "recipe": "tiny", "classes": ["x", "y", "z"]}
    if kind == "classifier":
        save_classifier(run, module, **about, test_margin=1.25)
    else:
        about |= {"class_ids": [0, 1, 4], "test_size": [64, 16], "stride": 0.5}
        save_segmenter(run, module, head=LinearHeadConfig(), **about)
    export(run, "exported_program", image_size=(24, 24))
    told = {"pantomim.json": ""}
    torch.export.load(run / "export" / "exported_program-24x24" / "model.pt2", extra_files=told)
    told = json.loads(told["pantomim.json"])
    assert (told["network"], told["classes"]) == (kind, ["x", "y", "z"])
    assert told["normalisation"].startswith("inside")
    assert kind == "classifier" or told["class_ids"] == [0, 1, 4]
    assert "BeitForImage" in str(export(run, "hf")) if kind == "classifier" else True
    assert "ViTModel" in str(export(run / "encoder.safetensors", "hf", run / "encoder"))


def test_the_image_processor_gives_what_the_encoder_expects(run, tmp_path):
    import transformers

    export(run, "hf", tmp_path / "out")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 3, 3), np.uint8)).resize((64, 96))
    given = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(picture, return_tensors="pt")
    encoder = pantomim.load(run)
    ours = (encoder.transform(picture) - 0.5) / 0.3
    apart = (given["pixel_values"] - ours).abs()
    assert float(apart.max()) < 0.1, "but for rounding"
    again = pantomim.load(f"hf:{tmp_path / 'out'}")
    assert np.allclose(again.statistics, ((0.5,) * 3, (0.3,) * 3))
    assert again.interpolation == "bicubic"
