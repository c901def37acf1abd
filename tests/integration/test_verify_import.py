"""`pantomim verify` and `pantomim import`, as typed."""

import shutil
from pathlib import Path

import pytest
import torch

from pantomim.cli import main
from pantomim.formats.mae import official_weights
from pantomim.formats.native import load_encoder_folder
from pantomim.nn.vit import EncoderConfig

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


def test_verify_says_what_passed(capsys):
    main(["verify", str(GOLDEN)])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(list(GOLDEN.glob("*.json")))
    assert all(" PASS  worst: " in line for line in lines)
    assert last.endswith("0 FAIL, 0 UNKNOWN ITEM")


def test_verify_fails_with_status_1(tmp_path, capsys):
    for name in ("mae_lars.json", "finetune_losses.json", "finetune_losses.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path)])
    assert stop.value.code == 1
    assert "FAIL  worst: mae_lars.safetensors is missing" in capsys.readouterr().out


def test_verify_of_an_empty_folder_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path)])
    assert stop.value.code == 2
    assert "must hold golden items" in capsys.readouterr().err


def test_import_writes_a_folder_that_loads(tmp_path, capsys):
    encoder = EncoderConfig(image_size=(8, 12), patch_size=4, width=20, depth=1, heads=5).build().eval()
    torch.save({"model": official_weights(encoder)}, tmp_path / "mae.pth")
    given = ["--heads", "5", "--image-size", "8", "12"]
    main(["import", str(tmp_path / "mae.pth"), "--format", "mae", "--out", str(tmp_path / "out"), *given])
    assert "wrote encoder.safetensors, encoder.json" in capsys.readouterr().out
    images = torch.rand(2, 3, 8, 12)
    assert torch.equal(load_encoder_folder(tmp_path / "out")(images).patches, encoder(images).patches)


def test_import_refuses_with_the_list_of_keys(tmp_path, capsys):
    torch.save({"model": {"conv1.weight": torch.ones(2), "fc.bias": torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(SystemExit) as stop:
        main(["import", str(tmp_path / "other.pth"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "conv1.weight, fc.bias" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
