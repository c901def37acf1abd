"""A job of a cluster at the end of its time."""

import os
import signal
import sys
import threading
import time

import pytest

from pantomim.study.queue import Job

COMMAND = """
import pathlib, signal, sys, time
started, saved = map(pathlib.Path, sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: (saved.touch(), sys.exit(130)))
started.touch()
time.sleep(60)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # waited for by number
def test_before_its_time_limit_a_job_lets_its_command_save_and_is_queued_again(tmp_path):
    pytest.importorskip("submitit", reason="the extra submitit is not installed")
    started, saved = tmp_path / "started", tmp_path / "saved"
    job, again = Job([sys.executable, "-c", COMMAND, str(started), str(saved)]), []

    def time_is_over(*_):
        again.append(job.checkpoint())
        assert saved.exists()
        sys.exit()  # as submitit does

    def signal_once_it_runs():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, time_is_over)
    try:
        threading.Thread(target=signal_once_it_runs).start()
        with pytest.raises(SystemExit):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert again[0].function.command == job.command


def test_a_job_that_has_not_started_its_command_is_queued_again_as_it_is():
    pytest.importorskip("submitit", reason="the extra submitit is not installed")
    assert Job(["never"]).checkpoint().function.command == ["never"]
