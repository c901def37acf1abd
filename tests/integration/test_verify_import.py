"""`pantomim verify` and `pantomim import`, as typed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from foreign_files import mmpretrain_weights, official_weights
from tiny import tiny_images

from pantomim.cli import main
from pantomim.formats.native import load_decoder, load_encoder_folder
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.resize import resample
from pantomim.nn.vit import EncoderConfig

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


def test_verify_says_what_passed(tmp_path, capsys):
    for name in ("mae_lars", "finetune_losses"):
        for kind in ("json", "safetensors"):
            shutil.copy(GOLDEN / f"{name}.{kind}", tmp_path)
    main(["verify", str(tmp_path)])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2
    assert all(" PASS  worst: " in line for line in lines)
    assert last.endswith("0 FAIL, 0 UNKNOWN ITEM")


def test_verify_fails_with_status_1(tmp_path, capsys):
    for name in ("mae_lars.json", "finetune_losses.json", "finetune_losses.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert re.search(r"mae_lars .*FAIL  worst: FileNotFoundError: .*/mae_lars\.safetensors\n", out), out


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


@pytest.fixture
def mmpretrain_run(tmp_path: Path) -> Path:
    """A folder imported from a small file of mmpretrain, with its tables: the row in the first half of the channels."""
    encoder = EncoderConfig(image_size=(16, 16), patch_size=4, width=96, depth=1, heads=3).build()
    decoder = DecoderConfig(width=64, depth=1, heads=4).build(96, 1, (4, 4), 48)
    weights = mmpretrain_weights(encoder, decoder)
    for name in ("backbone.pos_embed", "neck.decoder_pos_embed"):
        weights[name] = weights[name].roll(weights[name].shape[-1] // 2, dims=-1)
    torch.save({"meta": {"epoch": 300}, "state_dict": weights}, tmp_path / "epoch_300.pth")
    out = tmp_path / "imported"
    given = ["--format", "mmpretrain", "--decoder-heads", "4"]
    main(["import", str(tmp_path / "epoch_300.pth"), "--out", str(out), *given])
    return out


def test_an_imported_mmpretrain_file_is_evaluated(
    capsys: pytest.CaptureFixture[str], mmpretrain_run: Path, tmp_path: Path
) -> None:
    told = capsys.readouterr().out
    assert "holds an mmpretrain MAE encoder and decoder" in told
    assert told.count("positions: sincos, rows first, as stored") == 2
    source, result = tiny_images(tmp_path / "tiny.npz"), tmp_path / "knn.json"
    main(["evaluate", "knn", "--encoder", str(mmpretrain_run), "--data", str(source), "--out", str(result)])
    assert 0 <= json.loads(result.read_text())["trained"]["top1"] <= 1


@pytest.mark.parametrize("side", [16, 24])
def test_going_on_from_an_mmpretrain_file_keeps_its_tables(
    mmpretrain_run: Path, tmp_path: Path, side: int, capfd: pytest.CaptureFixture[str]
) -> None:
    source, run = tiny_images(tmp_path / "tiny.npz", side=side), tmp_path / "run"
    image_size = ["--method.encoder.image_size", str(side), str(side)]
    steps = ["--steps", "2", "--batch-size", "16", "--runtime.tracker", "none", "--runtime.device", "cpu"]
    main(
        [
            "pretrain",
            "mae",
            "--data",
            str(source),
            "--out",
            str(run),
            "--init",
            str(mmpretrain_run),
            *image_size,
            *steps,
        ]
    )
    told = " ".join(capfd.readouterr().err.split())
    assert "its position table is kept: sincos, rows first" in told
    assert "its decoder is taken too" in told
    before = (load_encoder_folder(mmpretrain_run).pos_embed, load_decoder(mmpretrain_run).decoder_pos_embed)
    after = (load_encoder_folder(run).pos_embed, load_decoder(run).decoder_pos_embed)
    about = [json.loads((run / f"{name}.json").read_text())["position_table"] for name in ("encoder", "decoder")]
    if side == 16:
        assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))
        assert about == ["sincos, rows first"] * 2
    else:
        assert "positions are resampled from (4, 4) to (6, 6)" in told
        assert about == ["other"] * 2
        for first, second in zip(before, after, strict=True):
            assert torch.equal(second, resample(first, (4, 4), (6, 6), 1))
