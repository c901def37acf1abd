"""What is to be measured on a GPU runs on a CPU at micro sizes, so that it does not rot between two GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import benchmark

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
    assert done.returncode == 1
    assert set(result["about"]["sections"].values()) <= {"out of time", "not started", "done"}
    assert "out of time" in done.stdout or "not started" in result["about"]["sections"].values()


def test_the_kept_figures_make_the_page() -> None:
    benchmark("flops")  # which the page imports late
    page = benchmark("gpu_page")
    text = page.PAGE.read_text()
    for file in sorted(page.FOLDER.glob("*.json")):
        run = json.loads(file.read_text())
        assert page.table(run["records"]) in text
        assert page.bounds(run)["mae"] > max(r["images_s"] for r in run["records"] if r.get("what") == "mae-B")
