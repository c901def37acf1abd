"""A small study: two arms, two seeds, two evaluations, a few steps each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tiny import DECODER, ENCODER

from pantomim.config import to_dict
from pantomim.study.cells import Study, expand
from pantomim.study.plan import load_plan

QUICK = {"lrs": [0.01, 0.1], "epochs": 2}


def plan_values(**changes: Any) -> dict[str, Any]:
    """The plan as in its file."""
    encoder = to_dict(replace(ENCODER, image_size=(16, 16)))
    return {
        "name": "tiny",
        "summary": "Does hiding more help?",
        "base": "mae_micro_cifar10",
        "seeds": [0, 1],
        "duration": {"steps": 4},
        "overrides": {
            "data": {"images": None},
            "method": {"encoder": encoder, "decoder": to_dict(DECODER)},
            "optim": {"warmup": {"steps": 1}},
            "batch_size": 16,
            "runtime": {"tracker": "none", "device": "cpu", "threads": 1},
        },
        "arms": {"half": {"method": {"masker": {"ratio": 0.5}}}, "most": None},
        "evaluations": {
            "knn": {"protocol": "knn", "data": "{data}", "device": "cpu"},
            "probe": {"protocol": "linear", "data": "{other}", "device": "cpu", **QUICK},
        },
        "compare": {"metrics": ["knn.top1", "probe.top1", "probe.top1_per_class"], "reference": "most"},
    } | changes


def write_plan(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(plan_values(**changes), sort_keys=False))
    return path


def tiny_study(folder: Path, source: Path, without: tuple[str, ...] = (), **changes: Any) -> Study:
    plan = load_plan(str(write_plan(folder / "tiny.yaml", **changes)))
    return expand(plan, {"data": str(source), "other": str(source)}, source=str(folder / "tiny.yaml"), without=without)
