"""What one short stay at a GPU should find out about the training step, without hands.

    .venv/bin/python benchmarks/gpu.py --out runs/gpu                     # nine minutes at most: `make gpu`
    .venv/bin/python benchmarks/gpu.py --out runs/gpu --budget 200 --only mae,cmt_mae
    .venv/bin/python benchmarks/gpu.py --out /tmp/dry --dry               # micro sizes on the CPU: does it run at all?
    .venv/bin/python benchmarks/gpu_page.py --add runs/gpu/result.json    # keep it, and draw docs/results/gpu.md anew

On a machine that has torch, torchvision, timm, accelerate and transformers but no network, bring the rest as wheels (10
MB), here for its Python 3.12, in a folder that git ignores, and this repository:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 \
        --platform manylinux_2_28_x86_64 -d .wheels pydantic pydantic-core typing-inspection annotated-types tyro \
        docstring-parser typeguard simplejpeg
    python3 -m pip install --no-index --no-deps --target /tmp/site .wheels/*.whl       # there
    PYTHONPATH=/tmp/site:src python3 benchmarks/gpu.py --out OUT --budget 520

Nothing is downloaded, and images are synthetic, but for `--data` (a set such as CIFAR-10, for the library's own loop).
`--mae` is a folder with `models_mae.py` and `util/pos_embed.py` of facebookresearch/mae, timed beside ours.

The sections stand in order of worth. Those of one graph share a process, in which it is compiled once; every other has
its own, so that a crash, a hang or a full memory costs it alone. Three at most compile side by side on the cores; a
file lock lets one at a time use the card. Each record is a line of OUT/records.jsonl, on disk as soon as it is known,
and OUT/result.json is written anew whenever a process ends: a run that is cut off leaves what it has. That is the usual
end, as nine minutes are hardly enough for all; the exit status is 1 where a section failed, or none was measured.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path


@dataclass(frozen=True)
class Section:
    """What it measures, the seconds that it may take, and the graph that it shares with others."""

    what: str
    seconds: float
    graph: str = ""


SECTIONS = {
    "probe": Section("ceilings of the card: copy, products in four precisions, attention kernels at our shapes", 60),
    "mae": Section("MAE-B compiled at 512 images; parts of a step, kernels", 150, "mae"),
    "loop": Section("the library's own loop on resident images, same graph", 60, "mae"),
    "masks": Section("ColorMAE's masks on the same graph; every masker alone", 40, "mae"),
    "cmt_mae": Section("CMT-MAE-B compiled; with eager guides, these in float32, compiled ones in TF32", 200),
    "beit": Section("BEiT-B compiled and eager, tokenizer as large as DALL-E's; the tokenizer alone in four ways", 200),
    "dbot": Section("dBOT-B compiled and eager", 150),
    "cae": Section("CAE-B compiled and eager, 75 masked patches", 200),
    "peers": Section("MAE-B of transformers, eager and compiled, and of its authors, eager", 180),
    "eager": Section("MAE-B eager at 256, 512 and 1,024 images", 90),
    "input": Section("resident images cropped (compiled and eager) and augmented; JPEG through workers", 90),
    "small_net": Section("MAE of 192 x 12 at 4,096 images of 32 pixels: compiled, eager, the library's own loop", 120),
    "mae_l": Section("MAE-L compiled and eager at 256 images", 200),
    "agree": Section("two blocks of each method: losses and gradients in bfloat16 and compiled beside float32's", 200),
    "half": Section("MAE-B with the residual stream in bfloat16", 150),
    "graphs": Section("MAE of 192 x 12 at 512 images with CUDA graphs", 120),
    "regional": Section("MAE-B with one compiled block reused: start-up and speed", 150),
    "batches": Section("MAE-B compiled at 1,024 and 256 images", 200),
    "tuned": Section("MAE-B with products chosen by timing them (max-autotune)", 280),
}
LEAST = 25.0  # seconds that must be left to begin a section


def processes(names: list[str], dry: bool) -> list[list[str]]:
    """Which sections share a process; in a dry run all but the first, as starting one takes longer than a section."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(("dry" if dry and name != "probe" else SECTIONS[name].graph) or name, []).append(name)
    return [*groups.values()]


def outcomes_of(names: list[str], records: list[dict], ended: str) -> dict[str, str]:
    """How the sections of a process went, by what they wrote; the one in which it ended, `ended` so."""
    failed = {record["what"] for record in records if record["kind"] == "error"}
    over = {record["what"] for record in records if record["kind"] == "section"}
    outcomes = {}
    for name in names:
        outcomes[name] = "failed" if name in failed else "done" if name in over else ended
        ended = ended if name in over else "not started"
    return outcomes


def exit_status(outcomes: dict[str, str]) -> int:
    """Of a run: 1 where a section failed or none was measured; that there was no time for some is the usual end."""
    failed = any(outcome.startswith("failed") for outcome in outcomes.values())
    return int(failed or "done" not in outcomes.values())


class Running:
    """A process that works on sections."""

    def __init__(self, names: list[str], options: argparse.Namespace, out: Path, work: Path, deadline: float) -> None:
        self.names, self.began = names, time.time()
        self.limit = min(
            sum(SECTIONS[name].seconds for name in names) * (6 if options.dry else 1), deadline - self.began
        )
        threads = max(1, (os.cpu_count() or 2) // (options.workers + 1))
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            "OMP_NUM_THREADS": "1" if options.dry else "4",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, __file__, "--child", ",".join(names), "--until", str(self.began + self.limit)]
        command += ["--out", str(out), "--lock", str(work / "lock"), "--mae", options.mae, "--data", options.data]
        command += ["--dry"] * options.dry + ["--inductor"] * options.inductor
        with open(out / "logs.txt", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def ended(self) -> str | None:
        """What became of a section that it has not finished, or None while it works; one that is late is ended here."""
        if (code := self.process.poll()) is not None:
            return "not started" if code == 0 else f"failed ({code})"
        if time.time() - self.began <= self.limit:
            return None
        self.end()
        return "out of time"

    def end(self) -> None:
        """It leads a session of its own, to which all belongs that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
                return


def read_records(out: Path) -> list[dict]:
    """What the sections wrote so far."""
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def write_result(out: Path, outcomes: dict[str, str], options: argparse.Namespace) -> None:
    """All that is known so far, as one file."""
    records = read_records(out)
    machine = next((record for record in records if record["kind"] == "machine"), {})
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    about = {"date": str(date.today()), "commit": git.stdout.strip(), "card": machine.get("card", "none")}
    about |= {"dry": options.dry, "budget_s": options.budget, "sections": outcomes}
    whole = out / "result.json.new"
    whole.write_text(json.dumps({"about": about, "records": records}, indent=1) + "\n")
    whole.replace(out / "result.json")


def parent(options: argparse.Namespace) -> int:
    """Start processes while there is time, and keep what they write."""
    out, began = Path(options.out), time.time()
    names = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise SystemExit(f"--only must name sections: {', '.join(SECTIONS)}; got {', '.join(unknown)}.")
    out.mkdir(parents=True, exist_ok=True)
    (out / "records.jsonl").write_text("")
    (out / "logs.txt").write_text("")
    waiting, running, outcomes = processes(names, options.dry), [], dict.fromkeys(names, "not started")
    deadline, least = began + options.budget, 2.0 if options.dry else LEAST
    write_result(out, outcomes, options)  # or that of an earlier run would stand for one that is cut off
    with tempfile.TemporaryDirectory(prefix="pantomim-gpu-") as work:
        try:
            while running or (waiting and deadline - time.time() > least):
                alone = any("probe" in each.names for each in running)  # ceilings are those of an idle machine
                if waiting and not alone and len(running) < options.workers and deadline - time.time() > least:
                    running.append(Running(waiting.pop(0), options, out, Path(work), deadline))
                    continue
                for each in [*running]:
                    if (ended := each.ended()) is None:
                        continue
                    running.remove(each)
                    outcomes |= (found := outcomes_of(each.names, read_records(out), ended))
                    told = ", ".join(f"{name} {outcome}" for name, outcome in found.items())
                    print(f"[{time.time() - began:4.0f} s] {told}", flush=True)
                    write_result(out, outcomes, options)
                time.sleep(0.1)
        finally:
            for each in running:
                each.end()
    from gpu_page import table

    print(table(records := read_records(out)))
    for record in records:
        if record["kind"] == "error":
            print(f"ERROR in {record['what']}: {record['error']}")
    print(f"{time.time() - began:.0f} s; {out / 'result.json'}")
    return exit_status(outcomes)


def main() -> int:
    """Of the parent, or of a process that it started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/gpu")
    parser.add_argument("--budget", type=float, default=520, help="seconds in all")
    parser.add_argument("--only", default="", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--workers", type=int, default=3, help="processes at once")
    parser.add_argument("--data", default="", help="images for the loop of the small net; else synthetic ones")
    parser.add_argument("--mae", default="", help="a folder with the official code")
    parser.add_argument("--dry", action="store_true", help="micro sizes on the CPU; no figure means anything")
    parser.add_argument("--inductor", action="store_true", help="with --dry: compile to code (minutes)")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--lock", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child:
        return parent(options)
    import gpu_sections

    return gpu_sections.run(options.child.split(","), options)


if __name__ == "__main__":
    sys.exit(main())
