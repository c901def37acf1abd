import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

import pantomim
from pantomim.formats import load_encoder
from pantomim.formats.native import save_encoder
from pantomim.nn.vit import EncoderConfig


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    encoder = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2).build().eval()
    save_encoder(tmp_path / "run", encoder, scale={"divisor": 255.0, "rule": "uint8"}, recipe="mae_test")
    return tmp_path / "run", encoder


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


def test_importing_pantomim_is_light():
    code = "import sys, pantomim; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pantomim_has_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        pantomim.save  # noqa: B018
