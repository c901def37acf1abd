"""Independent pieces of work side by side, each in a process of its own."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
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

    A job can be pickled, keeps one core busy, and resumes what another process has left. What they print goes to the
    end of the file. An error or an interruption ends them all, with SIGTERM; a job whose process was killed is done
    here.
    """
    count = min(num_cores(), len(jobs), MOST)
    if count < 2:
        return [job() for job in jobs]
    context, waiting, found = multiprocessing.get_context("spawn"), list(range(len(jobs))), dict[int, T]()
    running: dict[Connection, tuple[int, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < count:
                number = waiting.pop(0)
                result, there = context.Pipe(duplex=False)
                process = context.Process(target=_carry_out, args=(jobs[number], there, log))
                process.start()
                there.close()
                running[result] = number, process
            report(what, len(found), len(jobs))
            wait(list(running))
            for result in [each for each in running if each.poll()]:
                number, process = running.pop(result)
                try:
                    given, error = result.recv()
                except EOFError:
                    LOG.info("A process was killed: its work goes on here.")
                    given, error = jobs[number](), None
                process.join()
                if error is not None:
                    raise error
                found[number] = given
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(GRACE_S)
            process.kill()
    report("working")
    return [found[number] for number in range(len(jobs))]


def _carry_out(job: Callable[[], T], result: Connection, log: Path) -> None:
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
    try:
        result.send((job(), None))
    except Exception as error:
        result.send((None, error))
