"""What a strategy masks, before it costs a GPU-day: many masks drawn and measured, and photographs to lay them on."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pantomim.analysis.masks import VisibleStatistics, mask_spectrum, visible_statistics
from pantomim.analysis.pictures import shown_bands, to_picture
from pantomim.core.mask import Mask
from pantomim.data.decoding import BrokenImageError, decode
from pantomim.data.scales import scale_of
from pantomim.data.transforms import centred_boxes, resize_one
from pantomim.masking import STRATEGIES, Masker
from pantomim.masking.bank import bank_on
from pantomim.masking.color_noise import ColorNoiseMasker

AROUND = 4  # a pattern is shown this many times as high and wide as the window that is cut out of it
PHOTO_SIDE = 320  # pixels of the longer side, about


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
            close = difflib.get_close_matches(name, STRATEGIES, n=1)
            raise ValueError(
                f"There is no strategy {name}. {f'Did you mean {close[0]}? ' if close else ''}"
                f"There are {', '.join(STRATEGIES)}."
            )
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
    """A picture cut in its middle to the proportions of the grid, and resized so that patches are whole pixels.

    The first three bands are shown, or the first; numbers other than 8-bit ones are stretched.
    """
    try:
        image = decode(path.read_bytes(), path.suffix)
    except (OSError, BrokenImageError) as error:
        raise ValueError(f"masks.image must be a readable picture; got {path}: {error}. Give another file.") from None
    bands, scale = image[shown_bands(len(image))], scale_of(image.dtype.name)
    side = max(1, round(PHOTO_SIDE / max(grid)))
    size = (grid[0] * side, grid[1] * side)
    box = centred_boxes(np.array([bands.shape[1:]]), size)[0]
    values = resize_one(bands, box, size, flip=False).numpy()[None].astype(np.float32) / scale.divisor
    return Photo(path.name, to_picture(values, values, scale)[0])


def _pattern(masker: ColorNoiseMasker, grid: tuple[int, int], seed: int) -> Pattern:
    """A piece of the first of the bank's patterns that a seeded draw gives, and the mask of its middle."""
    bank = bank_on(masker.noise if masker.bank is None else Path(masker.bank), torch.device("cpu"))
    height, width = (min(AROUND * side, limit) for side, limit in zip(grid, bank.shape[1:], strict=True))
    values: Tensor = masker.windows(1, (height, width), torch.Generator().manual_seed(seed))[0]
    top, left = (height - grid[0]) // 2, (width - grid[1]) // 2
    window = values[top : top + grid[0], left : left + grid[1]]
    masked = Mask.from_scores(-window.flatten()[None], masker.num_masked(grid)).masked
    return Pattern(values.numpy(), top, left, masked.logical_not().view(grid).numpy())
