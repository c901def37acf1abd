"""Each bare method at size micro, trained for some steps: seconds a step, memory, loss, k-NN beside it untrained.

    .venv/bin/python benchmarks/micro.py cifar10.zip --out runs/micro --steps 200
    .venv/bin/python benchmarks/micro.py cifar10.zip --out runs/micro-2000 --steps 2000 --seeds 0 1 2

The same command again resumes, and trains nothing that is done; METHOD-seedS.json holds what was measured of a run,
`table.md` all of it. Each run is a process of its own with one thread. Its seconds are those of the CPU, from the call
to its end (start of the run and held-out images included, imports not), and its memory is the process's peak.
It is a smoke test: nothing is tuned, and a k-NN score after so few steps ranks no methods.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

NEEDS: dict[str, dict[str, str]] = {  # what a method cannot do without, in the form that needs no training
    "beit": {"tokenizer": "random-projection-standardised"},
    "cae": {"tokenizer": "random-projection-standardised"},
    "cmt_mae": {"teacher": "random"},
    "milan": {"teacher": "random"},
}
METHODS = (
    *("mae", "colormae", "beit", "cae", "dbot", "cmt_mae", "milan", "maskfeat", "simmim", "data2vec", "mocov3"),
    "ijepa",
)
ENDS = 10  # steps over whose mean the first and the last loss are


def main() -> None:
    """Train what is not there yet, then print the table."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.methods:
            path = options.out / f"{name}-seed{seed}.json"
            if not path.exists():
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    found = pool.submit(measure, name, seed, vars(options)).result()
                path.write_text(json.dumps(found, indent=2) + "\n")
                print(row(name, [found]), flush=True)
    found = {name: [*map(read, sorted(options.out.glob(f"{name}-seed*.json")))] for name in options.methods}
    text = "\n".join([*HEADER, *(row(name, runs) for name, runs in found.items())]) + "\n"
    (options.out / "table.md").write_text(text)
    print(text)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="labelled images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000, help="of a stage, where a method has stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--size", default="micro")
    parser.add_argument("--images", type=int, help="of the training set, to train on and as neighbours")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all runs")
    return parser.parse_args()


def measure(name: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train one, and score it."""
    import yaml

    import pantomim.engine.pretrain  # imports are not part of what is timed
    import pantomim.recipes

    folder, images = options["out"] / f"{name}-seed{seed}", options["images"]
    settings = {"runtime.seed": seed, "runtime.threads": 1, "runtime.log_every": 1, "runtime.tracker": "none"}
    settings |= {"data.images": images} if images else {}
    settings |= {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options["set"])}
    begin, resumed = time.process_time(), folder.exists()
    given = {"data": options["data"], "size": options["size"], "steps": options["steps"], **NEEDS.get(name, {})}
    run = pantomim.pretrain(name, out=folder, settings=settings, **given)
    seconds = time.process_time() - begin
    if run.stages:
        folder = folder / f"stage-{len(run.stages) - 1}"
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    few = {"images": images} if images else {}
    scores = pantomim.evaluate("knn", encoder=folder, data=options["data"], out=folder / "knn.json", **few).scores
    return {
        "batch_size": config["batch_size"],
        "base_lr": config["optim"]["base_lr"],
        "cpu_s_a_step": None if resumed else seconds / (options["steps"] * max(len(run.stages), 1)),
        "memory_gib": max(entry.get("memory_gib", 0.0) for entry in log),
        "first_loss": mean(losses[:ENDS]),
        "last_loss": mean(losses[-ENDS:]),
        "knn": {contender: scores[contender] for contender in ("trained", "untrained", "pixels")},
    }


HEADER = (
    "| method | batch, rate per 256 | CPU s a step | GiB | loss, first and last steps | k-NN trained | untrained |",
    "|---|---|---|---|---|---|---|",
)


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """A method's line: means over seeds, and the std of scores where there are several."""

    def of(key: str) -> float:
        return mean(run[key] for run in runs)

    def score(contender: str) -> str:
        values = [100 * run["knn"][contender]["top1"] for run in runs]
        return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    if not runs:
        return f"| {name} | | | | | | |"
    timed = [run["cpu_s_a_step"] for run in runs if run["cpu_s_a_step"] is not None]  # a resumed run is not
    step = f"{mean(timed):.2f}" if timed else ""
    cost = f"{runs[0]['batch_size']}, {runs[0]['base_lr']:.1e} | {step} | {of('memory_gib'):.1f}"
    losses = f"{of('first_loss'):.3f}, {of('last_loss'):.3f}"
    return f"| {name} | {cost} | {losses} | {score('trained')} | {score('untrained')} |"


def read(path: Path) -> dict[str, Any]:
    """What was measured of one run."""
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()
