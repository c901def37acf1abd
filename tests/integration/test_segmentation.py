"""`pantomim evaluate segmentation`, as a user types it, on images whose colours are their classes."""

import json
from pathlib import Path

import pytest
import torch
from masked_images import masked_folder
from run_folder import write_run

from pantomim.cli import main
from pantomim.formats.native import save_encoder
from pantomim.nn.vit import EncoderConfig
from pantomim.report import make_report

CONTENDERS = ("trained", "untrained", "pixels")
QUICK = ["--steps", "200", "--chunk", "16"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    config = EncoderConfig(
        image_size=(16, 16), patch_size=4, width=32, depth=1, heads=2, mean=(0.3,) * 3, std=(0.4,) * 3
    )
    save_encoder(tmp_path / "run", config.build(), scale={"divisor": 255.0}, recipe="mae_test")
    return tmp_path / "run"


def test_scores_of_an_encoder_at_another_size(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = masked_folder(tmp_path / "colours", {"train": 30, "val": 6, "test": 10})
    main(["evaluate", "segmentation", "--encoder", str(run), "--data", str(data), *QUICK])
    said = " ".join(capsys.readouterr().out.split())
    assert "segmentation on colours, mean IoU: trained" in said
    result = json.loads((run / "eval" / "segmentation-colours.json").read_text())
    data_said = {name: result["data"][name] for name in ("image_size", "grid", "masks", "num_classes", "num_val")}
    assert data_said == {"image_size": [40, 28], "grid": [10, 7], "masks": "masks", "num_classes": 3, "num_val": 6}
    for contender in CONTENDERS:
        assert result[contender]["miou"] > 0.6, "colours are classes, and even a random encoder keeps colours"
        assert result[contender]["iou"].keys() == {"black", "red", "green"}
        assert 0 < result[contender]["miou_error"] < 0.1
    assert "top1" not in result["trained"]
    shown = write_run(tmp_path / "shown")
    for other in (shown / "eval").iterdir():
        other.unlink()
    (shown / "eval" / "segmentation-colours.json").write_text(json.dumps(result))
    page = make_report(shown).read_text()
    assert "Linear segmentation on colours" in page
    assert "ean IoU" in page
    assert "top-1" not in page


def test_choices_are_kept_and_a_second_time_gives_the_same(run: Path, tmp_path: Path) -> None:
    data = masked_folder(tmp_path / "colours", {"train": 12, "test": 6}, folder="masks7")
    arguments = ["--masks", "masks7", "--image-size", "24", "16", "--images", "10", "--contenders", "untrained"]
    for name in ("one.json", "two.json"):
        out = ["--out", str(tmp_path / name)]
        main(["evaluate", "segmentation", "--encoder", str(run), "--data", str(data), *QUICK, *arguments, *out])
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert {**one, "wall_s": 0} == {**two, "wall_s": 0}
    assert one["data"]["image_size"] == [24, 16]
    assert one["data"]["num_train"] == 10
    assert one["data"]["num_val"] == "a fifth of train"
    assert not {"trained", "pixels"} & one.keys()
    assert one["settings"]["steps"] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segmentation", "--data", "mnist"], "must have masks beside its images"),
        (["segmentation", "--data", "{data}", "--image-size", "18", "16"], "a multiple of the patches"),
        (["segmentation", "--data", "{data}", "--masks", "clouds"], "--masks must be a folder of"),
        (["segmentation", "--data", "{data}", "--labels-per-class", "5"], "Unrecognized options"),
        (["knn", "--data", "mnist", "--masks", "masks"], "Unrecognized options"),
    ],
)
def test_what_cannot_be_is_explained(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = masked_folder(tmp_path / "colours", {"train": 4, "test": 2})
    arguments = [argument.replace("{data}", str(data)) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments, "--encoder", str(run)])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
