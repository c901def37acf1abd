"""A tiny labelled set of drawn shapes, for tests: the same in every run, learnable, and written as an .npz."""

from pathlib import Path

import numpy as np

CLASSES = ("disc", "square", "cross")


def synthetic_images(
    num_images: int, *, size: int = 16, channels: int = 3, dtype: str = "uint8", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Shapes of random place, size and colour on a shaded background.

    Args:
        num_images: Classes take turns, so that all are equally frequent.
        size: Side in pixels.
        channels: Any number.
        dtype: uint8 (0 to 255), uint16 (0 to 65535), int16 (-500 to 10000) or float32 (0 to 1).
        seed: Another seed, other images.

    Returns: images (N, C, H, W) and class ids (N).
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, size, channels]))
    labels = np.arange(num_images) % len(CLASSES)
    y, x = np.mgrid[:size, :size] / size
    slope = rng.uniform(-0.3, 0.3, (num_images, channels, 2, 1, 1))
    images = 0.3 + slope[:, :, 0] * (y - 0.5) + slope[:, :, 1] * (x - 0.5)
    colour = rng.uniform(0.6, 1.0, (num_images, channels))
    centre = rng.uniform(0.35, 0.65, (num_images, 2))
    radius = rng.uniform(0.18, 0.3, num_images)
    for k, label in enumerate(labels):
        down, right = np.abs(y - centre[k, 0]) / radius[k], np.abs(x - centre[k, 1]) / radius[k]
        inside = (down**2 + right**2 < 1, np.maximum(down, right) < 0.85, np.minimum(down, right) < 0.35)[label]
        inside = inside & (np.maximum(down, right) < 1)
        images[k, :, inside] = colour[k]
    low, high = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-500, 10000), "float32": (0, 1)}[dtype]
    values = low + images * (high - low)
    return (values if dtype == "float32" else values.round()).astype(dtype), labels.astype(np.int64)


def write_synthetic(
    path: str | Path,
    num_images: int = 60,
    *,
    size: int = 16,
    channels: int = 3,
    dtype: str = "uint8",
    labelled: bool = True,
    split: bool = True,
    seed: int = 0,
) -> Path:
    """Write such a set as an .npz that `open_source` reads; with `split`, the last quarter is the test part.

    Args:
        path: The file to write, ending in .npz.
        num_images: As for `synthetic_images`, like the arguments not named here.
        size: Side in pixels.
        channels: Any number.
        dtype: Number type.
        labelled: Whether class ids are written.
        split: Whether splits are written.
        seed: Another seed, other images.
    """
    images, labels = synthetic_images(num_images, size=size, channels=channels, dtype=dtype, seed=seed)
    arrays = {"images": images}
    if labelled:
        arrays["labels"] = labels
    if split:
        arrays["split"] = np.where(np.arange(num_images) < num_images - num_images // 4, "train", "test")
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return Path(path)
