"""A run of segmentation without training: a segmenter with random weights and its description."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import ENCODER

from pantomim.formats.native import save_segmenter
from pantomim.nn.segmenter import LinearHeadConfig, Segmenter


def write_segmenter(folder: Path, classes: tuple[str, ...] = ("black", "red", "green"), **changes: Any) -> Path:
    """A segmenter of windows of 16 pixels; `changes` go to segmenter.json, `seed` to the network."""
    torch.manual_seed(changes.pop("seed", 0))
    head = LinearHeadConfig()
    segmenter = Segmenter(replace(ENCODER, depth=1).build(), len(classes), head)
    torch.nn.init.normal_(segmenter.head.conv_seg.weight)
    about: dict[str, Any] = {
        "classes": list(classes),
        "class_ids": list(range(len(classes))),
        "no_class": 255,
        "test_size": [64, 16],
        "stride": 0.5,
        "chosen": {"step": 12, "weights": "weights", "metric": "miou", "validation": 0.5},
    }
    scale = {"divisor": 255.0, "rule": "uint8: 255 becomes 1"}
    folder.mkdir(parents=True, exist_ok=True)
    save_segmenter(folder, segmenter, head=head, scale=scale, recipe="segment_test", **about | changes)
    return folder
