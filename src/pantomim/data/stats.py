"""Mean and std of each channel, by which encoders normalise their images."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pantomim.core.frozen import frozen
from pantomim.data.dataset import Dataset, evenly_spaced, num_threads
from pantomim.data.decoding import BrokenImageError


@frozen
class Stats:
    """Mean and std of each channel over all pixels, in scaled units; a constant channel has std 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_stats(dataset: Dataset, limit: int = 4_000) -> Stats:
    """Measure the channels of a split, on at most `limit` images, evenly spaced, in float64."""
    indices = evenly_spaced(len(dataset), limit)
    _, first = dataset.read_healthy(int(indices[0]))
    centre = first.mean(axis=(1, 2), dtype=np.float64)  # near the mean, so that squares lose no digits
    chunks = np.array_split(indices, max(1, len(indices) // 64))
    with ThreadPoolExecutor(num_threads()) as threads:
        sums = list(threads.map(lambda chunk: _sums(dataset, chunk, centre), chunks))
    num_pixels, total, square = (sum(parts) for parts in zip(*sums, strict=True))
    shift = total / num_pixels
    std = np.sqrt(np.maximum(square / num_pixels - shift**2, 0)) / dataset.scale.divisor
    mean = (centre + shift) / dataset.scale.divisor
    std[std <= 1e-12 * np.maximum(1, np.abs(mean))] = 1.0
    return Stats(tuple(mean.tolist()), tuple(std.tolist()))


def _sums(dataset: Dataset, indices: np.ndarray, centre: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of pixels, and the sums of their distances to `centre` and of the squares of these, by channel."""
    num_pixels, total, square = 0, np.zeros(len(centre)), np.zeros(len(centre))
    for index in indices:
        try:
            image = dataset.read(int(index))
        except BrokenImageError:
            continue
        pixels = image.reshape(len(centre), -1) - centre[:, None]
        num_pixels += pixels.shape[1]
        total += pixels.sum(axis=1)
        square += np.square(pixels).sum(axis=1)
    return num_pixels, total, square
