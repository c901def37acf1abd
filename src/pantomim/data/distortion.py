"""Photometric distortion of the segmentation recipes: 8-bit arithmetic, each step clipped and cut to whole levels.

torchvision's operation of that name is another one: its brightness is a factor, and it permutes channels. Hue and
saturation are OpenCV's 8-bit ones: hue in steps of two degrees (0 to 179), the others in 0 to 255. Back in red, green
and blue, values are rounded, as its scalar code does; its vector code, for rows of 16 pixels and more, cuts them.
"""

from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastZero, NotNegative

_SHIFT = 12  # of OpenCV's fixed-point divisions
_LEVELS = np.maximum(np.arange(256), 1)
_PER_VALUE = np.rint((255 << _SHIFT) / _LEVELS).astype(np.int32)  # of saturation; unused at 0
_PER_SPAN = np.rint((180 << _SHIFT) / (6.0 * _LEVELS)).astype(np.int32)  # of hue


class Random(Protocol):
    """Where random numbers come from: a `numpy.random.Generator`, or recorded ones."""

    def integers(self, low: int, high: int, /) -> int:
        """At least `low`, below `high`."""

    def uniform(self, low: float, high: float, /) -> float:
        """Between the two."""


@frozen
class Distortion:
    """Other colours: each step with probability one half, contrast before or after saturation and hue.

    Paper: Liu et al. 2016, arXiv:1512.02325, section 2.2, as in mmsegmentation 1.2.2.
    Deviation: only what has three channels of 8 bits goes through saturation and hue, and is cut to whole levels.
    """

    brightness: NotNegative = 32.0  # Most that is added or taken, in levels of 255
    contrast: tuple[NotNegative, NotNegative] = (0.5, 1.5)  # Smallest and largest factor of the values
    saturation: tuple[NotNegative, NotNegative] = (0.5, 1.5)  # Smallest and largest factor of the saturation
    hue: AtLeastZero = 18  # Most that the hue is turned, in steps of two degrees

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"Distortion.{name} must be two rising factors; got {low, high}. Swap them.")


def distorted(image: np.ndarray, distortion: Distortion, random: Random, divisor: float = 255.0) -> np.ndarray:
    """An image (C, H, W) with other colours: as uint8 if it is RGB of 8 bits, else float32; `divisor` counts as 1."""
    colours = image.dtype == np.uint8 and len(image) == 3
    image = image if colours else image.astype(np.float32)

    def linear(values: np.ndarray, factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
        moved = values.astype(np.float32) * np.float32(factor) + np.float32(shift)
        return moved.clip(0, 255).astype(np.uint8) if colours else moved

    def coin() -> bool:
        return random.integers(0, 2) == 1

    if coin():
        image = linear(image, shift=random.uniform(-distortion.brightness, distortion.brightness) * divisor / 255)
    contrast_first = coin()
    if contrast_first and coin():
        image = linear(image, random.uniform(*distortion.contrast))
    if colours and coin():
        hue, saturation, value = to_hsv(image)
        image = to_rgb(np.stack([hue, linear(saturation, random.uniform(*distortion.saturation)), value]))
    if colours and coin():
        hue, saturation, value = to_hsv(image)
        turn = random.integers(-distortion.hue, distortion.hue) if distortion.hue else 0
        turned = (hue.astype(np.int32) + turn) % 180
        image = to_rgb(np.stack([turned.astype(np.uint8), saturation, value]))
    if not contrast_first and coin():
        image = linear(image, random.uniform(*distortion.contrast))
    return image


def to_hsv(image: UInt8[np.ndarray, "3 H W"]) -> UInt8[np.ndarray, "3 H W"]:
    """Hue, saturation and value of red, green and blue, bit for bit as OpenCV's."""
    red, green, blue = image.astype(np.int32)
    value = image.max(axis=0)
    span = value.astype(np.int32) - image.min(axis=0)
    saturation = (span * _PER_VALUE[value] + (1 << _SHIFT - 1)) >> _SHIFT
    sixths = np.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    hue = (np.where(value == red, green - blue, sixths) * _PER_SPAN[span] + (1 << _SHIFT - 1)) >> _SHIFT
    return np.stack([np.where(hue < 0, hue + 180, hue), saturation, value]).astype(np.uint8)


def to_rgb(image: UInt8[np.ndarray, "3 H W"]) -> UInt8[np.ndarray, "3 H W"]:
    """Red, green and blue of hue, saturation and value, bit for bit as OpenCV's in short rows (see above)."""
    hue, saturation, value = image.astype(np.float32)
    hue *= np.float32(6) / np.float32(180)
    saturation, value = saturation * (1 / np.float32(255)), value * (1 / np.float32(255))
    sector = hue.astype(np.int32)
    rest = hue - sector
    low = value * (1 - saturation)
    falling, rising = value * (1 - saturation * rest), value * (1 - saturation * (1 - rest))
    red = np.choose(sector, [value, falling, low, low, rising, value])
    green = np.choose(sector, [rising, value, value, falling, low, low])
    blue = np.choose(sector, [low, low, rising, value, value, falling])
    return np.rint(np.stack([red, green, blue]) * 255).astype(np.uint8)
