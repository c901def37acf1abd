import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_run

from pantomim.engine.stops import FiniteWatch, Interrupted, MemoryFullError, StopSignals, explain_memory
from pantomim.methods.base import Requirements

NEEDS = Requirements(in_chans=3, image_size=(8, 8), patch_size=4)

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_what_can_be_repeated(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with (
        pytest.raises(Interrupted, match=r"Stopped at once\. Run the same command"),
        StopSignals(),
        contextlib.suppress(Exception),
    ):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_deferred_signal_asks_and_is_answered_later(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals, signals.deferred():
        assert not signals.requested
        os.kill(os.getpid(), number)
        assert signals.requested
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("deferring", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_later_signal_ends_the_process_and_its_workers(
    number: signal.Signals, deferring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(StopSignals, "SAME_S", 60.0)
    with contextlib.suppress(Interrupted), StopSignals() as signals:
        with contextlib.suppress(KeyboardInterrupt), signals.deferred() if deferring else contextlib.nullcontext():
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert not ended, "the same signal by another way"
        monkeypatch.setattr(StopSignals, "SAME_S", 0.0)
        os.kill(os.getpid(), number)
    assert ended == [128 + number]
    worker.join(5)
    assert worker.exitcode == -signal.SIGKILL


def test_the_first_bad_step_is_remembered() -> None:
    watch, good, bad = FiniteWatch(CPU), torch.tensor(1.0), torch.tensor(float("nan"))
    watch.see(3, good, good)
    assert watch.first_bad_step(Accelerator(cpu=True)) is None
    watch.see(4, good, torch.tensor(float("inf")))
    watch.see(5, bad, good)
    watch.see(6, good, good)
    assert watch.first_bad_step(Accelerator(cpu=True)) == 4


def test_out_of_memory_names_what_to_try() -> None:
    config = tiny_run(Path("images.npz"), batch_size=24)
    with (
        pytest.raises(MemoryFullError, match=r"24 images at once.*runtime\.accumulation 2 \(12 images.*batch_size 12"),
        explain_memory(config, 1, NEEDS),
    ):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("batch_size", "needs", "advice"),
    [
        (6, {"whole_batch": True}, r"accumulation 1\. Start another run with batch_size 3\.$"),
        (8, {"even": True}, r"runtime\.accumulation 2 \(4 images at once\) or: Start another run with batch_size 4"),
        (6, {"even": True}, r"runtime\.accumulation 3 \(2 images at once\) or: Start another run with batch_size 2"),
    ],
)
def test_what_is_advised_is_possible(batch_size: int, needs: dict[str, bool], advice: str) -> None:
    config = tiny_run(Path("images.npz"), batch_size=batch_size)
    with pytest.raises(MemoryFullError, match=advice), explain_memory(config, 1, replace(NEEDS, **needs)):
        raise MemoryError


def test_the_next_accumulation_divides_the_batch_of_every_process() -> None:
    config = tiny_run(Path("images.npz"), batch_size=30, runtime={"accumulation": 3})
    advice = r"accumulation 3\. .*runtime\.accumulation 5 \(3 images"
    with pytest.raises(MemoryFullError, match=advice), explain_memory(config, 2, NEEDS):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_one_image_at_a_time_leaves_only_a_smaller_model() -> None:
    config = tiny_run(Path("images.npz"), batch_size=2, runtime={"accumulation": 2})
    with pytest.raises(MemoryFullError, match="smaller model"), explain_memory(config, 1, NEEDS):
        raise MemoryError


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_memory(tiny_run(Path("images.npz")), 1, NEEDS):
        raise RuntimeError("shape mismatch")
