"""`pantomim predict` and the scores of a classifier, as a user types them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from classifier_folder import labelled, write_classifier
from image_files import broken_folder

from pantomim.cli import main

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "run", CLASSES)


def said_by(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_photos_become_a_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = broken_folder(tmp_path / "photos", 12, 1), tmp_path / "predictions.csv"
    said = said_by(capsys, "predict", str(run), photos, "--out", str(out))
    assert "11 images predicted" in said
    assert "1 images cannot be read; the column error says why. The first: 0003.png:" in said
    table = rows(out)
    assert [row["file"] for row in table] == [f"{number:04}.png" for number in range(12)]
    assert {row["class"] for row in table} <= {*CLASSES, ""}
    assert all(bool(row["error"]) != bool(row["class_3"]) for row in table)
    assert "--out must be a new file" in fails(capsys, "predict", str(run), photos, "--out", str(out))
    said_by(capsys, "predict", str(run), photos, "--out", str(out), "--all", "--overwrite")
    assert list(rows(out)[0]) == ["file", "class", "probability", *CLASSES, "error"]
    said_by(capsys, "predict", str(run), photos, "--out", str(out), "--top", "1", "--overwrite")
    assert list(rows(out)[0]) == ["file", "class", "probability", "error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bare}", "{photos}", "--out", "x.csv"], "RUN must be the folder of a fine-tuned run"),
        (["{run}", "{photos}", "--out", "x.txt"], "--out must end in .csv"),
        (["{run}", "{photos}", "--out", "x.csv", "--top", "0"], "--top must be at least 1; got 0"),
        (["{run}", "{deep}", "--out", "x.csv"], "got another (uint16: 65535 becomes 1)"),
        (["{run}", "{run}", "--out", "x.csv"], "Source.spec must hold images"),
    ],
)
def test_what_cannot_be_is_explained(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    np.savez(tmp_path / "deep.npz", images=np.zeros((3, 16, 16, 3), np.uint16))
    places = {"run": run, "bare": tmp_path / "bare", "deep": tmp_path / "deep.npz"}
    photos = broken_folder(tmp_path / "photos", 3, 0)
    assert message in fails(capsys, "predict", *(word.format(photos=photos, **places) for word in arguments))


def test_scores_robustness_and_the_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, other = str(labelled(tmp_path / "set.npz", CLASSES, 36)), write_classifier(tmp_path / "b", CLASSES, seed=5)
    for classifier in (other, run):
        said = said_by(capsys, "evaluate", "classifier", "--classifier", str(classifier), "--data", data)
        assert "finetune on set: top-1" in said
        assert "95 % interval" in said
    options = ["--classifier", str(run), "--data", data]
    assert f"points against {other}" in said_by(capsys, "evaluate", "classifier", *options, "--against", str(other))
    assert "corruptions of our own" in said_by(capsys, "evaluate", "robustness", *options, "--test-images", "12")
    assert json.loads((run / "eval" / "robustness-set.json").read_text())["settings"]["test_images"] == 12
    (run / "config.yaml").write_text("recipe: finetune_test\ndata: {source: set.npz}\n")
    said_by(capsys, "report", str(run))
    page = (run / "report.html").read_text(encoding="utf-8")
    for text in ("Classifier on set", "The hardest images", "Corrupted and shifted images", f"Against {other}"):
        assert text in page


def test_settings_in_messages_are_options(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(labelled(tmp_path / "set.npz", CLASSES, 12))
    options = ["--classifier", str(run), "--data", data]
    message = fails(capsys, "evaluate", "classifier", *options, "--against", str(write_classifier(tmp_path / "b")))
    assert "--against must be a run that was scored on the same images" in message
    assert "--classifier must be the folder of a fine-tuned run" in fails(
        capsys, "evaluate", "classifier", "--classifier", str(tmp_path), "--data", data
    )
    assert "--imagenet-c must hold folders" in fails(capsys, "evaluate", "robustness", *options, "--imagenet-c", "none")
