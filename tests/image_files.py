"""Folders of small images, whole and broken."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, size: tuple[int, int] = (8, 10), channels: int = 3) -> bytes:
    shape = size if channels == 1 else (*size, channels)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def broken_folder(root: Path, num_good: int, num_broken: int) -> str:
    files = {f"{k:04}.png": png(k) for k in range(num_good)}
    good = png(0)
    for number in range(num_broken):  # whole header, cut pixels
        files[f"{number * 7 + 3:04}.png"] = good[: len(good) - 60]
    return str(fill(root, files))
