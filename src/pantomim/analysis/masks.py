"""What a strategy masks, before it costs a GPU-day: masks drawn, measured, and photographs to lay them on.

Maps are True where a patch is visible. Lengths are in patches, frequencies in cycles a patch: 0.5 is the finest pattern
along an axis, 0.707 the checkerboard.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pantomim.core.mask import Mask
from pantomim.core.names import did_you_mean
from pantomim.core.scales import scale_of
from pantomim.data.decoding import BrokenImageError, decode
from pantomim.data.pictures import shown_bands, to_picture
from pantomim.data.transforms import centred_boxes, resize_one
from pantomim.masking import STRATEGIES, Masker
from pantomim.masking.bank import bank_on
from pantomim.masking.color_noise import ColorNoiseMasker

BAND_EDGES = (0.0, 0.05, 0.1, 0.15, 0.25, 0.35, 0.45, 0.55, 0.71)  # cycles a patch
AROUND = 4  # a pattern is shown this many times as high and wide as the window that is cut out of it
PHOTO_SIDE = 320  # pixels of the longer side, about


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
    from scipy import ndimage  # takes long, so only where it is needed

    distance = ndimage.distance_transform_edt(~visible, sampling=(apart, 1.0, 1.0))  # 0 where visible
    mean, highest = distance.sum(axis=(1, 2)) / (~visible).sum(axis=(1, 2)), distance.max(axis=(1, 2))
    return VisibleStatistics(num_visible, clusters, largest, 2 * pairs / num_visible, mean, highest)


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
    """Mean power of fields in bands [low, high) of the radial frequency; white noise gives 1, an empty band NaN."""
    radius = frequencies(*fields.shape[1:])
    bands = [(radius >= low) & (radius < high) & (radius > 0) for low, high in pairwise(edges)]
    return np.concatenate([_binned(periodogram(field[None]), bands) for field in fields])  # one by one: they are large


def frequencies(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Length of each 2-D frequency of `np.fft.fft2`, in cycles a patch."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])


def _binned(power: Float[np.ndarray, "B h w"], bins: list[np.ndarray]) -> Float[np.ndarray, "B K"]:
    share = np.stack(bins).reshape(len(bins), -1).astype(np.float64)
    counts = share.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return power.reshape(len(power), -1) @ share.T / counts


def _clusters(visible: Bool[np.ndarray, "B h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Number of marked groups in each map, and patches in the largest."""
    from scipy import ndimage

    touch = np.zeros((3, 3, 3), dtype=bool)
    touch[1] = ndimage.generate_binary_structure(2, 1)  # within a mask only
    labels, count = ndimage.label(visible, structure=touch)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    owner = np.zeros(count + 1, dtype=int)
    owner[labels] = np.arange(len(visible))[:, None, None]
    largest = np.zeros(len(visible), dtype=int)
    np.maximum.at(largest, owner[1:], sizes)
    return np.bincount(owner[1:], minlength=len(visible)), largest


@dataclass(frozen=True)
class Pattern:
    """A piece of a noise pattern, and the mask of the window in its middle."""

    values: Float[np.ndarray, "H W"]  # any range
    top: int  # first row of the window ...
    left: int  # ... and its first column
    visible: Bool[np.ndarray, "h w"]  # what the window leaves visible: its highest values

    @property
    def window(self) -> Float[np.ndarray, "h w"]:
        """The values of the window."""
        height, width = self.visible.shape
        return self.values[self.top : self.top + height, self.left : self.left + width]


@dataclass(frozen=True)
class MaskSurvey:
    """Masks of one strategy and what was measured on them."""

    name: str
    visible: Bool[np.ndarray, "B h w"]  # every mask that was drawn, True where visible
    spectrum: Float[np.ndarray, " K"]  # mean of `mask_spectrum`; bin k lies at k / (longer side) cycles a patch
    statistics: VisibleStatistics
    left_out: int  # masks of nothing or everything, as BEiT's sampler may draw; not in spectrum and statistics
    pattern: Pattern | None  # where the masks are cut out of one

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.visible.shape[1], self.visible.shape[2]

    @property
    def visibility(self) -> Float[np.ndarray, "h w"]:
        """Share of the masks in which each position is visible."""
        return self.visible.mean(axis=0)

    @property
    def num_masked(self) -> np.ndarray:
        """Masked patches of each draw."""
        return (~self.visible).sum(axis=(1, 2))


@dataclass(frozen=True)
class Photo:
    """A picture of which every patch is a square of whole pixels."""

    name: str
    pixels: UInt8[np.ndarray, "H W C"]


def parse_grid(text: str) -> tuple[int, int]:
    """Rows and columns from ROWSxCOLUMNS."""
    found = re.fullmatch(r"([1-9]\d{0,3})[x×]([1-9]\d{0,3})", text.strip().lower())
    if found is None:
        raise ValueError(f"masks.grid must be ROWSxCOLUMNS; got {text}. Write 14x14 for 14 rows and 14 columns.")
    return int(found[1]), int(found[2])


def choose_maskers(names: Sequence[str], ratio: float, bank: Path | None = None) -> dict[str, Masker]:
    """The strategies of these names, each once, and last the patterns of a bank's file under the file's name."""
    chosen: dict[str, Masker] = {}
    for name in names:
        if name not in STRATEGIES:
            hint = did_you_mean(name, STRATEGIES)
            raise ValueError(f"There is no strategy {name}.{hint} There are {', '.join(STRATEGIES)}.")
        chosen[name] = STRATEGIES[name].masker(ratio)
    if bank is not None:
        name = bank.stem if bank.stem not in chosen else f"{bank.stem} (file)"
        chosen[name] = ColorNoiseMasker(ratio=ratio, bank=str(bank))
    if not chosen:
        raise ValueError("masks.strategies must name at least one; got none. Give names, a bank, or both.")
    return chosen


def survey(name: str, masker: Masker, grid: tuple[int, int], *, num: int, seed: int) -> MaskSurvey:
    """Draw `num` masks as training does and measure them."""
    masked = masker(num, grid, torch.Generator().manual_seed(seed)).masked
    visible = masked.logical_not().view(num, *grid).numpy()
    mixed = visible[visible.any(axis=(1, 2)) & ~visible.all(axis=(1, 2))]
    if not len(mixed):
        raise ValueError(
            f"masks.grid must leave {name} both visible and masked patches; got {grid[0]} x {grid[1]}, where each of "
            f"{num} draws masks all or nothing. Choose a larger grid, or a ratio nearer to one half."
        )
    pattern = _pattern(masker, grid, seed) if isinstance(masker, ColorNoiseMasker) else None
    spectrum = mask_spectrum(mixed).mean(axis=0)
    return MaskSurvey(name, visible, spectrum, visible_statistics(mixed), num - len(mixed), pattern)


def load_photo(path: Path, grid: tuple[int, int]) -> Photo:
    """The middle of a picture in the grid's proportions, patches of whole pixels; other values than 8-bit stretched."""
    try:
        image = decode(path.read_bytes())
    except (OSError, BrokenImageError) as error:
        raise ValueError(f"masks.image must be a readable picture; got {path}: {error}. Give another file.") from None
    bands, scale = image[shown_bands(len(image))], scale_of(image.dtype.name)
    side = max(1, round(PHOTO_SIDE / max(grid)))
    size = (grid[0] * side, grid[1] * side)
    box = centred_boxes(np.array([bands.shape[1:]]), size)[0]
    values = resize_one(bands, box, size, flip=False).numpy()[None].astype(np.float32) / scale.divisor
    return Photo(path.name, to_picture(values, values, scale)[0])


def _check(visible: np.ndarray) -> None:
    shares = visible.mean(axis=(1, 2))
    if not ((shares > 0) & (shares < 1)).all():
        index = int(np.flatnonzero((shares == 0) | (shares == 1))[0])
        raise ValueError(
            f"Every mask must have visible and masked patches; got mask {index} with {shares[index]:.0%} visible. "
            f"Choose a larger grid or a ratio nearer to one half."
        )


def _pattern(masker: ColorNoiseMasker, grid: tuple[int, int], seed: int) -> Pattern:
    """A piece of the first of the bank's patterns that a seeded draw gives, and the mask of its middle."""
    bank = bank_on(masker.noise if masker.bank is None else Path(masker.bank), torch.device("cpu"))
    height, width = (min(AROUND * side, limit) for side, limit in zip(grid, bank.shape[1:], strict=True))
    values: Tensor = masker.windows(1, (height, width), torch.Generator().manual_seed(seed))[0]
    top, left = (height - grid[0]) // 2, (width - grid[1]) // 2
    window = values[top : top + grid[0], left : left + grid[1]]
    masked = Mask.from_scores(-window.flatten()[None], masker.num_masked(grid)).masked
    return Pattern(values.numpy(), top, left, masked.logical_not().view(grid).numpy())
