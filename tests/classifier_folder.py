"""A fine-tuned run without training: a classifier with random weights and its description."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import ENCODER

from pantomim.formats.native import CLASSIFIER, write_pair
from pantomim.nn.heads import Classifier


def write_classifier(folder: Path, classes: tuple[str, ...] = ("0", "1", "2", "3"), **changes: Any) -> Path:
    """A classifier of 16-pixel images; `changes` go to classifier.json, `channels` and `seed` to the network."""
    channels = changes.pop("channels", 3)
    torch.manual_seed(changes.pop("seed", 0))
    config = replace(ENCODER, in_chans=channels, mean=(0.5,) * channels, std=(0.3,) * channels)
    classifier = Classifier(config.build(), len(classes))
    torch.nn.init.normal_(classifier.head.weight)
    about = {
        "classifier": {"num_classes": len(classes), "pool": "mean"},
        "encoder": asdict(config),
        "mean": config.mean,
        "std": config.std,
        "scale": {"divisor": 255.0, "rule": "uint8: 255 becomes 1"},
        "recipe": "finetune_test",
        "classes": list(classes),
        "test_margin": 1.0,
        "chosen": {"step": 12, "weights": "weights", "metric": "top1", "validation": 0.5},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_pair(folder, CLASSIFIER, classifier.state_dict(), about | changes)
    return folder


def labelled(path: Path, classes: tuple[str, ...], count: int = 24, *, seed: int = 0, side: int = 16) -> Path:
    """Noise with a class for each image in turn, by the name of its class; all of them test."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 200, (count, 1, 1, 3))
    images = (levels + rng.integers(0, 56, (count, side, side, 3))).astype(np.uint8)
    labels = np.array(classes)[np.arange(count) % len(classes)]
    whole = {"images": np.tile(images, (2, 1, 1, 1)), "labels": np.tile(labels, 2)}
    np.savez(path, split=np.repeat(["train", "test"], count), **whole)
    return path
