"""What a set of masks looks like in numbers: spectrum, visible clusters, distance from masked to visible patches.

Maps are True where a patch is visible. Lengths are in patches, frequencies in cycles a patch: 0.5 is the finest pattern
along an axis, 0.707 the checkerboard.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

BAND_EDGES = (0.0, 0.05, 0.1, 0.15, 0.25, 0.35, 0.45, 0.55, 0.71)  # cycles a patch


@dataclass(frozen=True)
class VisibleStatistics:
    """Shape of what is left visible, a number for each mask."""

    num_visible: Int[np.ndarray, " B"]  # patches
    num_clusters: Int[np.ndarray, " B"]  # groups of visible patches that touch along an edge
    largest_cluster: Int[np.ndarray, " B"]  # patches of the largest group
    neighbours: Float[np.ndarray, " B"]  # visible ones of a visible patch's four, on average; none beyond the border
    mean_distance: Float[np.ndarray, " B"]  # from a masked patch to the nearest visible one, centre to centre
    max_distance: Float[np.ndarray, " B"]


def visible_statistics(visible: Bool[np.ndarray, "B h w"]) -> VisibleStatistics:
    """Clusters, neighbours and distances of every mask; none may cover everything or nothing."""
    _check(visible)
    num_visible = visible.sum(axis=(1, 2))
    clusters, largest = _clusters(visible)
    pairs = (visible[:, 1:] & visible[:, :-1]).sum(axis=(1, 2)) + (visible[:, :, 1:] & visible[:, :, :-1]).sum((1, 2))
    apart = float(sum(visible.shape[1:]))  # between masks: further than anything within one
    distance = ndimage.distance_transform_edt(~visible, sampling=(apart, 1.0, 1.0))  # 0 where visible
    return VisibleStatistics(
        num_visible=num_visible,
        num_clusters=clusters,
        largest_cluster=largest,
        neighbours=2 * pairs / num_visible,
        mean_distance=distance.sum(axis=(1, 2)) / (~visible).sum(axis=(1, 2)),
        max_distance=distance.max(axis=(1, 2)),
    )


def num_clusters(marked: Bool[np.ndarray, "B h w"]) -> Int[np.ndarray, " B"]:
    """Of each map, the number of groups of marked patches that touch along an edge."""
    return _clusters(marked)[0]


def periodogram(maps: np.ndarray) -> Float[np.ndarray, "B h w"]:
    """Power of each 2-D frequency over the map's variance: |DFT(m - mean)|² / (h w var(m)); white noise gives 1.

    Exactly, white noise gives n / (n - 1) for n values, as the mean is subtracted; the entry of frequency 0 is 0.
    """
    maps = np.asarray(maps, dtype=np.float64)
    centred = maps - maps.mean(axis=(1, 2), keepdims=True)
    variance = np.square(centred).mean(axis=(1, 2), keepdims=True)
    if not (variance > 0).all():
        flat = int(np.flatnonzero(variance == 0)[0])
        raise ValueError(f"periodogram.maps must vary; got one value in all of map {flat}. A constant has no spectrum.")
    return np.square(np.abs(np.fft.fft2(centred))) / (maps[0].size * variance)


def mask_spectrum(visible: Bool[np.ndarray, "B h w"]) -> Float[np.ndarray, "B K"]:
    """Radially averaged periodogram of each mask: mean power of the frequencies with round(n f) = k, for k = 1 ... K.

    n is the longer side of the grid, so bin k lies around k / n cycles a patch, and K = round(n / sqrt(2)) on an even
    square grid. White noise gives 1 in every bin. Spectral leakage of so small a window blurs all of it.

    Source: section 11 of the specification of ColorMAE, after the periodograms that its authors show.
    Deviation: theirs is not averaged radially and not divided by the variance.
    """
    _check(visible)
    power = periodogram(visible)
    bins = np.rint(max(visible.shape[1:]) * frequencies(*visible.shape[1:])).astype(int)
    return _binned(power, [bins == k for k in range(1, bins.max() + 1)])


def field_bands(
    fields: Float[np.ndarray, "B m n"] | Bool[np.ndarray, "B m n"], edges: tuple[float, ...] = BAND_EDGES
) -> Float[np.ndarray, "B bands"]:
    """Mean power of whole fields (or of thresholded ones) in bands of the radial frequency; white noise gives 1.

    A pixel is a patch; a band has its lower edge and not its upper one, and frequency 0 is in none. NaN in a band that
    so small a field has no frequency in.
    """
    radius = frequencies(*fields.shape[1:])
    bands = [(radius >= low) & (radius < high) & (radius > 0) for low, high in pairwise(edges)]
    return np.concatenate([_binned(periodogram(field[None]), bands) for field in fields])  # one by one: they are large


def frequencies(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Length of each 2-D frequency of `np.fft.fft2`, in cycles a patch."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])


def _binned(power: Float[np.ndarray, "B h w"], bins: list[np.ndarray]) -> Float[np.ndarray, "B K"]:
    """Mean power in each bin."""
    share = np.stack(bins).reshape(len(bins), -1).astype(np.float64)
    counts = share.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return power.reshape(len(power), -1) @ share.T / counts


def _clusters(visible: Bool[np.ndarray, "B h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Number of marked groups in each map, and patches in the largest."""
    touch = np.zeros((3, 3, 3), dtype=bool)
    touch[1] = ndimage.generate_binary_structure(2, 1)  # within a mask only
    labels, count = ndimage.label(visible, structure=touch)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    owner = np.zeros(count + 1, dtype=int)
    owner[labels] = np.arange(len(visible))[:, None, None]
    largest = np.zeros(len(visible), dtype=int)
    np.maximum.at(largest, owner[1:], sizes)
    return np.bincount(owner[1:], minlength=len(visible)), largest


def _check(visible: np.ndarray) -> None:
    shares = visible.mean(axis=(1, 2))
    if not ((shares > 0) & (shares < 1)).all():
        index = int(np.flatnonzero((shares == 0) | (shares == 1))[0])
        raise ValueError(
            f"Every mask must have visible and masked patches; got mask {index} with {shares[index]:.0%} visible. "
            f"Choose a larger grid or a ratio nearer to one half."
        )
