"""What a cache of a frozen teacher's features saves: whole runs with and without it, in turns, in one process.

    .venv/bin/python benchmarks/cache.py --data mnist --images 512 --epochs 4 --rounds 3

Three contenders on the same images, crops (none) and seed: without a cache; with an empty one, which is filled before
the first step; with one that an earlier run has filled. Their losses must be equal, bit for bit. The time is that of
the whole call, decoding and saving included; ratios are those of a round.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pantomim.config import Pretrain
from pantomim.data.transforms import Crop
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.recipes import prepare
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig


def configured(arguments: argparse.Namespace) -> Pretrain:
    """BEiT's form with features of a copy of its own first weights as the target."""
    prepared = prepare(
        "beit", data=arguments.data, size=arguments.size, epochs=arguments.epochs, target="features", teacher="random"
    )
    config = prepared.config
    target = FeatureTargetConfig(teacher=TeacherConfig(source="random"))
    return replace(
        config,
        batch_size=arguments.batch_size,
        method=replace(config.method, target=target),
        data=replace(config.data, images=arguments.images, crop=Crop("none", flip=arguments.flip)),
        runtime=replace(config.runtime, tracker="none", threads=1, log_every=1),
    )


def timed(config: Pretrain, out: Path) -> tuple[float, list[float]]:
    """Seconds of a whole run, and its losses."""
    begin = time.perf_counter()
    pretrain(config, out)
    return time.perf_counter() - begin, [row["loss"] for row in read_metrics(out / "metrics.jsonl")]


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", default="micro")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flip", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = configured(arguments)
    cached = replace(config, runtime=replace(config.runtime, cache=True))
    ratios: dict[str, list[float]] = {"empty": [], "filled": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            os.environ["PANTOMIM_CACHE"] = str(Path(folder, f"cache-{number}"))
            runs = [(name, use, Path(folder, f"{name}-{number}")) for name, use in
                    (("without", config), ("empty", cached), ("filled", cached))]  # fmt: skip
            found = {name: timed(use, out) for name, use, out in runs}
            for name, values in ratios.items():
                assert found[name][1] == found["without"][1], f"{name}: other losses"
                values.append(found["without"][0] / found[name][0])
            print(", ".join(f"{name} {seconds:.1f} s" for name, (seconds, _) in found.items()), flush=True)
        report = json.loads((runs[-1][2] / "cache.json").read_text())
    for name, values in ratios.items():
        low, high = min(values), max(values)
        print(f"without / {name}: {statistics.median(values):.2f} ({low:.2f} to {high:.2f}, {len(values)} rounds)")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
