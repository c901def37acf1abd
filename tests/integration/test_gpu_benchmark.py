"""What is to be measured on a GPU runs on a CPU at micro sizes, so that it does not rot between two GPUs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark_scripts import benchmark

from pantomim.teachers.base import Teacher
from pantomim.tokenizers.dvae import DVAETokenizer

ROOT = Path(__file__).parents[2]


def measure(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A dry run, and what it wrote."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False)
    return done, json.loads((out / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_section_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    done, result = measure(tmp_path, "--budget", "850")
    errors = [record for record in result["records"] if record["kind"] == "error"]
    assert done.returncode == 0, (done.stdout, errors)
    assert set(result["about"]["sections"].values()) == {"done"}
    sections = list(benchmark("gpu").SECTIONS)
    assert [record["what"] for record in result["records"] if record["kind"] == "section"] == sections
    modes = {(record["what"], record["mode"]) for record in result["records"] if record["kind"] == "step"}
    assert {(f"{name}-B", "compiled") for name in ("mae", "cmt_mae", "beit", "dbot", "cae")} <= modes
    # compiled graphs are used again: by the library's own loop, and by other masks
    loops = [record for record in result["records"] if record["kind"] == "loop"]
    assert [record["new_graphs"] for record in loops] == [0, 0], loops


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path: Path) -> None:
    done, result = measure(tmp_path, "--budget", "3")
    outcomes = set(result["about"]["sections"].values())
    assert done.returncode == ("done" not in outcomes)
    assert outcomes <= {"out of time", "not started", "done"}
    assert "not started" in outcomes


@pytest.mark.parametrize(
    ("written", "ended", "outcomes", "status"),
    [
        ("section mae, section loop, section masks", "not started", "done, done, done", 0),
        ("section mae, section loop", "out of time", "done, done, out of time", 0),
        ("section mae", "not started", "done, not started, not started", 0),
        ("error mae, section mae, section loop", "out of time", "failed, done, out of time", 1),
        ("section mae", "failed (-9)", "done, failed (-9), not started", 1),
        ("error mae", "failed (1)", "failed, not started, not started", 1),
        ("", "out of time", "out of time, not started, not started", 1),
    ],
)
def test_outcomes_are_what_the_sections_of_a_process_wrote(written, ended, outcomes, status) -> None:
    gpu, names = benchmark("gpu"), ["mae", "loop", "masks"]
    records = [dict(zip(("kind", "what"), each.split(), strict=True)) for each in written.split(", ") if each]
    found = gpu.outcomes_of(names, records, ended)
    assert ", ".join(found.values()) == outcomes
    assert gpu.exit_status(found) == status


def test_sections_of_one_graph_share_a_process() -> None:
    processes = benchmark("gpu").processes
    assert processes(["probe", "mae", "dbot", "loop"], False) == [["probe"], ["mae", "loop"], ["dbot"]]
    assert processes(["probe", "mae", "dbot", "loop"], True) == [["probe"], ["mae", "dbot", "loop"]]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("status", [0, 1])
def test_make_draws_the_page_of_what_was_measured(status: int, tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ncase $1 in *gpu.py) exit {status};; esac\n')
    stub.chmod(0o755)
    command = ["make", "--old-file=.venv/installed", "gpu", f"BIN={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert [call.split()[0] for call in (tmp_path / "calls").read_text().splitlines()] == [
        "benchmarks/gpu.py",
        "benchmarks/gpu_page.py",
    ], done.stderr
    assert (done.returncode != 0) == status


def test_a_result_without_a_card_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, result = benchmark("gpu_page"), tmp_path / "result.json"
    monkeypatch.setattr(page, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(sys, "argv", ["gpu_page.py", "--add", str(result)])
    result.write_text(json.dumps({"about": {"dry": False, "card": "none", "date": "2026-01-01"}, "records": []}))
    with pytest.raises(SystemExit, match="2"):
        page.main()


@pytest.mark.parametrize("method", ["beit-B", "cae-B"])
def test_tokenizers_compute_in_what_they_do_by_default(method: str) -> None:
    bench = benchmark("gpu_bench")
    built = bench.build(SimpleNamespace(dry=True, device=torch.device("cpu")), method)
    assert [tokenizer.float16 for tokenizer in bench.modules(built, DVAETokenizer)] == [True]


class Guide(Teacher):
    """Tells how it was asked."""

    def forward(self, how: str = "eager") -> tuple[str, bool, bool]:
        """How, whether in float32, and whether products may be in TF32."""
        return how, self.float32, torch.backends.cuda.matmul.allow_tf32


def test_rows_of_guides_are_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    sections, guide, rows = benchmark("gpu_sections"), Guide(), {}
    guide._compiled_call_impl = lambda: guide.forward("compiled")
    step = object.__new__(sections.Step)
    step.method, step.images = SimpleNamespace(asked=(guide,)), 4
    monkeypatch.setattr(sections, "method_section", lambda *_, **__: step)
    sections.cmt_mae(SimpleNamespace(step=lambda step, what, mode, images: rows.update({mode: guide()})))
    assert rows == {
        "compiled, guides eager": ("eager", False, False),
        "compiled, guides eager in float32": ("eager", True, False),
        "compiled, guides too, in TF32": ("compiled", True, True),
    }


def test_the_kept_figures_make_the_page() -> None:
    benchmark("flops")  # which the page imports late
    page = benchmark("gpu_page")
    text = page.PAGE.read_text()
    for file in sorted(page.FOLDER.glob("*.json")):
        run = json.loads(file.read_text())
        assert page.table(run["records"]) in text
        assert page.bounds(run)["mae"] > max(r["images_s"] for r in run["records"] if r.get("what") == "mae-B")


def test_the_card_is_free_while_a_forward_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, held = benchmark("gpu_bench"), []
    bench, step = object.__new__(module.Bench), object.__new__(module.Step)
    bench.held, bench.dry, step.bench = 0, True, bench
    step.method = SimpleNamespace(asked=(), draw=bench.take)  # as guides do that are compiled in the first draw
    monkeypatch.setattr(module, "compile_whole", lambda *_: None)
    monkeypatch.setattr(module.Bench, "backend", lambda _: None)
    monkeypatch.setattr(module.Step, "__call__", lambda self: self.method.draw() or held.append(bench.held))
    with open(tmp_path / "lock", "w") as bench._lock:
        step.compile()
    assert held == [0]
