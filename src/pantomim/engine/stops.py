"""Why a run stops before its end: a signal, a non-finite loss, a full memory or disk; and how to resume."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pantomim.checkpoint import find_checkpoint
from pantomim.config import Pretrain
from pantomim.data.stream import Stream
from pantomim.engine.runtime import generator
from pantomim.methods.base import Method, Requirements


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A signal asked the run to stop; its text says what is saved; the same command resumes."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN; its text says what was kept and what to try."""


class MemoryFullError(RuntimeError):
    """A step did not fit in memory; its text names accumulation and batch size to try."""


class WorkerError(RuntimeError):
    """A process that reads images died; the last step is saved, and its text says what to change."""


class StopSignals:
    """Within this context SIGINT and SIGTERM end a run with `Interrupted`: at once, wherever they meet it.

    Within `deferred` the first signal only asks (`requested`). A later one ends the process there and then. One signal
    may come by two ways (`timeout` and `torchrun` send it to the process and to its group): within a second it is one.
    """

    SAME_S = 1.0

    def __init__(self) -> None:
        self.requested = False
        self._first_s: float | None = None
        self._deferring = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                "Stopped at once. Run the same command to resume from the last checkpoint, if there is one."
            ) from None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Where a signal waits until somebody reads `requested`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_s is not None:
            if now - self._first_s > self.SAME_S:
                end_here(128 + number)
            return
        self._first_s = now
        if not self._deferring:
            raise KeyboardInterrupt  # no Exception: nobody on the way takes it for a failure
        self.requested = True


def end_here(status: int, words: str = "") -> NoReturn:
    """End this process and its workers, whatever they are doing, as `kill -9` would; its locks go with it."""
    for worker in multiprocessing.active_children():
        worker.kill()
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # the bar has hidden the cursor
    if words:
        os.write(2, f"{words}\n".encode())
    os._exit(status)


class FiniteWatch:
    """Remembers on the device the first step whose loss or gradient was not finite; reading it is the only sync."""

    NEVER = 2**62

    def __init__(self, device: torch.device) -> None:
        self.first_bad = torch.full((), self.NEVER, dtype=torch.int64, device=device)

    def see(self, step: int, *values: Tensor) -> None:
        """Look at the values of a step, without reading them."""
        finite = torch.stack([torch.isfinite(value).all() for value in values]).all()
        self.first_bad = torch.where(finite, self.first_bad, self.first_bad.clamp(max=step))

    def first_bad_step(self, accelerator: Accelerator) -> int | None:
        """Read the first bad step of all processes; waits for the device."""
        return self.bad(int(accelerator.gather(self.first_bad).min()))

    def bad(self, step: int) -> int | None:
        """A first bad step as it is read; None: there was none."""
        return None if step == self.NEVER else step


class Outcome:
    """What a logged step gave, on its way from the device: `read` waits for no step after it.

    That is means over the processes, and whether any of them saw a bad step, or was `asked` to stop.
    """

    def __init__(
        self, done: int, means: Mapping[str, Tensor], watch: FiniteWatch, asked: bool, accelerator: Accelerator
    ) -> None:
        self.done, self._names, self._watch, self._event = done, [*means], watch, None
        signs = torch.stack([watch.first_bad, torch.full_like(watch.first_bad, -int(asked))])[None]
        told = [
            accelerator.reduce(torch.stack([*means.values()]), reduction="mean"),
            accelerator.gather(signs).amin(dim=0),
        ]
        if watch.first_bad.device.type == "cuda":
            told = [
                torch.empty_like(part, device="cpu", pin_memory=True).copy_(part, non_blocking=True) for part in told
            ]
            self._event = torch.cuda.Event()
            self._event.record()
        self._told = told

    def read(self) -> tuple[dict[str, float | None], int | None, bool]:
        """The means, the first bad step if there was one, and whether to stop."""
        if self._event is not None:
            self._event.synchronize()
        means, (first_bad, asked) = self._told
        return dict(zip(self._names, means.tolist(), strict=True)), self._watch.bad(int(first_bad)), bool(asked < 0)


def save_failure(out: Path, stream: Stream, method: Method, config: Pretrain, step: int, rank: int) -> NonFiniteError:
    """Make the batch and the draws of a bad step anew and write them to RUN/failure; gives the error to raise.

    The step is a function of (seed, step), so nothing had to be kept while training.
    """
    (batches,) = stream.batches(step, step + 1)
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        draws = method.draw(batch, step, generator(config.runtime.seed, step, batch.images.device))
        tensors |= _named_tensors(batch, f"{number}.batch") | _named_tensors(draws, f"{number}.draws")
    file = out / "failure" / f"step-{step + 1:08d}-process-{rank}.safetensors"
    try:
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, file)
        batch_is = f"in {file}"
    except (OSError, SafetensorError) as error:  # the loss is the error to report
        batch_is = f"not kept, because {file} cannot be written ({error})"
    found = find_checkpoint(out / "checkpoints")
    kept = f"the checkpoint of step {found.step} is good and kept" if found else "there is no checkpoint before it"
    return NonFiniteError(
        f"The loss or a gradient of step {step + 1} is infinite or NaN; {kept}, and the batch is {batch_is}. "
        f"Try optim.base_lr {config.optim.base_lr / 2:g}, optim.clip_norm 1 or runtime.precision float32 in another "
        f"folder, and check the images for extreme values."
    )


def _named_tensors(value: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a dataclass or named tuple and of those within it, by dotted names."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = [field.name for field in fields(value)] if is_dataclass(value) else getattr(value, "_fields", ())
    return {
        key: found for item in items for key, found in _named_tensors(getattr(value, item), f"{name}.{item}").items()
    }


def is_out_of_memory(error: Exception) -> bool:
    """Of whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def explain_memory(config: Pretrain, num_processes: int, needs: Requirements) -> Iterator[None]:
    """Turn running out of memory, on whatever device, into a `MemoryFullError` with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        accumulation, per_process = config.runtime.accumulation, config.batch_size // num_processes
        least = 2 if needs.even else 1  # images at once
        parts = range(accumulation + 1, 1 if needs.whole_batch else per_process // least + 1)
        found = next((a for a in parts if per_process % (a * least) == 0), None)
        step = num_processes * accumulation * least
        smaller = config.batch_size // 2 // step * step
        tries = []
        if found is not None:
            tries.append(
                f"Run the same command with runtime.accumulation {found} ({per_process // found} images at once)"
            )
        if smaller:
            tries.append(f"Start another run with batch_size {smaller}")
        advice = " or: ".join(tries) or "Choose a smaller model, larger patches or smaller images"
        raise MemoryFullError(
            f"Pretrain.batch_size must fit in memory; got {config.batch_size}, which is {per_process // accumulation} "
            f"images at once on each of {num_processes} device(s) with accumulation {accumulation}. "
            f"{advice}."
        ) from error
