"""Mean and deviation of each channel, by which encoders normalise their images."""

import numpy as np

from pantomim.data.dataset import Dataset
from pantomim.data.decoding import BrokenImageError
from pantomim.frozen import frozen


@frozen
class Stats:
    """Mean and deviation of each channel over all pixels, in scaled units; a constant channel has deviation 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_images: int


def channel_stats(dataset: Dataset, limit: int = 10_000, memory_gib: float = 4.0) -> Stats:
    """Measure the channels of a split.

    Args:
        dataset: What to measure.
        limit: Most images to look at, evenly spaced.
        memory_gib: As for `Dataset.array`.
    """
    indices = np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).round().astype(np.int64)
    array = dataset.array(memory_gib)
    count, total, square, num_images = 0, np.zeros(dataset.channels), np.zeros(dataset.channels), 0
    centre: np.ndarray | None = None
    for chunk in np.array_split(indices, max(1, len(indices) // 64)):
        for values in [array[chunk]] if array is not None else _read(dataset, chunk):
            pixels = values.astype(np.float64)
            if centre is None:
                centre = pixels.mean(axis=(0, 2, 3))  # near the mean, so that squares lose no digits
            pixels -= centre[:, None, None]
            count += pixels.size // dataset.channels
            total += pixels.sum(axis=(0, 2, 3))
            square += np.einsum("bchw,bchw->c", pixels, pixels)
            num_images += len(values)
    assert centre is not None
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0)) / dataset.scale.divisor
    mean = (mean + centre) / dataset.scale.divisor + dataset.scale.offset
    std[std <= 1e-12 * np.maximum(1, np.abs(mean))] = 1.0
    return Stats(tuple(mean.tolist()), tuple(std.tolist()), num_images)


def _read(dataset: Dataset, indices: np.ndarray) -> list[np.ndarray]:
    images = []
    for index in indices:
        try:
            images.append(dataset.read(int(index))[None])
        except BrokenImageError:
            continue
    return images
