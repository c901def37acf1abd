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


OBJECTS = (
    b"Idx\tRatio\tTrain\tVal\tName\n"
    b"1\t0.1576\t11664\t1172\twall\n2 \t0.1\t1\t1\tbed \n3\t0.1\t1\t1\twindowpane, window \n"
)


def ade20k_files(wrapper: str = "", counts: tuple[int, int] = (6, 3)) -> dict[str, bytes]:
    """As distributed: 0 is no class, classes count from 1."""
    files = {"objectInfo150.txt": OBJECTS, "sceneCategories.txt": b"ADE_train_000 attic\n"}
    for split, name, count in (("training", "train", counts[0]), ("validation", "val", counts[1])):
        for k in range(count):
            mask = regions(k, (20, 18))
            files[f"images/{split}/ADE_{name}_{k:08}.jpg"] = jpeg(COLOURS[mask])
            stored = mask + 1
            stored[:2], stored[2, :5] = 0, 255
            files[f"annotations/{split}/ADE_{name}_{k:08}.png"] = encoded(stored)
    return {wrapper + name: data for name, data in files.items()}


def jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def masked_arrays(path: Path, channels: int = 3, counts: tuple[int, int] = (24, 8), side: int = 40) -> Path:
    """An .npz of images whose values are their classes, with noise; of more than three channels reflectances."""
    count = sum(counts)
    masks = np.stack([regions(k, (side, side)) for k in range(count)])
    levels = np.random.default_rng(0).integers(0, 200, (3, channels))
    noise = np.random.default_rng(1).integers(0, 50, (count, side, side, channels))
    images = (levels[masks] + noise).astype(np.uint8)
    if channels > 3:
        images = (images.astype(np.int16) * 30).transpose(0, 3, 1, 2)
    split = np.repeat(["train", "test"], counts)
    np.savez(path, images=images, masks=masks, split=split, mask_classes=["black", "red", "green"])
    return path
