import io
import json
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from pantomim.engine.record import Clock, Recorder, peak_memory_gib, read_metrics

CPU = torch.device("cpu")


def recorder(path: Path, screen: io.StringIO, *, start: int = 0, total: int = 400, terminal: bool = False) -> Recorder:
    console = Console(file=screen, force_terminal=terminal, width=120)
    return Recorder(Accelerator(cpu=True), path, start=start, total=total, batch_size=10, console=console)


def values(loss: float) -> dict[str, float | None]:
    return {"loss": loss, "lr": 1e-3, "images_per_s": 100.0, "memory_gib": 0.5, "time_s": 2.0}


def test_each_logged_step_is_a_line_at_once(tmp_path: Path) -> None:
    with recorder(tmp_path / "metrics.jsonl", io.StringIO()) as record:
        record.log(1, values(0.5) | {"images_per_s": None, "gap": float("nan")})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, **values(0.5), "images_per_s": None, "gap": None}]


def test_lines_past_the_checkpoint_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 0.0}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    with recorder(path, io.StringIO(), start=2) as record:
        record.log(3, values(0.25))
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 0.0), (2, 0.0), (3, 0.25)]


@pytest.mark.parametrize("damage", [b'{"step": 2, "lo', b"\0\0\0\0", b"\xff\xfe"])
def test_a_damaged_line_in_the_middle_is_told_and_no_line_is_lost(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 1}\n' + damage + b'\n{"step": 3}\n'
    path.write_bytes(before)
    with pytest.raises(ValueError, match=r"got something else in line 2 of 3"):
        recorder(path, io.StringIO(), start=3).__enter__()
    assert path.read_bytes() == before
    path.write_bytes(b'{"step": 1}\n' + damage)
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_metrics_that_find_the_disk_full_name_their_file(tmp_path: Path) -> None:
    record = recorder(tmp_path / "metrics.jsonl", io.StringIO())
    record.__enter__()
    record._file.close()
    record._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115 - closed below
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        record.log(1, values(0.5))
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        record.__exit__(None, None, None)


@pytest.mark.parametrize(
    "broken",
    [
        "tensorboard.summary.writer.record_writer.RecordWriter.write",  # in a thread of its own
        "tensorboard.summary.writer.record_writer.RecordWriter.flush",
        "torch.utils.tensorboard.SummaryWriter.__init__",
        "torch.utils.tensorboard.SummaryWriter.close",
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tracker_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, full)
    screen, path = io.StringIO(), tmp_path / "metrics.jsonl"
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    with Recorder(accelerator, path, start=0, total=3, batch_size=1, console=Console(file=screen, width=200)) as record:
        for step in (1, 2, 3):
            record.log(step, values(0.5))
            time.sleep(0.02)
    assert len(read_metrics(path)) == 3
    assert screen.getvalue().count("No space left on device); metrics.jsonl has every logged step") == 1


def test_about_twenty_plain_lines_when_nobody_watches(tmp_path: Path) -> None:
    screen = io.StringIO()
    with recorder(tmp_path / "metrics.jsonl", screen) as record:
        for step in range(1, 401):
            record.log(step, values(1.0))
    lines = screen.getvalue().splitlines()
    assert 18 <= len(lines) <= 22
    assert lines[0] == "step   1/400  loss 1.0000  lr 1.0e-03  100 images/s  memory 0.5 GiB  left 0:40"
    assert lines[-1].startswith("step 400/400")


def test_what_is_measured_now_and_then_is_told_once_and_the_loss_beside_the_means(tmp_path: Path) -> None:
    screen = io.StringIO()
    with recorder(tmp_path / "metrics.jsonl", screen) as record:
        for step in range(1, 61):
            record.log(step, values(0.75) | {"baseline": 1.0} | ({"held_out_loss": 0.5} if step == 30 else {}))
    lines = screen.getvalue().splitlines()
    assert [line[:12] for line in lines if "held-out 0.5000" in line] == ["step  30/400"]
    assert all("25 % below predicting the mean" in line for line in lines)


def test_a_live_bar_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    with recorder(tmp_path / "metrics.jsonl", screen, terminal=True) as record:
        record.log(200, values(0.125))
    assert "200/400" in screen.getvalue()
    assert "left 0:20" in screen.getvalue()  # 200 steps of 10 images, at 100 a second
    assert "loss 0.1250" in screen.getvalue()
    assert "step 200/400" not in screen.getvalue()


def test_text_is_shown_as_it_is(tmp_path: Path) -> None:
    screen = io.StringIO()
    with recorder(tmp_path / "metrics.jsonl", screen) as record:
        record.say("a [bold] folder " + "x" * 200)
    assert screen.getvalue() == "a [bold] folder " + "x" * 200 + "\n"


def test_the_first_step_and_saving_do_not_count_for_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(_started=0.0)
    now[0] += 8
    clock.step(10, CPU)
    assert clock.lap() is None
    with clock.paused():
        now[0] += 4
    now[0] += 2
    clock.step(10, CPU)
    assert clock.lap() == clock.images_per_s == 5.0
    assert clock.total_s == 14.0


def test_the_clock_continues_at_the_next_start() -> None:
    clock = Clock(time_s=100.0, timed_images=50, timed_s=2.0)
    assert clock.images_per_s == 25.0
    assert clock.total_s >= 100.0
    assert Clock(*clock.progress()).images_per_s == 25.0


def test_memory_is_that_of_this_process() -> None:
    memory = peak_memory_gib(CPU)
    assert memory is not None
    assert 0.05 < memory < 64
