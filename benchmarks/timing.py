"""Whether `explain --time` is right: its estimate of the whole run beside the run, turn by turn.

    .venv/bin/python benchmarks/timing.py --cifar10 cifar10.zip --photos photos.zip --rounds 2 --json out.json

A recipe's first steps are timed as `explain --time` does, then a run of so many steps is carried out as fit into
`--seconds`, and so on in turn, since a machine that is used by others gets faster and slower. The truth is the time of
the call of `pretrain`: opening the data, steps, looks at held-out images, checkpoints, export.
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

from pantomim.config import Duration, Pretrain, with_duration
from pantomim.engine.pretrain import pretrain
from pantomim.engine.runtime import compute_dtype
from pantomim.engine.timing import REACHED, matrix_flops_per_s, time_steps
from pantomim.explain import count_cost
from pantomim.recipes import prepare


def configs(cifar10: str, photos: str) -> dict[str, Pretrain]:
    """Five recipes: small images from memory, and photos that are decoded while training."""
    return {
        "mae_micro_cifar10": prepare("mae_micro_cifar10", data=cifar10).config,
        "cae_micro_cifar10, pixels": prepare("cae_micro_cifar10", data=cifar10, target="pixels").config,
        "simmim, micro, CIFAR-10": prepare("simmim", data=cifar10, size="micro").config,
        "ijepa, micro, CIFAR-10": prepare("ijepa", data=cifar10, size="micro").config,
        "mae, micro, photos": prepare("mae", data=photos, size="micro").config,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a run")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cpu, rows = torch.device("cpu"), []
    for name, config in configs(asked.cifar10, asked.photos).items():
        config = replace(config, runtime=replace(config.runtime, device="cpu", tracker="none"))
        flops, ratios, steps_s, by_flops = count_cost(config, compute_dtype(config.runtime, cpu)).step_flops, [], [], []
        for _ in range(asked.rounds):
            found = time_steps(config, asked.seconds / 2)
            steps = max(2, found.steps_within(found.start_s + asked.seconds))
            run = with_duration(config, Duration(steps=steps))
            speed = matrix_flops_per_s(cpu, torch.float32)
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                took = pretrain(run, Path(folder) / "run").wall_s
                whole = time.perf_counter() - begin
            ratios.append(replace(found, total=steps).run_s / whole)
            steps_s.append(took / steps)
            by_flops.append(config.batch_size * flops / (REACHED * speed) / (took / steps))
        row = {"recipe": name, "s_per_step": statistics.mean(steps_s), "ratios": ratios, "by_flops": by_flops}
        rows.append(row | {"load": os.getloadavg()[0]})
        print(json.dumps(rows[-1]), flush=True)
        if asked.json is not None:
            asked.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
