"""Independent pieces of work side by side, each in a process of its own."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeVar

from pantomim.core.machine import num_cores
from pantomim.core.progress import report

LOG = logging.getLogger(__name__)
MOST = 4  # at once: each has libraries of its own in memory
GRACE_S = 20.0  # for a run to save its step

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], T]], what: str, log: Path) -> list[T]:
    """What the jobs give, in their order; as many at once as there are cores, in this process where there is one.

    A job, and what it gives, can be pickled; it keeps one core busy, and resumes what another process has left. What
    they print goes to the end of the file. An error or an interruption ends them all, with SIGTERM; one whose process
    was killed is done by another.
    """
    count = min(num_cores(), len(jobs), MOST)
    if count < 2:
        return [job() for job in jobs]
    context, waiting, found = multiprocessing.get_context("spawn"), list(range(len(jobs))), dict[int, T]()
    processes, pipes, busy = list[SpawnProcess](), list[Connection](), dict[Connection, int]()
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(theirs, log)))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
            busy[ours] = number = waiting.pop(0)
            ours.send(jobs[number])
        while busy:
            report(what, len(found), len(jobs))
            wait(list(busy))
            for free in [each for each in busy if each.poll()]:
                number = busy.pop(free)
                try:
                    found[number], error = free.recv()
                except (EOFError, ConnectionResetError):
                    LOG.info("A process was killed: another takes over its work.")
                    waiting.append(number)
                    continue
                if error is not None:
                    raise error
                if waiting:
                    busy[free] = number = waiting.pop(0)
                    free.send(jobs[number])
    finally:
        for ours in pipes:  # whoever waits for another job ends
            ours.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GRACE_S)
            process.kill()
    found |= {number: jobs[number]() for number in waiting}  # where no process is left
    report("working")
    return [found[number] for number in range(len(jobs))]


def _serve(jobs: Connection, log: Path) -> None:
    """In a process: do what comes, print into the file, and end as by SIGTERM with the process that began it."""
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
    with suppress(EOFError, OSError):  # the first process wants no more
        while True:
            job = jobs.recv()
            try:
                found, error = job(), None
            except Exception as raised:
                found, error = None, raised
            jobs.send((found, error))
