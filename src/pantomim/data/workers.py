"""Processes that read ahead, which changes nothing of what is read; where they cannot, the one that asks reads."""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.utils.data

from pantomim.core.machine import can_share

T = TypeVar("T")
Parts = TypeVar("Parts", bound=NamedTuple)  # of tensors, or None
CAN_ASK = hasattr(signal, "sigtimedwait")  # else (macOS, Windows) workers that ignored SIGTERM could not be ended


def read_ahead(
    source: torch.utils.data.Dataset[T], items: range, workers: int, *, pin: bool, tell: Callable[[str], None]
) -> Iterator[T]:
    """What the source gives for the items, in order. If a worker dies, `tell` is told how."""
    loader: Any = torch.utils.data.DataLoader(
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
    done, waiting, others = 0, False, set(multiprocessing.active_children())
    processes: set[Any] = set()

    def notice(*_: object) -> None:
        # torch's handler raises wherever a death meets this process, be it in the middle of an optimiser's step
        if waiting and any(process.exitcode for process in processes):
            raise ChildProcessError

    in_main = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if in_main else None
    try:
        batches = _start(loader)
        processes = set(multiprocessing.active_children()) - others
        if in_main:
            signal.signal(signal.SIGCHLD, notice)
        while batches is not None and done < len(items):
            waiting = True
            try:
                notice()
                made = next(batches)
            except (OSError, RuntimeError, EOFError) as error:
                waiting = False  # or the notice of a death would meet this
                if "in DataLoader worker process" in str(error):  # what reading raises
                    raise
                ending = wait([process.sentinel for process in processes], 1.0)
                for process in processes:
                    process.join(1.0 if process.sentinel in ending else 0.0)  # its status comes a moment later
                status: Any = next((process.exitcode for process in processes if process.exitcode), error)
                how = f"was killed (signal {-status})" if status in range(-64, 0) else f"ended ({status})"
                tell(
                    f"A worker that reads images {how}, as happens where memory runs out. Lower data.workers (0: none) "
                    f"or data.memory_gib."
                )
                break
            finally:
                waiting = False
            yield made
            done += 1
        for process in processes if done < len(items) else ():
            process.kill()
        batches = None  # ends the others
    finally:
        if in_main:
            signal.signal(signal.SIGCHLD, before)
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


def _start(loader: Any) -> Any:
    """Start the workers, with SIGTERM and SIGINT blocked, which stays so in them; None if not all can be started."""
    stops = {signal.SIGINT, signal.SIGTERM}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops) if CAN_ASK else None
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # what is half made complains when it goes
    try:
        with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads, which torch has always
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
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
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(worker: int) -> None:
    """In a worker: end with the process that reads, or when that one asks; no other signal counts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        asked = None
        while os.getppid() == parent and (asked is None or asked.si_pid != parent):
            asked = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        os._exit(0)

    if CAN_ASK:
        threading.Thread(target=watch, daemon=True).start()
