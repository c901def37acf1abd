"""A tiny labelled set of brightness ramps with noise, the same in every run, written as an .npz."""

from pathlib import Path

import numpy as np

RANGES = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-500, 10000), "float32": (0, 1)}


def write_synthetic(
    path: Path, num_images: int = 60, *, size: int = 16, channels: int = 3, dtype: str = "uint8", split: bool = True
) -> Path:
    """Images (N, C, H, W) over the whole range of their number type, in three classes; the last quarter is test."""
    rng = np.random.default_rng([size, channels])
    labels = np.arange(num_images) % 3
    ramp = np.linspace(0, 0.3, size) * (labels[:, None, None, None] + 1)
    low, high = RANGES[dtype]
    values = low + (high - low) * np.clip(ramp + rng.uniform(0, 0.1, (num_images, channels, size, size)), 0, 1)
    arrays = {"images": (values if dtype == "float32" else values.round()).astype(dtype), "labels": labels}
    if split:
        arrays["split"] = np.where(np.arange(num_images) < num_images - num_images // 4, "train", "test")
    np.savez(path, **arrays)
    return path
