import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_run

from pantomim.config import Pretrain, RuntimeConfig, from_yaml, to_dict
from pantomim.engine.folder import FREE, Finished, RunFolder, RunInUseError, leaves

CONFIG = tiny_run(Path("images.npz"))


def hold(path: Path, config: Pretrain = CONFIG) -> RunFolder:
    folder = RunFolder(path)
    with folder.hold(Accelerator(cpu=True), config):
        return folder


def start(path: Path) -> None:
    hold(path).metrics.write_text('{"step": 1}\n')


def test_the_config_is_written_and_reads_back(tmp_path: Path) -> None:
    hold(tmp_path / "run")
    assert from_yaml(Pretrain, tmp_path / "run" / "config.yaml") == CONFIG


def test_the_same_config_is_resumed(tmp_path: Path) -> None:
    hold(tmp_path)
    hold(tmp_path)


def test_how_a_run_is_carried_out_may_change(tmp_path: Path) -> None:
    start(tmp_path)
    runtime = replace(CONFIG.runtime, log_every=3, save_every=4, keep=5, threads=2, tracker="tensorboard", compile=True)
    hold(tmp_path, replace(CONFIG, runtime=runtime, data=replace(CONFIG.data, workers=1, memory_gib=1.0)))
    assert leaves(to_dict(CONFIG)).keys() >= FREE


def test_another_config_is_refused_key_by_key(tmp_path: Path) -> None:
    start(tmp_path)
    other = replace(CONFIG, batch_size=32, optim=replace(CONFIG.optim, weight_decay=0.1), runtime=RuntimeConfig(seed=1))
    with pytest.raises(ValueError, match="must hold no run of another config") as refusal:
        hold(tmp_path, other)
    lines = str(refusal.value).splitlines()[1:-1]
    assert sorted(line.strip() for line in lines) == [
        "batch_size: 16 there, 32 here",
        "optim.weight_decay: 0.05 there, 0.1 here",
        "runtime.seed: 0 there, 1 here",
    ]


def test_a_run_that_never_made_a_step_takes_another_config(tmp_path: Path) -> None:
    hold(tmp_path).metrics.touch()
    other = replace(CONFIG, batch_size=32)
    hold(tmp_path, other)
    assert from_yaml(Pretrain, tmp_path / "config.yaml") == other


@pytest.mark.parametrize("sign", ["metrics.jsonl", "checkpoints/step-00000008", "finished.json"])
def test_whatever_tells_of_a_step_holds_a_run_to_its_config(tmp_path: Path, sign: str) -> None:
    hold(tmp_path)
    (tmp_path / sign).parent.mkdir(exist_ok=True)
    (tmp_path / sign).write_text("{}")
    with pytest.raises(ValueError, match="must hold no run of another config"):
        hold(tmp_path, replace(CONFIG, batch_size=32))
    assert from_yaml(Pretrain, tmp_path / "config.yaml") == CONFIG


def test_a_config_of_another_program_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("colour: red\n")
    with pytest.raises(ValueError, match="colour"):
        hold(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "colour: red\n"


def test_only_one_can_hold_a_run(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path).hold(Accelerator(cpu=True), CONFIG),
        pytest.raises(RunInUseError, match=f"got {tmp_path}, which another pantomim process"),
    ):
        hold(tmp_path)
    hold(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"holds holiday\.jpg and no config\.yaml"):
        hold(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"must be a folder that can be written to.*Not a directory"):
        hold(tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *arguments: object, **options: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", refuse)  # not by rights: root, as in containers, may write everywhere
    with pytest.raises(ValueError, match=r"must be a folder that can be written to.*Permission denied"):
        hold(tmp_path)


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    folder = hold(tmp_path)
    assert folder.finished() is None
    folder.finish(Finished(steps=3, wall_s=1.0, images_per_s=None, loss=0.5, broken=["a.png"]))
    written = json.loads((tmp_path / "finished.json").read_text())
    numbers = {"steps": 3, "wall_s": 1.0, "images_per_s": None, "loss": 0.5}
    assert written == numbers | {"broken": ["a.png"], "alarms": [], "files": {}}


def test_the_environment_of_every_start_is_kept(tmp_path: Path) -> None:
    folder = hold(tmp_path)
    folder.describe(CONFIG, Accelerator(cpu=True), torch.float32, step=0)
    folder.describe(CONFIG, Accelerator(cpu=True), torch.float32, step=8)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["packages"]["torch"]
    assert found["seed"] == 0
    assert (found["device"], found["precision"]) == ("cpu", "float32")
    assert [start["step"] for start in found["resumed"]] == [8]


def test_the_number_type_of_the_steps_so_far_is_kept(tmp_path: Path) -> None:
    folder, accelerator = hold(tmp_path), Accelerator(cpu=True)
    folder.describe(CONFIG, accelerator, torch.bfloat16, step=0)
    before = (tmp_path / "environment.json").read_text()
    with pytest.raises(ValueError, match=r"of the first 8 steps, bfloat16; got auto, which is float32 on cpu"):
        folder.describe(CONFIG, accelerator, torch.float32, step=8)
    assert (tmp_path / "environment.json").read_text() == before
    folder.describe(CONFIG, accelerator, torch.bfloat16, step=8)
    folder.describe(CONFIG, accelerator, torch.float32, step=0)  # nothing was computed yet
