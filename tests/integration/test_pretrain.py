"""Whole runs on the smallest data: stopped, killed, resumed, shared out, and gone wrong."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed import Killed, kill_after
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import DECODER, ENCODER, tiny_images, tiny_run
from torch.utils._python_dispatch import TorchDispatchMode

import pantomim.engine.pretrain as engine
import pantomim.engine.stops as stops
from pantomim.checkpoint import WEIGHTS, find_checkpoint
from pantomim.config import Duration, Pretrain, to_yaml
from pantomim.data.stream import Stream
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.engine.setup import open_images
from pantomim.engine.stops import Interrupted, NonFiniteError, WorkerError
from pantomim.engine.training import Training
from pantomim.formats import load_encoder
from pantomim.methods.mae import MAE, MAEConfig

LONG = {"steps": 80, "runtime": {"save_every": 8}}
SLOWLY = """  # so that a signal comes before the last step
import runpy, time
from pantomim.engine.training import Training

step = Training.step
Training.step = lambda *arguments: time.sleep(0.05) or step(*arguments)
runpy.run_module("pantomim", run_name="__main__")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    pretrain(tiny_run(source, **LONG), out)
    return out


def weights_hash(run: Path) -> str:
    return json.loads((run / "encoder.json").read_text())["sha256"]


def curve(run: Path, *names: str) -> list[tuple[float, ...]]:
    return [tuple(line[name] for name in ("step", *names)) for line in read_metrics(run / "metrics.jsonl")]


def command(config: Pretrain, folder: Path, out: Path) -> list[str]:
    """The command line that carries out a config."""
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    return ["-m", "pantomim", "pretrain", "--config", str(file), "--out", str(out)]


def start(arguments: list[str], **how: Any) -> subprocess.Popen[str]:
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    return subprocess.Popen([sys.executable, *arguments], text=True, **how)


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def mixed_images(folder: Path) -> Path:
    """Images of many sizes, which workers decode."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(24):
        height, width = rng.integers(16, 40, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"{number:02d}.png")
    return folder


def test_the_run_folder_holds_what_it_should(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir() if not path.name.startswith(".")}
    files = {f"{part}.{kind}" for part in ("encoder", "decoder") for kind in ("safetensors", "json")}
    more = {"config.yaml", "data.json", "images.json.gz", "environment.json", "metrics.jsonl", "checkpoints"}
    assert names == files | more | {"finished.json"}
    assert sorted(path.name for path in (uninterrupted / "checkpoints").iterdir()) == ["step-00000072", "step-00000080"]
    lines = read_metrics(uninterrupted / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 81))
    keys = {"step", "loss", "baseline", "lr", "images_per_s", "data_wait_s", "grad_norm", "memory_gib", "time_s"}
    assert all(line.keys() == keys for line in lines)
    finished = json.loads((uninterrupted / "finished.json").read_text())
    assert finished["steps"] == 80
    assert finished["loss"] == lines[-1]["loss"]
    assert finished["images_per_s"] > 0


def test_something_is_learned_and_the_encoder_is_usable(uninterrupted: Path) -> None:
    losses = [loss for _, loss in curve(uninterrupted, "loss")]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    encoder = load_encoder(uninterrupted)
    assert encoder(torch.rand(2, 3, 16, 16)).patches.shape == (2, 16, 16)


def test_the_schedule_is_followed(uninterrupted: Path) -> None:
    rates = [rate for _, rate in curve(uninterrupted, "lr")]
    peak = 0.02 * 16 / 256
    assert rates[0] == 0
    assert rates[1] == pytest.approx(peak / 2)
    assert max(rates) == rates[2] == pytest.approx(peak)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_a_finished_run_is_left_as_it_is(source: Path, uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir() if path.name != ".lock"}
    finished = pretrain(tiny_run(source, **LONG), uninterrupted)
    assert finished.already
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_killed_and_started_again_it_is_the_same_run(source: Path, uninterrupted: Path, tmp_path: Path) -> None:
    config, out = tiny_run(source, **LONG), tmp_path / "run"
    process = start(["-c", SLOWLY, *command(config, tmp_path, out)[2:]])
    wait_for_checkpoint(out, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "finished.json").exists()
    pretrain(config, out)
    assert curve(out, "loss", "lr", "grad_norm") == curve(uninterrupted, "loss", "lr", "grad_norm")
    assert weights_hash(out) == weights_hash(uninterrupted)
    resumed = json.loads((out / "environment.json").read_text())["resumed"]
    assert len(resumed) == 1
    assert 0 < resumed[0]["step"] < 80


def test_a_resumed_run_is_the_same_where_workers_decode_images_of_mixed_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(
        mixed_images(tmp_path / "images"), steps=8, batch_size=8, runtime={"save_every": 4, "accumulation": 2}
    )
    config = replace(config, data=replace(config.data, workers=1))
    pretrain(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(4, patch)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "killed")
    pretrain(config, tmp_path / "killed")
    assert curve(tmp_path / "killed", "loss", "lr", "grad_norm") == curve(tmp_path / "whole", "loss", "lr", "grad_norm")
    assert weights_hash(tmp_path / "killed") == weights_hash(tmp_path / "whole")
    assert len({loss for _, loss in curve(tmp_path / "whole", "loss")}) == 8


@pytest.mark.slow
def test_sigterm_saves_the_step_and_says_how_to_resume(source: Path, uninterrupted: Path, tmp_path: Path) -> None:
    config, out = tiny_run(source, **LONG), tmp_path / "run"
    process = start(["-c", SLOWLY, *command(config, tmp_path, out)[2:]])
    wait_for_checkpoint(out, process)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    stopped = read_metrics(out / "metrics.jsonl")[-1]["step"]
    assert f"Stopped after step {stopped} of 80" in " ".join(errors.split())
    assert "Run the same command to resume" in " ".join(errors.split())
    assert (out / "checkpoints" / f"step-{stopped:08d}").is_dir()
    pretrain(config, out)
    assert curve(out, "loss", "grad_norm") == curve(uninterrupted, "loss", "grad_norm")
    assert weights_hash(out) == weights_hash(uninterrupted)


@pytest.mark.parametrize("part", ["open_images", "find_checkpoint", "save_encoder"])
def test_a_signal_before_or_after_training_stops_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    config = tiny_run(source, steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(engine, part, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="Stopped at once"):
            pretrain(config, tmp_path)
    finished = pretrain(config, tmp_path)
    assert not finished.already
    assert curve(tmp_path) == [(1,), (2,), (3,)]


def test_a_signal_in_the_last_step_ends_what_comes_after(source: Path, tmp_path: Path, monkeypatch) -> None:
    """The run is whole; the next stage, cell or score must not begin."""
    step = Training.step

    def last(self: Training, number: int, batches: Any) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, batches)

    monkeypatch.setattr(Training, "step", last)
    with pytest.raises(Interrupted, match="Stopped when the run was complete"):
        pretrain(tiny_run(source, steps=3), tmp_path)
    assert (tmp_path / "finished.json").is_file()
    assert pretrain(tiny_run(source, steps=3), tmp_path).already


def test_a_damaged_checkpoint_costs_steps_but_not_the_run(source: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    (out / "finished.json").unlink()
    file = out / "checkpoints" / "step-00000080" / WEIGHTS
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="Resuming from the checkpoint before, step 72"):
        pretrain(tiny_run(source, **LONG), out)
    assert curve(out, "loss") == curve(uninterrupted, "loss")
    assert weights_hash(out) == weights_hash(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]])
def test_a_signal_to_the_whole_group_saves_the_step(tmp_path: Path, launcher: list[str]) -> None:
    """As `timeout`, a scheduler and Ctrl-C send it: to the workers that read images, too."""
    on = {} if torch.cuda.is_available() else {"device": "auto"}  # the README's lines name no device
    config = tiny_run(mixed_images(tmp_path / "images"), steps=3000, batch_size=8, runtime=on)
    config = replace(config, data=replace(config.data, workers=2))
    out = tmp_path / "run"
    process = start([*launcher, *command(config, tmp_path, out)], start_new_session=True)
    limit = time.monotonic() + 200
    while not read_metrics(out / "metrics.jsonl"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    saved = find_checkpoint(out / "checkpoints")
    assert saved is not None
    assert f"Stopped after step {saved.step} of 3000" in " ".join(errors.split())
    assert "DataLoader worker" not in errors.replace("DataLoader will create", "")


def test_a_killed_worker_ends_the_run_with_the_step_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Stream, item: int) -> Any:
        if item == 5 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, item)

    read = Stream._read
    config = tiny_run(mixed_images(tmp_path / "images"), steps=12, batch_size=8)
    config = replace(config, data=replace(config.data, workers=1))
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "_read", killed)
        with pytest.raises(
            WorkerError, match=r"killed \(signal 9\).*memory.*data\.workers.*Stopped after step (\d+) of 12"
        ):
            pretrain(config, tmp_path / "run")
    assert find_checkpoint(tmp_path / "run" / "checkpoints") is not None
    pretrain(replace(config, data=replace(config.data, workers=0)), tmp_path / "run")
    pretrain(config, tmp_path / "whole")
    assert curve(tmp_path / "run", "loss", "grad_norm") == curve(tmp_path / "whole", "loss", "grad_norm")


def test_micro_batches_change_nothing_but_rounding(source: Path, tmp_path: Path) -> None:
    for accumulation in (1, 4):
        pretrain(tiny_run(source, runtime={"accumulation": accumulation}), tmp_path / str(accumulation))
    one, four = (curve(tmp_path / run, "loss", "grad_norm") for run in ("1", "4"))
    for expected, found in zip(one, four, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_seeds_differ_and_repeat(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        pretrain(tiny_run(source, steps=4, runtime={"seed": seed}), tmp_path / name)
    assert curve(tmp_path / "b", "loss") == curve(tmp_path / "c", "loss")
    assert curve(tmp_path / "a", "loss") != curve(tmp_path / "b", "loss")


def test_bfloat16_on_request(source: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        pretrain(tiny_run(source, steps=4, runtime={"precision": precision}), tmp_path / precision)
    full, half = (curve(tmp_path / run, "loss") for run in ("float32", "bfloat16"))
    assert full != half
    assert [loss for _, loss in half] == pytest.approx([loss for _, loss in full], rel=0.02)
    assert {value.dtype for value in load_file(tmp_path / "bfloat16" / "encoder.safetensors").values()} == {
        torch.float32
    }


def test_float16_scales_its_loss_skips_what_overflows_and_resumes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler, initial = torch.amp.GradScaler, {"init_scale": 2.0**26, "growth_interval": 9}  # overflows at first
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: scaler(*args, **initial, **kwargs))
    config = tiny_run(source, steps=40, runtime={"precision": "float16", "save_every": 20})
    full = replace(config, runtime=replace(config.runtime, precision="float32"))
    pretrain(full, tmp_path / "full")
    pretrain(config, tmp_path / "whole")
    assert find_checkpoint(tmp_path / "whole" / "checkpoints").progress.scaler["scale"] < 2.0**26
    losses = [dict(curve(tmp_path / run, "loss")) for run in ("whole", "full")]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=0.01)
    assert losses[0][40] == pytest.approx(losses[1][40], rel=0.1), "it learns nearly as in float32"
    with monkeypatch.context() as patch:
        kill_after(20, patch)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "killed")
    pretrain(config, tmp_path / "killed")
    assert curve(tmp_path / "killed", "loss") == curve(tmp_path / "whole", "loss")


def test_guides_have_the_precision_of_the_run(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, draw = [], MAE.draw

    def watched(method: MAE, *arguments: Any) -> Any:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return draw(method, *arguments)

    monkeypatch.setattr(MAE, "draw", watched)
    for precision in ("bfloat16", "float32"):
        pretrain(tiny_run(source, steps=4, runtime={"precision": precision}), tmp_path / precision)
    assert seen == [torch.bfloat16] * 4 + [torch.float32] * 4


def test_a_run_is_resumed_in_the_precision_it_started_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, full, half = (
        tiny_run(source, steps=4, runtime={"precision": precision, "save_every": 2})
        for precision in ("auto", "float32", "bfloat16")
    )
    with monkeypatch.context() as patch:
        patch.setattr(engine, "compute_dtype", lambda *args: torch.bfloat16)  # what auto is on a GPU
        kill_after(2, patch)
        with pytest.raises(Killed):
            pretrain(config, tmp_path)
    with pytest.raises(ValueError, match="got float32, which is float32 on cpu"):
        pretrain(full, tmp_path)
    assert pretrain(half, tmp_path).steps == 4


def test_long_runs_log_every_tenth_step_and_the_last(source: Path, tmp_path: Path) -> None:
    pretrain(tiny_run(source, steps=203, batch_size=2), tmp_path)
    assert [step for (step,) in curve(tmp_path)] == [*range(10, 201, 10), 203]


class CountReads(TorchDispatchMode):
    """Counts how often a value is read from a tensor."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_nothing_is_read_from_the_device_between_logged_steps(source: Path, tmp_path: Path, precision: str) -> None:
    reads = []
    for steps in (10, 30):
        with CountReads() as counter:
            runtime = {"log_every": 100, "save_every": 100, "precision": precision}
            pretrain(tiny_run(source, steps=steps, runtime=runtime), tmp_path / str(steps))
        reads.append(counter.reads)
    assert reads[0] == reads[1] > 0


def test_steps_that_are_read_late_are_logged_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(source, steps=23, runtime={"log_every": 5, "save_every": 7})
    pretrain(config, tmp_path / "at once")
    monkeypatch.setattr(engine, "LATE", {"cpu": 3})
    pretrain(config, tmp_path / "late")
    with monkeypatch.context() as patch:
        at_step(12, die, patch)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "killed")
    assert curve(tmp_path / "killed") == [(5,)], "step 10 is read after 13"
    with monkeypatch.context() as patch:
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(Interrupted, match="Stopped after step 12 of 23"):
            pretrain(config, tmp_path / "killed")
    assert curve(tmp_path / "killed") == [(5,), (10,)], "read before what is saved"
    pretrain(config, tmp_path / "killed")
    whole = curve(tmp_path / "at once", "loss", "lr", "grad_norm")
    assert [row[0] for row in whole] == [5, 10, 15, 20, 23]
    for name in ("late", "killed"):
        assert curve(tmp_path / name, "loss", "lr", "grad_norm") == whole
        assert weights_hash(tmp_path / name) == weights_hash(tmp_path / "at once")


def at_step(count: int, action: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Do something before the nth step is made."""
    step, begun = Training.step, []

    def watched(self: Training, *arguments: Any) -> Any:
        begun.append(1)
        if len(begun) == count:
            action()
        return step(self, *arguments)

    patch.setattr(Training, "step", watched)


def die() -> None:
    raise Killed


@pytest.mark.parametrize("late", [0, 3])
@pytest.mark.parametrize("log_every", [1, 8])
def test_a_non_finite_loss_stops_the_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int, late: int
) -> None:
    monkeypatch.setattr(engine, "LATE", {"cpu": late})
    optim = {"base_lr": 1e30, "warmup": Duration(steps=0)}
    runtime = {"log_every": log_every, "save_every": 1 if log_every == 1 else 4}
    with pytest.raises(
        NonFiniteError, match=r"of step (2|3) is infinite or NaN.*base_lr 5e\+29.*clip_norm.*float32"
    ) as stop:
        pretrain(tiny_run(source, steps=20, optim=optim, runtime=runtime), tmp_path)
    step = int(str(stop.value).split("of step ")[1].split()[0])
    kept = find_checkpoint(tmp_path / "checkpoints")
    if log_every == 1:
        assert kept is not None
        assert kept.step == step - 1
        assert all(torch.isfinite(value).all() for value in load_file(kept.path / WEIGHTS).values())
    else:
        assert kept is None
    failure = load_file(tmp_path / "failure" / f"step-{step:08d}-process-0.safetensors")
    assert failure["0.batch.images"].shape == (16, 3, 16, 16)
    assert failure["0.batch.ids"].shape == (16,)
    assert failure["0.draws.mask.masked"].sum(dim=1).tolist() == [12] * 16
    assert all(line["loss"] is not None for line in read_metrics(tmp_path / "metrics.jsonl"))


def test_a_run_starts_from_another_runs_weights(
    source: Path, uninterrupted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(source, steps=2, optim={"warmup": Duration(steps=0)}, init=str(uninterrupted))
    pretrain(config, tmp_path / "same")
    assert f"Starting from the encoder of {uninterrupted}; its decoder is taken too." in capfd.readouterr().err
    (_, first), _ = curve(tmp_path / "same", "loss")
    assert first < 0.95 * curve(uninterrupted, "loss")[0][1]

    larger = replace(config.method, encoder=replace(ENCODER, image_size=(24, 24)))
    pretrain(replace(config, method=larger), tmp_path / "larger")
    told = capfd.readouterr().err
    assert "(positions are resampled from (4, 4) to (6, 6)); its decoder is taken too." in told


def test_the_interpolation_of_the_run_is_recorded_whatever_that_of_its_weights(source: Path, tmp_path: Path) -> None:
    for given, resized in ((None, "bilinear"), ("bilinear", "bicubic")):
        encoder = replace(ENCODER, interpolation=given)
        run = tiny_run(source, steps=3, method=MAEConfig(encoder=encoder, decoder=DECODER))
        run = replace(run, data=replace(run.data, crop=replace(run.data.crop, interpolation=resized)))
        pretrain(run, out := tmp_path / str(given))
        assert load_encoder(out).interpolation == resized


def test_weights_of_another_size_are_refused_with_both(source: Path, uninterrupted: Path, tmp_path: Path) -> None:
    config = tiny_run(source, init=str(uninterrupted))
    other = replace(config.method, encoder=replace(ENCODER, width=32, depth=1))
    with pytest.raises(ValueError, match=r"width: 16 there, 32 here\n  depth: 2 there, 1 here"):
        pretrain(replace(config, method=other), tmp_path)


def test_unsuitable_data_stop_a_run_before_its_first_step(tmp_path: Path) -> None:
    path = tiny_images(tmp_path / "seven.npz", channels=7)
    with pytest.raises(ValueError, match=r"has 7\. Set it to 7"):
        pretrain(tiny_run(path), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_refused_run_can_be_corrected_in_the_same_folder(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder\.in_chans must be the channels"):
        pretrain(tiny_run(tiny_images(tmp_path / "seven.npz", channels=7)), tmp_path / "run")
    with pytest.raises(ValueError, match="must be shorter than the run"):
        pretrain(tiny_run(source, steps=2), tmp_path / "run")
    assert pretrain(tiny_run(source, steps=3), tmp_path / "run").steps == 3


def test_broken_images_are_told_when_stopped_and_recorded_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(130):
        side = 16 + number % 3
        Image.new("RGB", (side, 16), (number, 90, 30)).save(tmp_path / "images" / f"{number:03d}.png")
    config = tiny_run(tmp_path / "images", steps=26)  # more than one pass on either side of the stop
    config = replace(config, data=replace(config.data, workers=0))
    name = open_images(config).train.names[3]
    file = tmp_path / "images" / name
    file.write_bytes(file.read_bytes()[:50])

    def stop_at_17(training: Training, step: int, batches: Any) -> Any:
        if step == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(training, step, batches)

    update = Training.step
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stop_at_17)
        with pytest.raises(Interrupted, match="after step 17 of 26"):
            pretrain(config, tmp_path / "run")
    assert f"Broken images that were skipped (1): {name} (" in capfd.readouterr().err
    assert pretrain(config, tmp_path / "run").broken == [name]
    assert f"Broken images that were skipped (1): {name} (" in capfd.readouterr().err
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["broken"] == [name]


def test_curves_also_go_to_tensorboard(source: Path, tmp_path: Path) -> None:
    pretrain(tiny_run(source, steps=3, runtime={"tracker": "tensorboard"}), tmp_path)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"grad_norm" in file.read_bytes()


def test_a_full_disk_is_told_and_the_checkpoint_before_kept(
    source: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = tiny_run(source, **LONG), tmp_path / "run"

    def full_at_24(folder: Path, *parts: object, step: int, **rest: object) -> Path:
        with monkeypatch.context() as patch:
            if step == 24:
                patch.setattr("pantomim.checkpoint.save_file", no_space)
            return save(folder, *parts, step=step, **rest)

    save = engine.save_checkpoint
    monkeypatch.setattr(engine, "save_checkpoint", full_at_24)
    with pytest.raises(OSError, match=r"step 24 could not be written.*No space left.*step 16 is untouched"):
        pretrain(config, out)
    kept = find_checkpoint(out / "checkpoints")
    assert kept is not None
    assert kept.step == 16
    assert curve(out, "loss") == curve(uninterrupted, "loss")[:24]


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("writer", ["save_encoder", "save_decoder"])
def test_a_disk_that_is_full_at_the_end_is_told_and_no_step_is_lost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    config = tiny_run(source, steps=2, optim={"warmup": Duration(steps=0)})
    with monkeypatch.context() as patch:
        patch.setattr(engine, writer, no_space)
        with pytest.raises(OSError, match="No space left on device"):
            pretrain(config, tmp_path)
    before = read_metrics(tmp_path / "metrics.jsonl")
    pretrain(config, tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl") == before


def test_a_full_disk_does_not_mask_a_non_finite_loss(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space_either(*args: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(stops, "save_file", no_space_either)
    optim = {"base_lr": 1e30, "warmup": Duration(steps=0)}
    with pytest.raises(NonFiniteError, match=r"batch is not kept, because .* \(I/O error: No space.*\)\. Try optim"):
        pretrain(tiny_run(source, optim=optim), tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_compiled_run_on_a_gpu_in_bfloat16(source: Path, tmp_path: Path) -> None:
    config = tiny_run(source, steps=8, runtime={"device": "cuda", "compile": True, "threads": None})
    process = start(command(config, tmp_path, tmp_path / "run"))  # apart: shape checks do not compile
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert "on cuda in bfloat16" in " ".join(errors.split())
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(0 < line["memory_gib"] < 8 for line in lines)
