"""Jobs side by side: order, errors, and processes that are killed, the first one too."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pantomim.core import processes
from pantomim.core.processes import side_by_side

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "num_cores", lambda: 2)


def told(number: int, mark: Path | None = None) -> tuple[int, int]:
    """The number, and in which process; the first call with a mark kills its process."""
    os.write(1, f"number {number}\n".encode())
    if mark is not None and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid()


def refuses(out: Path) -> None:
    out.touch()
    raise ValueError("no such thing")


def waits(out: Path, seconds: float = 60.0) -> None:
    """Until it is asked to stop, which is written down."""

    def stop(number: int, frame: object) -> None:
        out.write_text("stopped")
        raise InterruptedError

    signal.signal(signal.SIGTERM, stop)
    out.touch()
    time.sleep(seconds)


def test_results_are_in_the_order_of_the_jobs_and_prints_in_the_log(tmp_path: Path) -> None:
    found = side_by_side([partial(told, number) for number in range(5)], "numbers", tmp_path / "log")
    assert [number for number, _ in found] == list(range(5))
    assert os.getpid() not in {process for _, process in found}
    assert sorted((tmp_path / "log").read_text().splitlines()) == [f"number {number}" for number in range(5)]


def test_one_job_or_one_core_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert side_by_side([partial(told, 3)], "numbers", tmp_path / "log") == [(3, os.getpid())]
    monkeypatch.setattr(processes, "num_cores", lambda: 1)
    assert side_by_side([partial(told, 3)] * 2, "numbers", tmp_path / "log") == [(3, os.getpid())] * 2


def test_what_a_killed_process_leaves_is_done_here(tmp_path: Path) -> None:
    jobs = [partial(told, number, tmp_path / "killed") for number in range(3)]
    assert [number for number, _ in side_by_side(jobs, "numbers", tmp_path / "log")] == [0, 1, 2]
    assert (tmp_path / "killed").exists()


def test_an_error_ends_the_others_by_a_signal(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        side_by_side([partial(waits, tmp_path / "a"), partial(refuses, tmp_path / "b")], "jobs", tmp_path / "log")
    assert not (tmp_path / "a").exists() or (tmp_path / "a").read_text() == "stopped"


def test_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    outs = [tmp_path / "a", tmp_path / "b"]
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
from functools import partial
from pathlib import Path
from test_side_by_side import processes, side_by_side, waits
processes.num_cores = lambda: 2
if __name__ == "__main__":
    side_by_side([partial(waits, Path(out)) for out in {list(map(str, outs))}], "jobs", Path({str(tmp_path / "log")!r}))
"""
    (tmp_path / "main.py").write_text(code)
    first = subprocess.Popen([sys.executable, str(tmp_path / "main.py")])
    wait_for(lambda: all(out.exists() for out in outs))
    first.kill()
    first.wait()
    wait_for(lambda: all(out.read_text() == "stopped" for out in outs))


def wait_for(holds, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)
