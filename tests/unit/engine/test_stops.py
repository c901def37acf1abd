import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_run

from pantomim.engine.stops import FiniteWatch, Interrupted, MemoryFullError, StopSignals, explain_memory

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


def test_a_second_signal_stops_at_once() -> None:
    def signal_twice(signals: StopSignals) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="Stopped at once"), StopSignals() as signals, signals.deferred():
        signal_twice(signals)


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
        explain_memory(config, 1),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_the_next_accumulation_divides_the_batch_of_every_process() -> None:
    config = tiny_run(Path("images.npz"), batch_size=30, runtime={"accumulation": 3})
    advice = r"accumulation 3\. .*runtime\.accumulation 5 \(3 images"
    with pytest.raises(MemoryFullError, match=advice), explain_memory(config, 2):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_one_image_at_a_time_leaves_only_a_smaller_model() -> None:
    config = tiny_run(Path("images.npz"), batch_size=2, runtime={"accumulation": 2})
    with pytest.raises(MemoryFullError, match="smaller model"), explain_memory(config, 1):
        raise MemoryError


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_memory(tiny_run(Path("images.npz")), 1):
        raise RuntimeError("shape mismatch")
