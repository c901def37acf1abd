import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import ENCODER

import pantomim
from pantomim.formats import load_encoder
from pantomim.formats.native import save_classifier, save_encoder, save_predictor
from pantomim.nn.heads import Classifier
from pantomim.nn.vit import EncoderConfig


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    encoder = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2).build().eval()
    save_encoder(tmp_path / "run", encoder, scale={"divisor": 255.0, "rule": "uint8"}, recipe="mae_test")
    return tmp_path / "run", encoder


@pytest.mark.parametrize("pool", [None, "mean", "class", "normed_mean"])
@pytest.mark.parametrize("stem", [None, "best"])
def test_a_file_of_ours_is_what_stands_beside_it(tmp_path, pool, stem, caplog):
    config = replace(ENCODER, width=96, heads=6, mean=(0.4,) * 3)
    encoder, about = config.build().eval(), {"scale": {"divisor": 65535.0, "rule": "uint16"}, "recipe": "tiny"}
    name = "encoder" if pool is None else "classifier"
    if pool is None:
        save_encoder(tmp_path, encoder, **about)
    else:
        classifier = Classifier(encoder, 3, pool).eval()
        encoder = classifier.plain_encoder()
        save_classifier(tmp_path, classifier, **about)
    stem = stem or name
    for ending in ("safetensors", "json"):
        (tmp_path / f"{name}.{ending}").rename(tmp_path / f"{stem}.{ending}")
    loaded = load_encoder(tmp_path / f"{stem}.safetensors")
    assert (loaded.config, loaded.scale.divisor) == (encoder.config, 65535)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images).patches, encoder(images).patches)
    (tmp_path / f"{stem}.json").unlink()
    if pool != "mean":
        with caplog.at_level("INFO"):
            load_encoder(tmp_path / f"{stem}.safetensors")
        assert "does not tell all: it is read as an official MAE file, with 3 heads, mean (0.485" in caplog.text
        assert (caplog.records[0].levelname == "WARNING") == (pool is not None)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"model_type": "vit"}, "Write hf: before it"), ({"architecture": "x"}, "not what was exported .* Name the run")],
)
def test_folders_of_others_are_told_apart(tmp_path, content, message):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path)


def test_a_part_that_is_no_encoder_is_named(tmp_path):
    save_predictor(tmp_path, {"mask_token": torch.zeros(3)}, method="beit")
    with pytest.raises(ValueError, match="must hold an encoder or a classifier; got another part"):
        load_encoder(tmp_path / "predictor.safetensors")


@pytest.mark.parametrize("inner", ["", "encoder.safetensors"])
def test_run_and_file(run, inner):
    folder, encoder = run
    loaded = pantomim.load(str(folder / inner))
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(images).patches, encoder(images).patches)
    assert not loaded.training


def test_timm_with_a_file(tmp_path):
    model = timm.create_model("test_vit", pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_encoder(f"timm:test_vit@{tmp_path / 'w.safetensors'}")
    assert torch.equal(loaded.state_dict()["norm.bias"], model.norm.bias)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"encoder must be a run folder.*nowhere, which does not exist"):
        load_encoder(tmp_path / "nowhere")


def test_pantomim_has_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        pantomim.save  # noqa: B018
