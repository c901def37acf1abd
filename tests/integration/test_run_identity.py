"""A run knows its images, its checkpoints and its files: whatever changes between stop and resume is named."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from image_files import fill, png
from killed import Killed, kill_after
from masked_images import encoded, masked_folder, regions
from study_plan import tiny_study
from tiny import tiny_images, tiny_run

from pantomim.checkpoint import find_checkpoint
from pantomim.cli import main
from pantomim.config import DataConfig, Duration, MaskConfig, Pretrain
from pantomim.data.sources import place
from pantomim.engine.folder import RunFolder
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.engine.setup import open_images
from pantomim.evaluate.knn import KNN
from pantomim.study.run import open_study

COUNT, STEPS = 120, 6
DAMAGED = [
    *("config.yaml", "data.json", "images.json.gz", "environment.json", "metrics.jsonl"),
    *(f"checkpoints/step-00000004/{name}" for name in ("checkpoint.json", "weights.safetensors")),
]


def photos(root: Path) -> Path:
    """Images of differing sizes in two classes, and one of a test split."""
    files = {f"train/{'ab'[k % 2]}/{k:03}.png": png(k, (16 + k % 3, 16)) for k in range(COUNT)}
    return fill(root, files | {"test/b/0.png": png(0)})


def config_of(source: Path | str, **changes: Any) -> Pretrain:
    config = tiny_run(Path("x"), steps=STEPS, runtime={"save_every": 2, "keep": 3}, **changes)
    return replace(config, data=DataConfig(source=str(source), workers=0))


def stop(config: Pretrain, out: Path, after: int = 5) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(after, patch)
        with pytest.raises(Killed):
            pretrain(config, out)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and a run on them that was killed after its checkpoint of step 4."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("stopped")
    photos(root / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        stop(config_of("photos"), root / "run")
        pretrain(config_of("photos"), root / "whole")
    return root


@pytest.fixture
def here(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, to be changed; the current folder."""
    shutil.copytree(stopped, tmp_path / "copy")
    record = tmp_path / "copy" / "run" / "data.json"
    record.write_text(record.read_text().replace(str(stopped), str(tmp_path / "copy")))
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def weights(run: Path) -> str:
    return str(json.loads((run / "encoder.json").read_text())["sha256"])


def rename_class(data: Path) -> None:
    (data / "train" / "a").rename(data / "train" / "c")


def move(data: Path) -> None:
    (data / "train/a/004.png").rename(data / "train/b/4.png")


def overwrite(data: Path) -> None:
    fill(data, {f"train/{'ab'[k % 2]}/{k:03}.png": png(k + 1000, (20, 21)) for k in range(30)})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda data: (data / "train/a/004.png").unlink(), r"1 gone \(train/a/004\.png\)", id="gone"),
        pytest.param(lambda data: fill(data, {"train/a/x.png": png(1)}), r"1 new \(train/a/x\.png\)", id="new"),
        pytest.param(overwrite, r"30 changed \(.*, \.\.\.\)", id="changed"),
        pytest.param(rename_class, r"60 gone \(.*\n  60 new", id="class"),
        pytest.param(
            lambda data: (data / "train/a/004.png").rename(data / "train/b/4.png"), r"1 gone.*\n.*1 new", id="moved"
        ),
    ],
)
def test_other_images_are_refused_by_name(here: Path, change: Callable[[Path], object], named: str) -> None:
    change(here / "photos")
    with pytest.raises(ValueError, match=rf"DataConfig\.source must hold the images that a run began with[^$]*{named}"):
        pretrain(config_of("photos"), here / "run")
    config = here / "another.yaml"
    config.write_text((here / "run" / "config.yaml").read_text())
    with pytest.raises(SystemExit):
        main(["pretrain", "--config", str(config), "--out", "run"])


def test_arrays_are_known_by_their_values_and_classes(tmp_path: Path) -> None:
    source = tiny_images(tmp_path / "images.npz")
    with np.load(source) as found:
        arrays = dict(found)
    stop(config_of(source), tmp_path / "run")
    arrays["labels"][[0, 1]] = arrays["labels"][[1, 0]]
    arrays["images"][2] += 1
    np.savez(source, **arrays)
    with pytest.raises(ValueError, match=r"1 changed \(2\)\n  2 of another class \(0, 1\)"):
        pretrain(config_of(source), tmp_path / "run")


def test_scores_of_other_images_are_not_overwritten(tmp_path: Path) -> None:
    source, run = tiny_images(tmp_path / "images.npz"), tmp_path / "run"
    pretrain(replace(config_of(source), duration=Duration(steps=3)), run)
    knn = KNN(encoder=str(run), data=str(source), contenders=("trained",), device="cpu")
    path, before = knn.to_file()
    again, result = knn.to_file()
    assert (again, result["data"]["key"]) == (path, before["data"]["key"])
    with np.load(source) as found:
        np.savez(source, **{**found, "labels": np.roll(found["labels"], 1)})
    others = {knn.to_file()[0], replace(knn, seed=1).to_file()[0], replace(knn, image_size=(16, 16)).to_file()[0]}
    assert path not in others
    assert len(others) == 3
    assert json.loads(path.read_text()) == result
    for damaged in ("[1]", '{"data": 5}', '{"settings": [1]}', ""):
        path.write_text(damaged)
        assert knn.to_file()[0] in others
        assert path.read_text() == damaged
    pretrain(replace(config_of(source), duration=Duration(steps=3)), run)  # it is complete: nothing is trained
    named = replace(knn, out=tmp_path / "other.json")
    for _ in range(2):
        assert named.to_file()[0] == tmp_path / "other.json"
    before = named.out.read_bytes()
    for change, what in (({"seed": 1}, "seed"), ({"image_size": (16, 16)}, "settings"), ({"data": "mnist"}, "data")):
        with pytest.raises(ValueError, match=rf"Evaluation\.out must be a new file.*another {what}\. Name another"):
            replace(named, **change).to_file()
    assert named.out.read_bytes() == before


def test_a_study_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    source = tiny_images(tmp_path / "images.npz")
    study = tiny_study(tmp_path, source)
    open_study(study, tmp_path / "study")
    open_study(study, tmp_path / "study")
    tiny_images(source, num_images=60)
    with pytest.raises(ValueError, match=r"Study\.data must hold .*\n  .*images\.npz: 80 files there, 60 now"):
        open_study(study, tmp_path / "study")


def test_masks_belong_to_the_images(tmp_path: Path) -> None:
    data = masked_folder(tmp_path / "set")
    config = replace(tiny_run(data), data=DataConfig(str(data), masks=MaskConfig()))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.keep_images(open_images(config), str(data), ())
    run.metrics.write_text('{"step": 1}\n')
    run.keep_images(open_images(config), str(data), ())
    (data / "masks" / "train" / "003.png").write_bytes(encoded(regions(77, (40, 31), 2)))
    with pytest.raises(ValueError, match=r"1 changed \(masks/train/003\.png\)"):
        run.keep_images(open_images(config), str(data), ())
    (data / "classes.json").write_text('["black", "green", "red"]')
    with pytest.raises(ValueError, match="classes of masks"):
        run.keep_images(open_images(config), str(data), ())


def test_the_same_data_by_another_name_are_the_same(here: Path) -> None:
    names = ["photos", "./photos/", "../copy/photos", f"{here}/photos", "photos/../photos"]
    assert {place(name) for name in names} == {str(here / "photos")}
    assert pretrain(config_of("../copy/photos/"), here / "run").steps == STEPS
    assert weights(here / "run") == weights(here / "whole")


def test_the_same_name_in_another_place_is_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "elsewhere").mkdir()
    photos(here / "elsewhere" / "photos")
    (here / "elsewhere" / "photos" / "train" / "a" / "000.png").write_bytes(png(5, (20, 20)))
    monkeypatch.chdir(here / "elsewhere")
    with pytest.raises(ValueError, match="1 changed"):
        pretrain(config_of("photos"), here / "run")


def test_an_image_that_breaks_is_skipped_and_named(here: Path) -> None:
    (here / "photos" / "train" / "a" / "004.png").write_bytes(b"no image")
    found = pretrain(config_of("photos"), here / "run")
    assert (found.steps, set(found.broken)) in [(STEPS, {"train/a/004.png"}), (STEPS, set())]


def test_what_was_broken_before_a_kill_is_named_at_the_end(here: Path) -> None:
    file, config = here / "photos/train/a/004.png", replace(config_of("photos"), batch_size=32)
    file.write_bytes(file.read_bytes()[:-60])
    stop(config, here / "other")  # all images were met by then, and the two steps to come may not meet it
    checkpoint = find_checkpoint(here / "other" / "checkpoints")
    assert checkpoint is not None
    assert list(checkpoint.progress.broken) == ["train/a/004.png"]
    file.write_bytes(png(4, (17, 16)))  # mended since, and still left out: it was skipped before
    assert pretrain(config, here / "other").broken == ["train/a/004.png"]


def test_a_bare_method_does_not_measure_anew(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["pretrain", "mae", "--data", "photos", "--size", "micro", "--steps", "4", "--batch_size", "8"]
    line += ["--runtime.save_every", "2", "--runtime.tracker", "none", "--data.workers", "0", "--out", "bare"]
    with monkeypatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(Killed):
            main(line)
    before = (here / "bare" / "config.yaml").read_text()
    (here / "photos" / "train" / "a" / "004.png").write_bytes(b"no image")
    main(line)
    assert (here / "bare" / "finished.json").is_file()
    assert (here / "bare" / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"runtime": {"seed": 5}}, "runtime.seed: 5 there, 0 here", id="seed"),
        pytest.param({"optim": {"base_lr": 0.5}}, r"optim\.base_lr: 0\.5 there, 0\.02 here", id="rate"),
        pytest.param({"duration": Duration(steps=9)}, "steps: 9 there, 6 here", id="length"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(here: Path, changes: dict[str, Any], named: str) -> None:
    runtime = {"save_every": 2} | changes.pop("runtime", {})
    other = replace(tiny_run(Path("x"), steps=STEPS, runtime=runtime, **changes), data=config_of("photos").data)
    stop(other, here / "other")
    shutil.rmtree(here / "run" / "checkpoints")
    shutil.copytree(here / "other" / "checkpoints", here / "run" / "checkpoints")
    with pytest.raises(ValueError, match=rf"must hold no checkpoint of another config[^$]*{named}"):
        pretrain(config_of("photos"), here / "run")


def test_a_checkpoint_under_another_step_is_passed_over(here: Path) -> None:
    folder = here / "run" / "checkpoints"
    shutil.copytree(folder / "step-00000004", folder / "step-00000005")
    with pytest.warns(UserWarning, match=r"must be of the step in its name; got step 4.*step 4; the steps since"):
        pretrain(config_of("photos"), here / "run")
    assert weights(here / "run") == weights(here / "whole")


def remove(*names: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for name in names:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return change


def cut(run: Path) -> None:
    (run / "encoder.safetensors").write_bytes((run / "encoder.safetensors").read_bytes()[:-9])


def of_another(run: Path) -> None:
    """A whole pair, of other weights."""
    pretrain(replace(config_of("photos"), duration=Duration(steps=3)), run.parent / "another")
    for kind in ("safetensors", "json"):
        shutil.copy(run.parent / "another" / f"encoder.{kind}", run / f"encoder.{kind}")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(remove("encoder.safetensors"), id="gone"),
        pytest.param(remove("encoder.safetensors", "encoder.json", "decoder.json"), id="all"),
        pytest.param(cut, id="cut"),
        pytest.param(of_another, id="another"),
        pytest.param(remove("finished.json", "metrics.jsonl"), id="log"),
        pytest.param(remove("environment.json", "images.json.gz"), id="records"),
    ],
)
def test_what_a_finished_run_lost_is_written_anew(here: Path, change: Callable[[Path], None]) -> None:
    run, finished = here / "whole", json.loads((here / "whole" / "finished.json").read_text())
    expected = {name: (run / name).read_bytes() for name in ("encoder.safetensors", "decoder.safetensors")}
    change(run)
    assert pretrain(config_of("photos"), run).loss == finished["loss"]
    assert {name: (run / name).read_bytes() for name in expected} == expected
    assert json.loads((run / "finished.json").read_text())["files"] == finished["files"]


def test_the_list_of_images_is_written_again_where_the_images_are_the_same(here: Path) -> None:
    file = here / "run" / "images.json.gz"
    before = file.read_bytes()
    file.unlink()
    pretrain(config_of("photos"), here / "run")
    assert file.read_bytes() == before


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_the_log_of_a_finished_run_must_be_whole_or_gone(here: Path, keep: float) -> None:
    log = here / "whole" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[: int(keep * log.stat().st_size)])
    with pytest.raises(ValueError, match=rf"metrics\.jsonl must hold the log of all {STEPS} steps.*or remove it"):
        pretrain(config_of("photos"), here / "whole")
    log.unlink()
    assert pretrain(config_of("photos"), here / "whole").already


def test_without_a_checkpoint_the_advice_works(here: Path) -> None:
    run = here / "whole"
    expected = weights(run)
    remove("encoder.safetensors", "checkpoints")(run)
    with pytest.raises(ValueError, match=r"without either .*Remove .*finished\.json to train again from the first"):
        pretrain(config_of("photos"), run)
    remove("finished.json")(run)
    pretrain(config_of("photos"), run)
    assert weights(run) == expected


def test_a_log_without_its_first_steps_is_told(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    remove("metrics.jsonl")(here / "run")
    pretrain(config_of("photos"), here / "run")
    assert "metrics.jsonl lacks 4 of the 4 steps that were logged before" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(here / "run" / "metrics.jsonl")] == [5, 6]


def test_what_the_dead_left_is_removed_and_nothing_else(here: Path) -> None:
    run = here / "run"
    left = [run / ".encoder.safetensors.0a1b2c3d.tmp", run / ".config.yaml.x_y4z5w6.tmp"]
    kept = [run / ".report.html.0a1b2c3d.tmp", run / ".mine.tmp"]
    for file in (*left, *kept):
        file.write_text("")
    (run / "checkpoints" / ".step-00000002.old").mkdir()
    (run / "checkpoints" / "step-00000001").write_text("a file")
    with RunFolder(run).hold(Accelerator(cpu=True), config_of("photos")):
        pass
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)
    assert not (run / "checkpoints" / ".step-00000002.old").exists()
    pretrain(config_of("photos"), run)


def test_checkpoints_let_in_whom_other_files_let_in(here: Path) -> None:
    files = [file for file in (here / "whole").rglob("*") if file.is_file() and file.name != ".lock"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~_umask()}


def _umask() -> int:
    os.umask(before := os.umask(0))
    return before


@pytest.mark.parametrize("name", [*DAMAGED, "finished.json"])
def test_damage_is_told_or_does_not_matter(stopped: Path, tmp_path: Path, name: str) -> None:
    """A byte is another one, or the file ends there: the same weights as ever, or one message."""
    rng = np.random.default_rng(len(name))
    for number in range(2):
        run = shutil.copytree(stopped / ("whole" if name == "finished.json" else "run"), tmp_path / str(number))
        data = bytearray((run / name).read_bytes())
        place = rng.integers(len(data))
        data[place:] = b"" if number == 0 else bytes([rng.integers(256)]) + data[place + 1 :]
        (run / name).write_bytes(data)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
            patch.chdir(stopped)
            try:
                pretrain(config_of("photos"), run)
            except (ValueError, OSError):
                continue
            assert weights(run) == weights(stopped / "whole")
