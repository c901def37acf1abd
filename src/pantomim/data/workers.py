"""Processes that read ahead; where the machine is too small for them, or one dies, the process that asks reads itself.

What is read does not depend on who reads it.
"""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.utils.data

from pantomim.core.machine import can_share

T = TypeVar("T")
Parts = TypeVar("Parts", bound=NamedTuple)  # of tensors, or None


def read_ahead(
    source: torch.utils.data.Dataset[T], items: range, workers: int, *, pin: bool, tell: Callable[[str], None]
) -> Iterator[T]:
    """What the source gives for the items, in order. If a worker dies, `tell` is told how."""
    loader = torch.utils.data.DataLoader(
        source,
        sampler=items,
        batch_size=None,
        num_workers=workers,
        # Who is killed leaves half of a batch in a pipe, and the thread that pins would wait for the rest for ever.
        pin_memory=pin and (workers == 0 or can_share(2**28)),
        generator=torch.Generator(),  # else starting the loader would draw from the global one
        worker_init_fn=_serve,
        collate_fn=_as_it_is,  # the default would make tensors of arrays
        # forked workers share the files held in memory
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    if workers == 0:
        yield from loader
        return
    done = 0
    with _Processes() as processes:
        if (batches := processes.start(loader)) is None:
            processes.kill()
        while batches is not None and done < len(items):
            try:
                made = processes.next_of(batches)
            except (OSError, RuntimeError, EOFError) as error:
                if "in DataLoader worker process" in str(error):  # what reading raises
                    raise
                trouble = processes.death(patience_s=1.0) or f"can no longer be reached ({error})"
                processes.kill()
                batches = None
                tell(
                    f"A worker that reads images {trouble}, as happens where memory runs out. Lower data.workers (0: "
                    f"none) or data.memory_gib."
                )
            else:
                yield made
                done += 1
        del batches  # ends them
    if done < len(items):
        yield from read_ahead(source, items[done:], 0, pin=pin, tell=tell)


def hand_over(read: Parts) -> Parts:
    """What a worker gives: tensors in shared memory if there is room, else arrays, which go through a pipe.

    The thread of the queue, which would share them later, loses what it cannot share, and the reader waits for ever.
    """
    if torch.utils.data.get_worker_info() is None:
        return read
    if can_share(sum(part.nbytes for part in read if part is not None)):
        with suppress(OSError, RuntimeError):  # others were quicker
            return _each(torch.Tensor.share_memory_, read)
    return _each(torch.Tensor.numpy, read)


def take_over(read: Parts) -> Parts:
    """What `hand_over` gave, as tensors."""
    if not isinstance(read[0], np.ndarray):
        return read
    warnings.warn(
        "Shared memory (/dev/shm) or the limit of open files (ulimit -n) is too small for what the workers read: it "
        "goes through pipes, which is slower. Raise it (shm-size of a container), or set data.workers to 0.",
        stacklevel=2,
    )
    return _each(torch.from_numpy, read)


def _each(change: Callable[[Any], Any], read: Parts) -> Parts:
    return type(read)(*(None if part is None else change(part) for part in read))  # type: ignore[arg-type]


def _as_it_is(read: T) -> T:
    return read


class _Processes:
    """The workers of a loader.

    A signal to the whole process group passes them by. The death of one is an error only where a batch is waited for:
    torch's own handler raises it wherever it meets this process, be it in the middle of an optimiser's step.
    """

    def __init__(self) -> None:
        self._processes: set[Any] = set()
        self._waiting = False
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> "_Processes":
        self._handles = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGCHLD) if self._handles else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGCHLD, self._before)

    def start(self, loader: "torch.utils.data.DataLoader[T]") -> Iterator[T] | None:
        """Start them; None, with a warning, if not all can be: then there is none."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # what is half made complains when it goes
        try:
            with _no_stops():
                return iter(loader)
        except (OSError, RuntimeError) as error:
            warnings.warn(
                f"No worker can be started ({error}): shared memory (/dev/shm), open files or processes are limited. "
                f"Images are read without any, which is slower; data.workers 0 asks for that.",
                stacklevel=3,
            )
            return None
        finally:
            sys.unraisablehook = hook
            self._processes = set(multiprocessing.active_children()) - self._others
            if self._handles:
                signal.signal(signal.SIGCHLD, self._notice)

    def next_of(self, batches: Iterator[T]) -> T:
        """The next batch."""
        self._waiting = True
        try:
            self._notice()
            return next(batches)
        finally:
            self._waiting = False

    def death(self, patience_s: float = 0.0) -> str | None:
        """How one of them ended that was not asked to; who is about to end takes a moment."""
        wait([process.sentinel for process in self._processes], patience_s)
        status = next((process.exitcode for process in self._processes if process.exitcode), None)
        if status is None:
            return None
        return f"was killed (signal {-status})" if status < 0 else f"ended (status {status})"

    def kill(self) -> None:
        """End them at once."""
        for process in self._processes:
            process.kill()

    def _notice(self, *_: object) -> None:
        if self._waiting and self.death() is not None:
            raise ChildProcessError


@contextmanager
def _no_stops() -> Iterator[None]:
    """Where SIGTERM and SIGINT wait; who is forked in it keeps them waiting."""
    if not hasattr(signal, "sigtimedwait"):  # workers could not be asked to end (macOS)
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(worker: int) -> None:
    """In a worker: end with the process that reads, or when that one asks; no other signal counts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):
        return
    parent = os.getppid()

    def watch() -> None:
        asked = None
        while os.getppid() == parent and (asked is None or asked.si_pid != parent):
            asked = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
