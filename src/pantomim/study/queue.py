"""Jobs of a cluster that share the cells of a study: each carries out the study's command."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml


class Job:
    """What a job does; submitit queues it again when its time is over."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Carry out the command."""
        self._process = subprocess.Popen(self.command)
        if status := self._process.wait():
            raise subprocess.CalledProcessError(status, self.command)

    def checkpoint(self) -> Any:
        """Before the time limit: the command saves the step it is in, and the same job goes to the queue."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            with suppress(ChildProcessError):
                os.waitpid(self._process.pid, 0)  # `wait` is what the signal that led here has interrupted
        return DelayedSubmission(Job(self.command))


def queue_jobs(arguments: Sequence[str], jobs: int, folder: Path, options: Sequence[str]) -> tuple[str, list[str]]:
    """Have Slurm, or processes of this machine where there is none, run pantomim so many times beside each other.

    Logs go to the `folder`; `options` (NAME=VALUE) are those of submitit's executor, and its `cluster`.

    Returns: the name of the cluster, and the numbers of the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError(
            "Study.jobs needs submitit, which is not installed. Run `pip install 'pantomim[submitit]'`, or start the "
            "same command on each machine."
        ) from error
    try:
        values = {name: yaml.safe_load(value) for name, value in (text.split("=", 1) for text in options)}
        executor = submitit.AutoExecutor(folder, cluster=values.pop("cluster", None))
        executor.update_parameters(**{"name": "pantomim", "timeout_min": 24 * 60, **values})
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"Study.job must be NAME=VALUE, options of submitit's executor; got {' '.join(options)} ({error}). "
            f"Change them."
        ) from error
    job = Job([sys.executable, "-m", *arguments])
    with executor.batch():
        queued = [executor.submit(job) for _ in range(jobs)]
    return executor.cluster, [each.job_id for each in queued]
