"""Progress of a run: `metrics.jsonl`, a tracker, and a live bar or plain lines."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import LoggerType
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pantomim.core import machine, progress
from pantomim.core.files import naming, replace_file
from pantomim.data.dataset import Broken
from pantomim.engine.bar import Times

NUM_PLAIN_LINES = 20


@dataclass
class Clock:
    """Training time, and images per second between two logged steps.

    The first step after a start (loading, compiling) does not count for the speed, nor does time spent saving.
    """

    time_s: float = 0.0  # training time of earlier starts
    timed_images: int = 0  # of the steps that count for the speed
    timed_s: float = 0.0  # time of these steps
    _started: float = field(default_factory=time.perf_counter, repr=False)
    _lap_started: float | None = field(default=None, repr=False)
    _lap_images: int = field(default=0, repr=False)

    def step(self, images: int, device: torch.device) -> None:
        """A step of so many images is done."""
        if self._lap_started is not None:
            self._lap_images += images
            return
        if device.type != "cpu":
            torch.accelerator.synchronize()
        self._lap_started = time.perf_counter()

    def lap(self) -> float | None:
        """Images per second since the lap before; None if no step counts."""
        now = time.perf_counter()
        if self._lap_started is None or self._lap_images == 0:
            return None
        images, seconds = self._lap_images, now - self._lap_started
        self.timed_images += images
        self.timed_s += seconds
        self._lap_started, self._lap_images = now, 0
        return images / seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within does not count for the speed."""
        before = time.perf_counter()
        yield
        if self._lap_started is not None:
            self._lap_started += time.perf_counter() - before

    @property
    def total_s(self) -> float:
        """Training time over all starts."""
        return self.time_s + time.perf_counter() - self._started

    @property
    def images_per_s(self) -> float | None:
        """Mean speed over all laps."""
        return self.timed_images / self.timed_s if self.timed_s else None

    def progress(self) -> tuple[float, int, float]:
        """Arguments for the clock of the next start."""
        return self.total_s, self.timed_images, self.timed_s


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The logged steps of a run, in order; a last line that was cut by a kill is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or not isinstance(found.get("step"), int):
                raise ValueError("no step")
            if not all(isinstance(value, int | float | None) for value in found.values()):
                raise ValueError("no numbers")
            steps.append(found)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(
                    f"{path} must hold one logged step a line; got something else in line {number} of {len(lines)} "
                    f"({error}). Remove that line; the steps of the others are kept."
                ) from error
    return steps


def peak_memory_gib(device: torch.device) -> float | None:
    """The most memory so far: allocated on a GPU, resident on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return machine.peak_memory_gib()


class Recorder:
    """Logs a run, on the main process only; a context, so that the bar and the files are closed.

    Lines of steps after `start` are dropped from the metrics file `path`, so that no step is there twice. Should some
    of the `logged` ones before be missing, it says so.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path,
        *,
        start: int,
        total: int,
        batch_size: int,
        logged: int = 0,
        console: Console | None = None,
    ) -> None:
        self._accelerator, self._path = accelerator, path
        self._start, self._total, self._batch_size = start, total, batch_size
        self._console = console or Console(stderr=True, markup=False, emoji=False)
        self._main = accelerator.is_main_process
        self._bar: Progress | None = None
        self._next_line = start
        self.logged = logged
        self.at_start: dict[str, float] = {}  # what held-out images told before the first step, where they were asked

    def __enter__(self) -> "Recorder":
        if not self._main:
            return self
        kept = [line for line in read_metrics(self._path) if self._start and line["step"] <= self._start]
        replace_file(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self._path.open("a", encoding="utf-8")
        if (missing := self.logged - len(kept)) > 0:
            self.say(f"Warning: {self._path} lacks {missing} of the {self.logged} steps that were logged before.")
        self.logged = len(kept)
        self.at_start = kept[0] if kept and kept[0]["step"] == 0 else {}
        self._start_tracker()
        progress.report("")  # it is shown here alone
        self._alone = progress.watched_by(lambda *told: None)
        self._alone.__enter__()
        if self._console.is_terminal:
            self._start_bar()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._main:
            return
        self._alone.__exit__(None, None, None)
        if self._bar is not None:
            self._bar.stop()
        self._track(lambda: [tracker.finish() for tracker in self._accelerator.trackers])
        with naming(self._path):
            self._file.close()

    def say(self, text: str) -> None:
        """Print a line."""
        if self._main:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say_broken(self, broken: Sequence[Broken]) -> None:
        """Which images were skipped, and why; nothing if none were."""
        if broken:
            named = ", ".join(f"{image.name} ({image.reason})" for image in broken)
            self.say(f"Broken images that were skipped ({len(broken)}): {named}")

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """A logged step; the line is in the file when this returns."""
        if not self._main:
            return
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
        with naming(self._path):
            self._file.write(json.dumps({"step": step} | finite) + "\n")
            self._file.flush()
        self.logged += 1
        numbers = {key: value for key, value in values.items() if value is not None}
        self._track(lambda: self._accelerator.log(numbers, step=step))
        if step == 0:
            self.at_start = numbers
            told = ", ".join(f"{name.removeprefix('held_out_')} {value:.3g}" for name, value in numbers.items())
            self.say(f"The given weights, on held-out images: {told}.")
            return
        state, left = _state(numbers), None
        if "images_per_s" in numbers:
            left = (self._total - step) * self._batch_size / numbers["images_per_s"]
        if self._bar is not None:
            due = None if left is None else time.monotonic() + left
            self._bar.update(self._task, completed=step, state=state, due=due)
        elif step >= self._next_line or step == self._total or "held_out_loss" in numbers:
            self._next_line = step + math.ceil(self._total / NUM_PLAIN_LINES)
            state += "" if left is None else f"  left {progress.duration(left)}"
            self.say(f"step {step:>{len(str(self._total))}}/{self._total}  {state}")

    def sync(self) -> None:
        """Force what was logged to disk, before a checkpoint that relies on it."""
        if self._main:
            with naming(self._path):
                os.fsync(self._file.fileno())

    def _start_tracker(self) -> None:
        out = self._path.parent
        options = {
            "tensorboard": {"purge_step": self._start + 1},
            "wandb": {"name": out.name, "dir": str(out)},
            "trackio": {"name": out.name},
        }
        is_folder = LoggerType.TENSORBOARD in self._accelerator.log_with  # there the name is that of a folder
        name = "tensorboard" if is_folder else "pantomim"
        self._track(lambda: self._accelerator.init_trackers(name, init_kwargs=options))

    def _track(self, action: Callable[[], object]) -> None:
        """What fails in a tracker, of whatever kind, ends the tracker and no run: `metrics.jsonl` is what counts."""
        try:
            action()
        except Exception as error:
            self._accelerator.trackers = []
            self.say(
                f"Warning: the curves no longer go to {', '.join(map(str, self._accelerator.log_with))}, which failed "
                f"({error}); metrics.jsonl has every logged step."
            )

    def _start_bar(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            Times(),
            console=self._console,
        )
        state: dict[str, Any] = {"state": "first step", "due": None}
        self._task = self._bar.add_task("training", total=self._total, completed=self._start, **state)
        self._bar.start()


def _state(values: Mapping[str, float]) -> str:
    """The loss, beside what it was on held-out images if that was measured now, and what knows nothing would have."""
    loss = f"loss {values['loss']:.4f}"
    if "held_out_loss" in values:
        loss += f" (held-out {values['held_out_loss']:.4f})"
    if baseline := values.get("baseline"):
        below = 1 - values.get("loss_target", values["loss"]) / baseline
        loss += f", {f'{100 * below:.0f} % below' if below > 0 else 'not below'} predicting the mean"
    speed = f"{values['images_per_s']:.0f} images/s  " if "images_per_s" in values else ""
    memory = f"memory {values['memory_gib']:.1f} GiB" if "memory_gib" in values else ""
    return f"{loss}  lr {values['lr']:.1e}  {speed}{memory}"
