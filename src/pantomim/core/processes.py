"""Independent pieces of work side by side, each in a process of its own."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from pantomim.core.machine import num_cores
from pantomim.core.progress import tracked

LOG = logging.getLogger(__name__)
MOST = 4  # at once: each has libraries of its own in memory
GRACE_S = 20.0  # for a run to save its step, where the first process has gone

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], T]], what: str, log: Path) -> list[T]:
    """What the jobs give, in their order; as many at once as there are cores, in this process where there is one.

    A job can be pickled, keeps one core busy, and resumes what another process has left. What they print goes to the
    end of the file. An error or an interruption ends them all, with SIGTERM; the jobs of a process that was killed are
    done here.
    """
    count = min(num_cores(), len(jobs), MOST)
    if count < 2:
        return [job() for job in jobs]
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (log,)) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in tracked(as_completed(futures), what, len(futures)):
                future.result()
        except BrokenProcessPool:
            LOG.info("One of %d processes was killed: the rest goes on in one.", count)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    return [job() if future.exception() else future.result() for job, future in zip(jobs, futures, strict=True)]


def _begin(log: Path) -> None:
    """In a process: print into the file, and end as by SIGTERM with the process that began it."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
