"""Mean and std of each channel, by which encoders normalise their images, and whether images are what they expect."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import nn

from pantomim.core.frozen import frozen
from pantomim.core.progress import tracked
from pantomim.core.scales import Scale
from pantomim.data.dataset import Dataset, num_threads
from pantomim.data.decoding import BrokenImageError

FAR = 5.0  # most that the mean of normalised images is from 0, and their std from 1, as a factor
FEW, MANY = 64, 4_000  # images that are measured
REMEDY = (
    "Set Dataset.scale to the stored value that becomes 1 (1 for floats from 0 to 1, 255 for 8-bit values kept as "
    "floats, 4095 for 12-bit ones), or convert the images."
)


@frozen
class Stats:
    """Mean and std of each channel over all pixels, in scaled units; a constant channel has std 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    constant: tuple[int, ...] = ()  # the channels that have one value everywhere


def channel_stats(dataset: Dataset, limit: int = MANY) -> Stats:
    """Measure the channels of a split, on at most `limit` images, evenly spaced, in float64."""
    indices = dataset.spread(limit)
    _, first = dataset.read_healthy(int(indices[0]))
    centre = first.mean(axis=(1, 2), dtype=np.float64)  # near the mean, so that squares lose no digits
    chunks = np.array_split(indices, max(1, len(indices) // 64))
    with ThreadPoolExecutor(num_threads()) as threads:
        measured = threads.map(lambda chunk: _sums(dataset, chunk, centre), chunks)
        sums = list(tracked(measured, "mean and std of the images", len(chunks)))
    num_pixels, total, square = (sum(parts) for parts in zip(*sums, strict=True))
    shift = total / num_pixels
    std = np.sqrt(np.maximum(square / num_pixels - shift**2, 0)) / dataset.scale.divisor
    mean = (centre + shift) / dataset.scale.divisor
    constant = std <= 1e-12 * np.maximum(1, np.abs(mean))
    std[constant] = 1.0
    return Stats(tuple(mean.tolist()), tuple(std.tolist()), tuple(np.flatnonzero(constant).tolist()))


def check_scale(network: nn.Module, dataset: Dataset) -> None:
    """Refuse images scaled by another rule than in a network's (or a part's) training; a given scale is believed."""
    own = dataset.scale
    for name, part in network.named_modules():
        trained = getattr(part, "scale", None)
        if not isinstance(trained, Scale) or own.given:
            continue
        if trained.divisor != own.divisor:
            raise ValueError(
                f"Dataset.scale must be the rule by which the images of {name or 'the network'} were scaled in its "
                f"training ({trained.rule}); got another ({own.rule}) for {dataset.spec}. {REMEDY}"
            )
        if dataset.facts.dtype != "uint8" and hasattr(part, "mean") and part.in_chans == dataset.channels:
            check_normalised(part, dataset)


def check_normalised(encoder: Any, dataset: Dataset) -> str | None:
    """Refuse images that an encoder's mean and std bring nowhere near mean 0 and std 1; warns of constant channels.

    Some are measured and, before they are refused, many: where most images are empty, a few say little.
    """
    for limit in (FEW, MANY):
        stats = channel_stats(dataset, limit)
        if (found := _misfit(encoder, stats)) is None:
            named = ", ".join(map(str, stats.constant))
            return f"channel {named} of {dataset.spec} is constant: its std is 0, and 1 is taken." if named else None
    raise ValueError(
        f"Images must have about mean 0 and std 1 once the encoder's mean and std have normalised them; got {found} "
        f"for {dataset.spec} ({dataset.scale.rule}). {REMEDY} Or give mean and std of these images "
        f"(method.encoder.mean, method.encoder.std); `pantomim stats {dataset.spec}` prints them."
    )


def _misfit(encoder: Any, stats: Stats) -> str | None:
    """Mean and std of normalised images, all channels together, where they are far from what they should be."""
    varying = [channel for channel in range(len(stats.std)) if channel not in stats.constant]
    mean, std = (np.asarray(values.tolist()) for values in (encoder.mean, encoder.std))
    centre = ((np.asarray(stats.mean) - mean) / std).mean()
    spread = np.sqrt(np.square(np.asarray(stats.std) / std)[varying].mean()) if varying else 1.0
    if abs(centre) <= FAR and 1 / FAR <= spread <= FAR:
        return None
    return f"mean {centre:.3g} and std {spread:.3g}"


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
