"""How long a run takes, and what follows for its length."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_images, tiny_run

from pantomim.core.progress import about, duration, report, tracked, watched_by
from pantomim.data.stream import Stream
from pantomim.engine.pretrain import pretrain
from pantomim.engine.timing import Timing, matrix_flops_per_s, steps_that_fit, time_steps


@pytest.mark.parametrize("changes", [{}, {"batch_size": 64, "runtime": {"accumulation": 2}}])
def test_steps_are_timed_and_nothing_is_left(tmp_path: Path, changes) -> None:
    found = time_steps(tiny_run(tiny_images(tmp_path / "images.npz"), steps=100, **changes), 0.3)
    assert found.total == 100
    assert 1 <= found.steps <= 98
    assert 0 < found.s_per_step < found.run_s
    assert [file.name for file in tmp_path.iterdir()] == ["images.npz"]


def test_timed_steps_read_images_as_a_run_does(tmp_path: Path, monkeypatch) -> None:
    opened = []
    monkeypatch.setattr("pantomim.engine.setup.Stream", lambda *of, **how: opened.append(how) or Stream(*of, **how))
    config = tiny_run(tiny_images(tmp_path / "images.npz"), steps=4, runtime={"compile": False})
    time_steps(config, 0.1)
    timed, opened[:] = opened[-1], []
    pretrain(config, tmp_path / "run")
    assert timed == opened[0]
    assert "compiled" in timed


def test_the_steps_that_fit_take_the_time() -> None:
    timing = Timing(steps=10, s_per_step=0.1, start_s=5.0, total=1, memory_gib=None)
    steps = timing.steps_within(60)
    assert replace(timing, total=steps).run_s == pytest.approx(60, abs=0.2)
    assert timing.steps_within(1) == 1


def test_a_device_has_a_speed() -> None:
    assert 1e8 < matrix_flops_per_s(torch.device("cpu"), torch.float32) < 1e14


def test_progress_is_told_to_whoever_watches_last() -> None:
    outer, inner = [], []
    with watched_by(lambda *told: outer.append(told)):
        assert list(tracked("ab", "letters", 2)) == ["a", "b"]
        with watched_by(lambda *told: inner.append(told)):
            report("apart")
    report("nobody")
    assert outer == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2), ("working", 0, None)]
    assert inner == [("apart", 0, None)]


@pytest.mark.parametrize(
    ("seconds", "clock", "words"),
    [(17.2, "0:17", "17 s"), (119, "1:59", "119 s"), (725, "12:05", "12 min"), (68400, "19:00:00", "19 h")],
)
def test_times_in_words(seconds, clock, words) -> None:
    assert (duration(seconds), about(seconds)) == (clock, words)


def test_of_several_processes_the_first_decides_how_many_steps_fit(tmp_path: Path, monkeypatch) -> None:
    """Their clocks differ, and each would train for its own length."""
    config = tiny_run(tiny_images(tmp_path / "images.npz"), steps=100)
    timing = Timing(steps=10, s_per_step=0.1, start_s=5.0, total=1, memory_gib=None)
    monkeypatch.setattr("pantomim.engine.timing.time_steps", lambda config, seconds: timing)
    assert steps_that_fit(config, 60.0, 1)[0] > 100
    monkeypatch.setattr("pantomim.engine.timing.on_main", lambda accelerator, action: 17)
    assert steps_that_fit(config, 60.0, 1)[0] == 17
