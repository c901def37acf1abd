"""Why a run stops before its end: a signal, a non-finite loss, a full memory or disk; and how to resume."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator
from torch import Tensor

from pantomim.config import Pretrain


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A signal asked the run to stop; its text says what is saved; the same command resumes."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN; its text says what was kept and what to try."""


class MemoryFullError(RuntimeError):
    """A step did not fit in memory; its text names batch and accumulation values to try."""


class DiskError(OSError):
    """The run folder can no longer be written to; its text says why, and that the run can be resumed."""


class StopSignals:
    """Within this context SIGINT and SIGTERM end a run with `Interrupted`, wherever they meet it.

    A signal stops what is under way at once; within `deferred` the first one only asks (`requested`), and the second
    stops at once.
    """

    def __init__(self) -> None:
        self.requested = False
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
        if self.requested or not self._deferring:
            raise KeyboardInterrupt  # no Exception: nobody on the way takes it for a failure
        self.requested = True


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
        step = int(accelerator.gather(self.first_bad).min())
        return None if step == self.NEVER else step


@contextmanager
def explain_memory(config: Pretrain, num_processes: int) -> Iterator[None]:
    """Turn running out of memory, on whatever device, into advice.

    Raises:
        MemoryFullError: naming the batch and accumulation values to try.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        raise MemoryFullError(_advice(config, num_processes)) from error


@contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Turn a write into the run folder that failed into advice.

    Raises:
        DiskError: naming the folder and the reason.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"Pretrain.out must stay a folder that can be written to; got {folder} ({error.strerror or error}). "
            f"Make room, then run the same command to resume."
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _advice(config: Pretrain, num_processes: int) -> str:
    per_process = config.batch_size // num_processes
    accumulation = config.runtime.accumulation
    rows = per_process // accumulation
    divisors = (a for a in range(accumulation + 1, per_process + 1) if per_process % a == 0)
    found = next(divisors, None)
    if found is None:
        tries = "Not even one image at a time fits: choose a smaller model, larger patches or smaller images."
    else:
        smaller = max(num_processes * accumulation, config.batch_size // 2 // num_processes * num_processes)
        tries = (
            f"Run the same command with runtime.accumulation {found} ({per_process // found} images at once, equal up "
            f"to rounding), or start another run with batch_size {smaller}."
        )
    return (
        f"Pretrain.batch_size must fit in memory; got {config.batch_size}, which is {rows} images at once on each of "
        f"{num_processes} device(s) with accumulation {accumulation}. {tries}"
    )
