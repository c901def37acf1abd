"""What is done to a training image after it is cut: other colours, blur, RandAugment, a rotation, an erased part.

As with crops, all that is random is drawn on the host from (seed, step, view) for the global batch, of which each
process takes its rows. Rows that share an operation go through it as one batch, on their device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.host import to_device
from pantomim.core.ranges import AtLeastZero, NotNegative, Range, Share
from pantomim.data.colours import COLOUR_STEPS, blurred, gray, solarised
from pantomim.data.rand_augment import OPERATIONS, rand_augmented, rotated

_PURPOSE = 3  # keeps these draws apart from others of the same seed and step
_TRIES = 10  # of a part to erase, before the image is left as it is; as in timm
_ERASED_AREA = (0.02, 1 / 3)  # as in timm, whose defaults DeiT, BEiT and MAE use
_ERASED_LOG_ASPECT = (math.log(0.3), -math.log(0.3))


@frozen
class Augment:
    """What is done to a training image after it is cut; as it stands, nothing.

    The order is that of the fields. Values stay in [0, 1], but for erased parts.

    Paper: jitter, grayscale and blur: Chen et al. 2020, arXiv:2002.05709, appendix A; solarise: Grill et al. 2020,
        arXiv:2006.07733, appendix B; RandAugment: Cubuk et al. 2020, arXiv:1909.13719; erasing: Zhong et al. 2020,
        arXiv:1708.04896. RandAugment and erasing are timm's (`rand-m9-mstd0.5-inc1`, mode "pixel").
    Deviation: values are floats, not rounded to 8 bits between operations. The blur is exact, where Pillow's is a chain
        of boxes. Jitter comes after the crop; BEiT's comes before, so that its contrast turns about the mean of the
        whole image, here of the part.
    """

    # Of brightness, contrast, saturation (factors from 1 - value to 1 + value) and hue (a share of the circle, at most
    # 0.5), in an order drawn for each image
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: Share = 1.0  # Share of the images whose colours are jittered
    grayscale: Share = 0.0  # Share of the images that lose their colours
    blur: Share = 0.0  # Share of the images that are blurred
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # Smallest and largest std of the blur, in pixels
    solarise: Share = 0.0  # Share of the images whose bright values (from 0.5 on) are inverted
    rand_augment: AtLeastZero = 0  # RandAugment's operations an image; 0: none
    rand_magnitude: Annotated[float, Range(least=0, most=10)] = 9.0  # Their strength, in [0, 10]
    rand_std: NotNegative = 0.5  # Std of the strength, drawn for each operation
    rotation: Annotated[float, Range(least=0, most=180)] = 0.0  # Each image is turned by up to so many degrees
    erasing: Share = 0.0  # Share of the images of which a part becomes noise
    # Mean of the noise, and what gaps of RandAugment and of a rotation are filled with; a value a channel
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)  # Std of the noise; a value a channel

    def __post_init__(self) -> None:
        if not all(0 <= value <= most for value, most in zip(self.jitter, (1, 1, 1, 0.5), strict=True)):
            raise ValueError(
                f"Augment.jitter must be brightness, contrast and saturation in [0, 1] and hue in [0, 0.5]; got "
                f"{self.jitter}. Give 0 for what stays as it is."
            )
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(
                f"Augment.blur_sigma must be two rising values above 0; got {self.blur_sigma}. Give pixels."
            )
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"Augment.mean and std must have one value a channel each; got {len(self.mean)} and {len(self.std)}."
            )

    @property
    def active(self) -> bool:
        """Whether anything is done."""
        return bool(self._recolours or self.blur or self.rotation or self.erasing)

    @property
    def _recolours(self) -> bool:
        jitters = any(self.jitter) and self.jitter_probability
        return bool(jitters or self.grayscale or self.solarise or self.rand_augment)

    def problems(self, channels: int, dtype: str) -> list[str]:
        """Why images of so many channels, stored in this number type, cannot go through it; empty if they can."""
        found = []
        only_rgb = {
            "jitter's saturation and hue": self.jitter_probability and any(self.jitter[2:]),
            "grayscale": self.grayscale,
            "rand_augment": self.rand_augment,
        }
        if channels != 3 and (named := [name for name, used in only_rgb.items() if used]):
            found.append(
                f"Augment.{', '.join(named)} must be left out for images that are not red, green and blue; got images "
                f"of {channels} channel(s). Set each to 0."
            )
        if self._recolours and dtype not in ("uint8", "uint16"):
            found.append(
                f"Augment must leave the colours alone where values are not in [0, 1]; got {dtype} images, which keep "
                f"their own scale. Set jitter, grayscale, solarise and rand_augment to 0."
            )
        if (self.erasing > 0 or self.rotation > 0) and len(self.mean) != channels:
            found.append(
                f"Augment.mean and std must have a value for each of the {channels} channel(s), which fill gaps; got "
                f"{len(self.mean)}. Give both that many values."
            )
        return found


@dataclass(frozen=True)
class AugmentDraws:
    """What is done to each image of a batch, on the host; a row an image."""

    jitter_order: Int[np.ndarray, "B 4"]  # number of the colour step that comes first, second ...; -1: none
    jitter: Float[np.ndarray, "B 4"]  # strength of each colour step, by its number
    grayscale: Bool[np.ndarray, " B"]
    sigma: Float[np.ndarray, " B"]  # of the blur, in pixels; 0: none
    solarise: Bool[np.ndarray, " B"]
    operations: Int[np.ndarray, "B K"]  # RandAugment's, by number, in order; -1: none
    levels: Float[np.ndarray, "B K"]  # their strengths, in [0, 10]
    signs: Float[np.ndarray, "B K"]  # their directions, 1 or -1
    rotation: Float[np.ndarray, " B"]  # in degrees, counter-clockwise; 0: none
    erased: Int[np.ndarray, "B 4"]  # parts as (top, left, height, width); no height: none
    noise: Int[np.ndarray, " B"]  # seeds of what they are filled with

    def rows(self, rows: slice) -> "AugmentDraws":
        """Those of some images."""
        return AugmentDraws(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def draw_augment(
    augment: Augment, total: int, image_size: tuple[int, int], seed: int, step: int, view: int = 0
) -> AugmentDraws:
    """Draw what is done to each image of a global batch of `total`, of this (height, width) after the crop."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, step, _PURPOSE, view]))
    on = rng.random((total, 5))  # whether: jitter, grayscale, blur, solarise, erasing
    span = 2 * rng.random((total, 4)) - 1
    order = rng.permuted(np.tile(np.arange(4), (total, 1)), axis=1)
    used = (on[:, :1] < augment.jitter_probability) & (np.asarray(augment.jitter) > 0)[order]
    low, high = augment.blur_sigma
    sigma = low + (high - low) * rng.random(total)
    erased, noise = _erased_parts(rng, total, image_size), rng.integers(2**62, size=total)
    erased[on[:, 4] >= augment.erasing] = 0
    shape = (total, augment.rand_augment)  # last, so that its number moves no other draw
    operations = rng.integers(len(OPERATIONS), size=shape)
    operations = np.where(rng.random(shape) < 0.5, operations, -1)  # each is left out half of the time, as in timm
    levels = np.clip(rng.normal(augment.rand_magnitude, augment.rand_std, shape), 0.0, 10.0)
    signs = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    return AugmentDraws(
        jitter_order=np.where(used, order, -1),
        jitter=span * np.asarray(augment.jitter) + np.asarray([1.0, 1.0, 1.0, 0.0]),
        grayscale=on[:, 1] < augment.grayscale,
        sigma=np.where(on[:, 2] < augment.blur, sigma, 0.0),
        solarise=on[:, 3] < augment.solarise,
        operations=operations,
        levels=levels,
        signs=signs,
        rotation=rng.uniform(-augment.rotation, augment.rotation, total),
        erased=erased,
        noise=noise,
    )


def augmented(images: Float[Tensor, "B C H W"], draws: AugmentDraws, augment: Augment) -> Float[Tensor, "B C H W"]:
    """The images (values in [0, 1]), each with what is drawn for its row; the given ones stay as they are."""
    images = images.clone()
    change = partial(_change, images)
    mean, std = (
        to_device(torch.tensor(values, dtype=images.dtype), images.device).view(-1, 1, 1)
        for values in (augment.mean, augment.std)
    )
    for place in range(4):
        for number, step in enumerate(COLOUR_STEPS):
            change(draws.jitter_order[:, place] == number, step, draws.jitter[:, number])
    change(draws.grayscale, lambda chosen: gray(chosen).expand_as(chosen))
    change(draws.sigma > 0, blurred, draws.sigma)
    change(draws.solarise, solarised)
    for operations, levels, signs in zip(draws.operations.T, draws.levels.T, draws.signs.T, strict=True):
        rand_augmented(change, operations, levels, signs, mean)
    change(draws.rotation != 0, lambda chosen, degrees: rotated(chosen, degrees, mean), draws.rotation)
    _erase(images, draws, mean, std)
    return images


def _change(images: Tensor, which: np.ndarray, action: Callable[..., Tensor], *values: np.ndarray) -> None:
    """Put the rows that are True through an action, each with its values; in place."""
    chosen = np.flatnonzero(which)
    if len(chosen):
        ids = to_device(torch.from_numpy(chosen), images.device)
        amounts = [to_device(torch.from_numpy(value[chosen]).to(images.dtype), images.device) for value in values]
        images.index_copy_(0, ids, action(images.index_select(0, ids), *amounts))


def _erased_parts(rng: np.random.Generator, total: int, image_size: tuple[int, int]) -> Int[np.ndarray, "B 4"]:
    """For each image a part of 2 to 33 % of its area, strictly within it; zeros where none of ten tries is."""
    height, width = image_size
    area = rng.uniform(*_ERASED_AREA, (total, _TRIES)) * (height * width)
    aspect = np.exp(rng.uniform(*_ERASED_LOG_ASPECT, (total, _TRIES)))
    heights = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    widths = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    inside = (heights < height) & (widths < width)
    first = inside.argmax(axis=1, keepdims=True)
    box_height = np.take_along_axis(heights, first, axis=1)[:, 0]
    box_width = np.take_along_axis(widths, first, axis=1)[:, 0]
    top = np.floor(rng.random(total) * (height - box_height + 1))
    left = np.floor(rng.random(total) * (width - box_width + 1))
    drawn = np.stack([top, left, box_height, box_width], axis=1).astype(np.int64)
    return drawn * inside.any(axis=1, keepdims=True)


def _erase(images: Tensor, draws: AugmentDraws, mean: Tensor, std: Tensor) -> None:
    """Fill parts with noise of a mean and std, in place; each image's noise has its seed."""
    generator = torch.Generator(images.device)
    for row in np.flatnonzero(draws.erased[:, 2]).tolist():
        top, left, height, width = draws.erased[row].tolist()
        generator.manual_seed(int(draws.noise[row]))
        shape = (images.shape[1], height, width)
        noise = torch.randn(shape, generator=generator, device=images.device, dtype=images.dtype)
        images[row, :, top : top + height, left : left + width] = mean + std * noise
