"""Images whose colours are the classes of their masks, as folders of files: what a wrong place shows up in."""

import io
import json
from pathlib import Path

import numpy as np
from image_files import fill
from PIL import Image
from scipy.ndimage import gaussian_filter

COLOURS = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=np.uint8)


def regions(seed: int, size: tuple[int, int], num_classes: int = 3) -> np.ndarray:
    """A mask (H, W) of smooth regions."""
    fields = np.random.default_rng(seed).standard_normal((num_classes, *size))
    return np.argmax([gaussian_filter(field, 4) for field in fields], axis=0).astype(np.uint8)


def encoded(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(np.arange(768, dtype=np.uint8)[::-1].tobytes())
    image.save(buffer, "PNG")
    return buffer.getvalue()


def masked_files(counts: dict[str, int], size: tuple[int, int] = (40, 30), folder: str = "masks") -> dict[str, bytes]:
    """Files by name; sizes vary a little from image to image."""
    files = {}
    for part, (split, count) in enumerate(counts.items()):
        for k in range(count):
            mask = regions(100 * part + k, (size[0] + k % 3, size[1] + k % 2))
            files[f"images/{split}/{k:03}.png"] = encoded(COLOURS[mask])
            files[f"{folder}/{split}/{k:03}.png"] = encoded(mask)
    return files


def masked_folder(root: Path, counts: dict[str, int] | None = None, **options: object) -> Path:
    files = masked_files(counts or {"train": 12, "val": 3, "test": 5}, **options)  # type: ignore[arg-type]
    files["classes.json"] = json.dumps({"0": "black", "1": "red", "2": "green"}).encode()
    return fill(root, files)
