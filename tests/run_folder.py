"""A run folder without a run: every file that a report reads, with numbers that are easy to find again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pantomim.core.files import write_npz
from pantomim.evaluate.classification import class_scores
from pantomim.evaluate.segmenter import most_frequent, pixel_scores

NUM_STEPS, BATCH = 60, 32
CLASSES = ("sky", "<b>sea</b>", "sand")
COUNTS = torch.tensor([[[50, 20, 0], [60, 30, 10], [70, 25, 5]], [[40, 10, 0], [60, 30, 10], [75, 15, 10]]])


def write_run(path: Path, *, source: str = "mnist", recipe: str = "mae_demo", seed: int = 7) -> Path:
    """A finished run with two evaluations and pictures."""
    path.mkdir(parents=True)
    encoder = {"image_size": [8, 12], "patch_size": 4, "in_chans": 1, "width": 24, "depth": 3, "heads": 2}
    config = {
        "recipe": recipe,
        "data": {"source": source, "images": None},
        "method": {
            "kind": "mae",
            "encoder": encoder,
            "decoder": {"width": 16, "depth": 1, "heads": 2},
            "masker": {"kind": "random", "ratio": 0.75},
            "target": {"kind": "pixels", "normalise": "patch"},
        },
        "optim": {"base_lr": 0.0015, "weight_decay": 0.05, "warmup": {"steps": 6, "epochs": None}},
        "batch_size": BATCH,
        "duration": {"steps": NUM_STEPS, "epochs": None},
        "runtime": {"seed": seed},
        "init": None,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(path / "environment.json", environment())
    write_json(path / "finished.json", {"steps": NUM_STEPS, "wall_s": 50.0, "images_per_s": 64.0, "loss": 0.4321})
    write_json(path / "encoder.json", {"format_version": 1, "scale": {"divisor": 255.0}, "sha256": "ab12" * 16})
    header = json.dumps({"pos_embed": {"shape": [1, 7, 24]}, "norm.weight": {"shape": [24]}, "w": {"shape": [2, 500]}})
    (path / "encoder.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    write_metrics(path, [row(step) for step in range(1, NUM_STEPS + 1)])
    write_result(path, "linear-mnist", trained=0.9312, untrained=0.8014, pixels=0.8523)
    write_result(path, "knn-mnist", trained=0.7111, untrained=0.6222, pixels=0.9333)
    write_pictures(path)
    return path


def row(step: int, **changes: Any) -> dict[str, Any]:
    """A logged step: half a second each, a tenth of it waiting for data."""
    values = {"loss": 0.4 + 1.0 / step, "lr": 0.001 * (1 - step / NUM_STEPS), "images_per_s": 64.0}
    values |= {"data_wait_s": 0.05, "grad_norm": 1.0, "memory_gib": 0.5, "time_s": 0.5 * step}
    return {"step": step, **values, **changes}


def environment() -> dict[str, Any]:
    return {
        "started": "2026-01-02T03:04:05+00:00",
        "command": ["pantomim", "pretrain", "demo"],
        "seed": 7,
        "python": "3.11.9",
        "packages": {"pantomim": "0.1.0", "torch": "2.11.0", "timm": "1.0.19"},
        "git": "0123456789abcdef",
        "cpu": "Imaginary CPU",
        "cores": 2,
        "gpu": None,
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    (path / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in rows))


def write_result(path: Path, stem: str, *, num_test: int | None = 1000, **scores: Any) -> None:
    """An evaluation; a score is a share or a dictionary of them."""
    protocol, _, dataset = stem.partition("-")
    values = {who: score if isinstance(score, dict) else {"top1": score} for who, score in scores.items()}
    result = {"protocol": protocol, "protocol_version": 1, "dataset": dataset, "seed": 0, "encoder_sha256": "ab12" * 16}
    write_json(path / "eval" / f"{stem}.json", {**result, "data": {"num_test": num_test}, **values})


def write_finetuned(path: Path, num_classes: int = 10, *, images: int = 20, name: str = "photos", **more: Any) -> Path:
    """A run folder with a classifier, whose class k is taken for k + 1 in k of `images` images."""
    run, sha256 = path if path.exists() else write_run(path), "cd" * 32
    classes = [f"class {number}" for number in range(num_classes)]
    labels = torch.arange(num_classes).repeat_interleave(images)
    wrong = torch.arange(images).repeat(num_classes) < labels
    guesses = torch.where(wrong, (labels + 1) % num_classes, labels)
    logits = 3 * torch.eye(num_classes)[guesses] + 0.1 * torch.eye(num_classes)[labels]
    scores = class_scores(logits, labels, classes, [f"test/{number}.png" for number in range(len(labels))])
    result = {"protocol": "finetune", "dataset": name, "classifier_sha256": sha256, "trained": scores, **more}
    data = {"spec": f"{name}.zip", "num_test": len(labels), "test_split": "test"}
    write_json(run / "eval" / f"finetune-{name}.json", {**result, "data": data})
    write_json(
        run / "classifier.json", {"sha256": sha256, "encoder": {"image_size": [8, 12]}, "scale": {"divisor": 255}}
    )
    return run


def write_segmented(path: Path, *, name: str = "beach", classes: tuple[str, ...] = CLASSES, **more: Any) -> Path:
    """A run folder with a segmenter that was scored on two images, by `COUNTS`."""
    run, sha256 = path if path.exists() else write_run(path, recipe="segment_mae"), "cd" * 32
    result = {"protocol": "segment", "dataset": name, "segmenter_sha256": sha256}
    result["data"] = {"spec": f"{name}.zip", "num_test": len(COUNTS), "test_split": "test"}
    scores = {"trained": pixel_scores(COUNTS, classes), "most_frequent": most_frequent(COUNTS, classes)}
    write_json(run / "eval" / f"segment-{name}.json", {**result, **scores, **more})
    write_json(run / "segmenter.json", {"sha256": sha256, "encoder": {"image_size": [8, 12]}, "stride": 2 / 3})
    return run


def write_segmentations(run: Path, sizes: list[tuple[int, int]]) -> None:
    """Random images, true and predicted classes, of these sizes."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}_{k}": rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        for k, size in enumerate(sizes)
        for kind in ("image", "truth", "prediction")
    }
    about = {"items": [f"{k}.png" for k in range(len(sizes))], "colours": {"sky": "#800000", "<b>sea</b>": "#008000"}}
    about["caption"] = "Two images."
    write_npz(run / "analysis" / "segmentations.npz", arrays | {"about": np.array(json.dumps(about))})


def write_pictures(path: Path, *, channels: int = 1, size: tuple[int, int] = (8, 12), count: int = 4) -> None:
    """Random pictures of patches of 4 pixels."""
    rng = np.random.default_rng(0)
    shape = (count, *size, channels)
    pictures = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in ("original", "masked", "pasted")}
    mask = rng.random((count, size[0] // 4, size[1] // 4)) < 0.75
    about = {"items": [f"item {index}" for index in range(count)], "explained": 0.37, "normalized_target": True}
    about["caption"] = "Four pictures."
    (path / "analysis").mkdir(exist_ok=True)
    file = path / "analysis" / "reconstructions.npz"
    np.savez(file, reconstruction=pictures["pasted"], mask=mask, about=np.array(json.dumps(about)), **pictures)
