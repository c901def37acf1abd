"""`pantomim tokenizer train` and `encode`, as a user types them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_images

from pantomim.cli import main
from pantomim.config import Pretrain, from_yaml
from pantomim.engine.record import read_metrics

SMALL = ["--size", "micro", "--method.sizes.vocabulary", "16", "--method.sizes.width", "8", "--batch-size", "16"]
QUIET = ["--runtime.tracker", "none", "--runtime.device", "cpu", "--runtime.threads", "1"]


def train(source: Path, out: Path, *more: str) -> None:
    steps = [] if "--steps" in more or "--epochs" in more else ["--steps", "6"]
    main(["tokenizer", "train", "--data", str(source), "--out", str(out), *steps, *SMALL, *QUIET, *more])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("job")
    source = tiny_images(folder / "tiny.npz")
    train(source, folder / "run")
    return source, folder / "run"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.err + captured.out).split())


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that ends with exit status 2."""
    with pytest.raises(SystemExit) as ended:
        main(["tokenizer", *arguments])
    assert ended.value.code == 2
    return said(capsys)


def test_training_leaves_a_tokenizer_with_its_numbers_and_a_picture(job) -> None:
    _, run = job
    report = json.loads((run / "tokenizer_report.json").read_text())
    assert report["images"] == 16
    assert report["split"] == "test"
    assert 1 <= report["usage"]["perplexity"] <= report["usage"]["used"] <= 16
    assert report["mse"] > 0 < report["mse_of_means"]
    with Image.open(run / "tokenizer_report.png") as picture:
        assert picture.size == (8 * 64, 2 * 64)
    config = from_yaml(Pretrain, run / "config.yaml")
    assert (config.method.temperature.steps, config.method.sizes.vocabulary) == (3, 16)


def test_ids_of_a_trained_tokenizer(job, tmp_path, capsys) -> None:
    source, run = job
    command = ["tokenizer", "encode", "--tokenizer", str(run), "--data", str(source), "--out", str(tmp_path / "i.npz")]
    main(command)
    assert "80 x 8 x 8 ids written to" in said(capsys)
    assert np.load(tmp_path / "i.npz")["ids"].max() < 16
    main(command)
    assert "are up to date in" in said(capsys)


def test_a_random_projection(job, tmp_path, capsys) -> None:
    source, _ = job
    out = ["--data", str(source), "--out", str(tmp_path / "ids.npz")]
    assert "--patch-size must be given" in fails(capsys, "encode", "--tokenizer", "random-projection", *out)
    chosen = ["--tokenizer", "random-projection-standardised:3", "--patch-size", "4", "--vocabulary", "64"]
    main(["tokenizer", "encode", *chosen, *out, "--split", "test"])
    assert np.load(tmp_path / "ids.npz")["ids"].shape == (16, 4, 4)


def test_the_same_command_resumes_where_a_run_stopped(job, tmp_path, capsys) -> None:
    source, run = job
    train(source, tmp_path / "run", "--runtime.save-every", "3", "--keep", "5")
    whole = read_metrics(tmp_path / "run" / "metrics.jsonl")
    weights = (tmp_path / "run" / "tokenizer.safetensors").read_bytes()
    for name in ("finished.json", "tokenizer.safetensors", "tokenizer.json", "tokenizer_report.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / max(p.name for p in (tmp_path / "run/checkpoints").iterdir()))
    train(source, tmp_path / "run", "--runtime.save-every", "3", "--keep", "5")
    again = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]
    assert (tmp_path / "run" / "tokenizer.safetensors").read_bytes() == weights
    assert (tmp_path / "run" / "tokenizer_report.json").exists()
    capsys.readouterr()
    train(source, run)
    assert "complete and was left as it is" in said(capsys)


def test_a_config_repeats_a_run(job, tmp_path) -> None:
    _, run = job
    main(["tokenizer", "train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again"), *QUIET])
    first, second = (read_metrics(path / "metrics.jsonl") for path in (run, tmp_path / "again"))
    assert [line["loss"] for line in first] == [line["loss"] for line in second]


def test_a_collapsed_codebook_warns_with_its_usage(tmp_path, capsys) -> None:
    np.savez(tmp_path / "gray.npz", images=np.full((40, 16, 16, 3), 99, np.uint8))
    two = ["--method.sizes.vocabulary", "2"]  # which nothing uses exactly alike
    train(tmp_path / "gray.npz", tmp_path / "run", "--steps", "1", *two)
    words = said(capsys)
    assert "warning: the tokenizer" in words
    assert "of 2 codes used, perplexity 1." in words.partition("warning:")[2]


def test_mistakes(job, tmp_path, capsys) -> None:
    source, run = job
    data, out = ["--data", str(source)], ["--out", str(tmp_path / "ids.npz")]
    assert "Ways to get one" in fails(capsys, "encode", *data, *out)
    assert "Ways to get one" in fails(capsys, "encode", "--tokenizer", str(tmp_path / "no"), *data, *out)
    assert "--data" in fails(capsys, "encode", "--tokenizer", str(run), *out)
    assert "--out" in fails(capsys, "encode", "--tokenizer", str(run), *data)
    assert "--vocabulary goes with" in fails(
        capsys, "encode", "--tokenizer", str(run), "--vocabulary", "9", *data, *out
    )
    assert "another image_size, to which images are resized" in fails(
        capsys, "encode", "--tokenizer", str(run), "--image-size", "16", "15", *data, *out
    )
    assert "--out must name a run folder" in fails(capsys, "train", *data)
    assert "Did you mean --steps" in fails(capsys, "train", *data, "--out", str(tmp_path / "run"), "--stps", "3")
    assert "There is no tokenizer trian. Did you mean train?" in fails(capsys, "trian")
    large = ["--method.sizes.stride", "32", "--method.image-size", "32", "32"]
    assert "--method.sizes.stride must be at most the side of the images; got 32" in fails(
        capsys, "train", *data, "--out", str(tmp_path / "run"), "--steps", "1", *SMALL, *QUIET, *large
    )


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tokenizer", "--help"])
    assert ended.value.code == 0
    words = said(capsys)
    assert "Train a tokenizer" in words
    assert "Write the id of every cell" in words
