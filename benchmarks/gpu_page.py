"""The page of what `gpu.py` measured: every kept run as a table, and images/s beside the bound of each method.

.venv/bin/python benchmarks/gpu_page.py                               # docs/results/gpu/*.json into gpu.md
.venv/bin/python benchmarks/gpu_page.py --add runs/gpu/result.json    # and keep this one, by its date and card
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"
FOLDER, PAGE = RESULTS / "gpu", RESULTS / "gpu.md"
BEGIN = "<!-- below: written by benchmarks/gpu_page.py -->"
COLUMNS = {  # of a step's record, and how it is shown
    "batch": "{:,}",
    "images_s": "{:,.0f}",
    "ms": "{:.1f}",
    "issue_ms": "{:.1f}",
    "peak_gib": "{:.1f}",
    "syncs": "{}",
    "mfu": "{:.1%}",
    "of_bound": "{:.0%}",
    "compile_s": "{:.0f}",
}
HEADS = "what | mode | batch | images/s | ms | ms to issue | GiB | syncs | MFU | of the bound | s to compile"
OURS = ("mae", "cmt_mae", "dbot", "beit", "cae")  # drawn, at ViT-B


def table(records: list[dict[str, Any]]) -> str:
    """Steps and loops, as Markdown."""
    lines = [f"| {HEADS} |", "|---" * len(HEADS.split("|")) + "|"]
    for record in (record for record in records if record["kind"] in ("step", "loop")):
        cells = [form.format(record[name]) if record.get(name) is not None else "" for name, form in COLUMNS.items()]
        lines.append(f"| {' | '.join([record['what'], record['mode'], *cells])} |")
    return "\n".join(lines)


def bounds(run: dict[str, Any]) -> dict[str, float]:
    """Images a second at most, by the ceilings of the run's card."""
    from flops import METHODS  # late: `gpu.py` prints tables without torch

    machine = next(record for record in run["records"] if record["kind"] == "machine")
    ceilings = machine["bfloat16_tflops"] * 1e12, machine["copy_tb_s"] * 1e12
    return {name: METHODS[name]("B").rate(*ceilings) for name in OURS}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A row for each method: its bound as a pale bar, what each run measured as marks; MAE of others beside ours."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gpu"  # the same file for the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    most = bounds(runs[-1])
    axes.barh(OURS, [most[name] for name in OURS], color="#dbe4ee", label=f"bound, {runs[-1]['about']['card']}")
    marks = {"compiled": ("o", "#1f5f8b", -0.27), "eager": ("s", "#b45f1f", 0.36), "others": ("D", "#777777", -0.27)}
    for run in runs:
        for kind, (mark, colour, above) in marks.items():
            best: dict[tuple[str, str], float] = {}  # of the batch sizes
            for record in (record for record in run["records"] if record["kind"] == "step"):
                method, others = record["what"].removesuffix("-B"), record["what"].endswith(", B")
                if (others and kind == "others") or (method in OURS and record["mode"].startswith(kind)):
                    key = "mae" if others else method, record["what"] + record["mode"]
                    best[key] = max(best.get(key, 0), record["images_s"])
            about, rows = run["about"], [name for name, _ in best]
            label = f"{kind}, {about['card']}, {about['date']}"
            axes.scatter([*best.values()], rows, marker=mark, color=colour, s=28, zorder=3, label=label)
            for (name, _), rate in best.items() if kind != "others" else ():
                place = (rate, OURS.index(name) + above)
                axes.text(*place, f"{rate:,.0f}", ha="center", fontsize=8, color=colour)
    axes.invert_yaxis()
    axes.set_xlabel("images/s, one step of ViT-B/16 at 224 x 224")
    axes.legend(loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def write_page() -> None:
    """Replace what stands below the mark in the page."""
    runs = [json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))]
    draw(runs, FOLDER / "images_per_s.svg")
    parts = [PAGE.read_text().partition(BEGIN)[0] + BEGIN]
    for run in reversed(runs):
        about, machine = run["about"], next(r for r in run["records"] if r["kind"] == "machine")
        parts.append(f"## {about['card']}, {about['date']}, code of commit {about['commit']}")
        parts.append(
            f"torch {machine['torch']}. Ceilings: copy {machine['copy_tb_s']:.2f} TB/s (read and written), products "
            f"{machine['bfloat16_tflops']:.0f} TFLOP/s bfloat16, {machine['float16_tflops']:.0f} float16, "
            f"{machine['tf32_tflops']:.0f} TF32, {machine['float32_tflops']:.0f} float32."
        )
        parts.append(table(run["records"]))
        if missing := [name for name, outcome in about["sections"].items() if outcome != "done"]:
            parts.append(f"Not measured, or not to the end: {', '.join(missing)}.")
    PAGE.write_text("\n\n".join(parts) + "\n")


def main() -> None:
    """Keep a result, if one is given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, help="a result.json")
    options = parser.parse_args()
    if options.add is not None:
        text = options.add.read_text()
        about = json.loads(text)["about"]
        if about["card"] == "none":  # of a dry run, too
            parser.error("only a run whose `probe` found a GPU has figures to keep")
        card = re.sub(r"[^a-z0-9]+", "-", about["card"].lower()).strip("-")
        (FOLDER / f"{about['date']}-{card}.json").write_text(text)
    write_page()


if __name__ == "__main__":
    main()
