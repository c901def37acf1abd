"""Cropping, resizing and flipping, drawn for the global batch and done for many images at once on their device.

Random numbers are drawn apart from the images, for all rows of a global batch, from (seed, step): each process then
takes its rows, and the same step gives the same crops whoever computes them. Boxes are (top, left, height, width).
"""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.scales import Scale
from pantomim.data.augment import Augment

_TRIES = 10  # of a random box, before the centred one; as in torchvision
_COLUMNS = 2 * _TRIES + 3  # areas, proportions, top, left, flip
_PURPOSE = 2  # keeps these draws apart from others of the same seed and step

Interpolation = Literal["bicubic", "bilinear"]
Kernel = Callable[[Tensor], Tensor]


@frozen
class Crop:
    """How an image becomes a training image of the given size.

    Paper: He et al. 2022, arXiv:2111.06377, Table 8: random resized crop (area from 0.2 on in the authors' code), flip.
    """

    # "random_resized" takes a random part; "single_draw" the same with one draw, cut to the image where it is too large
    # (MAE's linear probe); "none" the largest centred part of the right proportions
    kind: Literal["random_resized", "single_draw", "none"] = "random_resized"
    scale: tuple[float, float] = (0.2, 1.0)  # Smallest and largest share of the image's area in that part, in (0, 1]
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # Smallest and largest width / height of that part
    flip: bool = True  # Mirror half of the images, left to right
    interpolation: Interpolation = "bicubic"  # Of the resizing, antialiased in both ways

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"Crop.scale must be two rising shares in (0, 1]; got {self.scale}. Give shares of the area."
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"Crop.aspect must be two rising values above 0; got {self.aspect}. Give width / height.")


@frozen
class View:
    """How a view of an image is made."""

    crop: Crop = field(default_factory=Crop)  # How the image is cut and flipped
    augment: Augment = field(default_factory=Augment)  # What is done to it then


def draw_uniforms(total: int, seed: int, step: int, view: int = 0) -> Float[np.ndarray, "B 23"]:
    """The random numbers for the crops of a global batch of `total`, uniform in [0, 1); each view has its own."""
    entropy = [seed, step, _PURPOSE, view] if view else [seed, step, _PURPOSE]  # the first: as before there were views
    return np.random.default_rng(np.random.SeedSequence(entropy)).random((total, _COLUMNS))


def crop_boxes(
    sizes: Int[np.ndarray, "B 2"], uniforms: Float[np.ndarray, "B 23"], crop: Crop, image_size: tuple[int, int]
) -> tuple[Int[np.ndarray, "B 4"], Bool[np.ndarray, " B"]]:
    """The part to take of each image, and whether to mirror it, from its (height, width) and its row of draws.

    `image_size`, which the part will be resized to, counts only where `crop.kind` is "none": by its proportions.

    Deviation: none in distribution from torchvision's RandomResizedCrop (area uniform, proportions log-uniform, ten
    tries, then the centred part of the nearest allowed proportions).
    """
    flips = (uniforms[:, -1] < 0.5) & crop.flip
    if crop.kind == "none":
        return centred_boxes(sizes, image_size), flips
    height, width = sizes[:, :1], sizes[:, 1:]
    area = (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * uniforms[:, :_TRIES]) * (height * width)
    low, high = math.log(crop.aspect[0]), math.log(crop.aspect[1])
    aspect = np.exp(low + (high - low) * uniforms[:, _TRIES : 2 * _TRIES])
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    if crop.kind == "single_draw":
        widths, heights = np.clip(widths[:, :1], 1, width), np.clip(heights[:, :1], 1, height)
    inside = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = np.arange(len(sizes)), inside.argmax(axis=1)
    box_height, box_width = heights[first], widths[first]
    top = np.floor(uniforms[:, -3] * (sizes[:, 0] - box_height + 1))
    left = np.floor(uniforms[:, -2] * (sizes[:, 1] - box_width + 1))
    drawn = np.stack([top, left, box_height, box_width], axis=1).astype(np.int64)
    found = inside.any(axis=1, keepdims=True)
    return (drawn if found.all() else np.where(found, drawn, _nearest_boxes(sizes, crop.aspect))), flips


def centred_boxes(sizes: Int[np.ndarray, "B 2"], image_size: tuple[int, int]) -> Int[np.ndarray, "B 4"]:
    """The largest centred part of each image that has the proportions of `image_size`."""
    aspect = image_size[1] / image_size[0]
    return _nearest_boxes(sizes, (aspect, aspect))


def _nearest_boxes(sizes: np.ndarray, aspect: tuple[float, float]) -> np.ndarray:
    """The largest centred part whose proportions are the allowed ones nearest to the image's own."""
    height, width = sizes[:, 0], sizes[:, 1]
    own = width / height
    box_width = np.where(own > aspect[1], np.rint(height * aspect[1]), width)
    box_height = np.where(own < aspect[0], np.rint(width / aspect[0]), height)
    box_width, box_height = np.clip(box_width, 1, width), np.clip(box_height, 1, height)
    boxes = [(height - box_height) // 2, (width - box_width) // 2, box_height, box_width]
    return np.stack(boxes, axis=1).astype(np.int64)


def fitted_size(size: tuple[int, int], long_side: int, short_side: int) -> tuple[int, int]:
    """Height and width scaled, proportions kept, as far as both sides allow: mmcv's `rescale_size`."""
    factor = min(long_side / max(size), short_side / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def nearest_pixels(length: int, count: int) -> Int[np.ndarray, " {count}"]:
    """The pixels at the centres of `count` equal parts of a line of `length` pixels."""
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)


def scaled(images: Tensor, scale: Scale) -> Float[Tensor, "*shape"]:
    """Stored numbers as float32, by the recorded rule."""
    return images.to(torch.float32) / scale.divisor


def resized_crop(
    images: Float[Tensor, "B C H W"],
    boxes: Int[Tensor, "B 4"],
    image_size: tuple[int, int],
    flips: Bool[Tensor, " B"] | None = None,
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "B C h w"]:
    """Cut another part out of each image and resize all to one size, antialiased as in Pillow (bicubic: a = -0.5).

    Resizing is linear and separable: each image gets one small matrix for its rows and one for its columns, and two
    batched products do the whole batch, without a wait on the device. Values may overshoot: clamp where that matters.
    `flips` says which images to mirror, left to right.
    """
    kernel = _KERNELS[interpolation]
    with torch.autocast(images.device.type, enabled=False):
        batch, channels, height, width = images.shape
        placed = boxes.to(images.dtype)
        rows = _resize_matrix(placed[:, 0], placed[:, 2], height, image_size[0], kernel)
        columns = _resize_matrix(placed[:, 1], placed[:, 3], width, image_size[1], kernel)
        if flips is not None:
            columns = torch.where(flips[:, None, None], columns.flip(1), columns)
        wide = torch.bmm(images.reshape(batch, channels * height, width), columns.transpose(1, 2))
        return rows[:, None] @ wide.view(batch, channels, height, image_size[1])


def resize_one(
    image: np.ndarray,
    box: np.ndarray,
    image_size: tuple[int, int],
    flip: bool,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """One image's part (C, h, w), resized as `resized_crop` does; uint8 stays uint8 (rounded), all else is float32."""
    top, left, height, width = (int(value) for value in box)
    cut = image[:, top : top + height, left : left + width]
    part = torch.from_numpy(cut if cut.flags.writeable else cut.copy())
    part = part if part.dtype == torch.uint8 else part.to(torch.float32)
    if (height, width) != tuple(image_size):
        part = F.interpolate(part[None], size=tuple(image_size), mode=interpolation, antialias=antialias)[0]
    return (part.flip(2) if flip else part).contiguous()


def fitted(image: np.ndarray, base: tuple[int, int]) -> Tensor:
    """A whole image (C, h, w) as segmentation tests it: as large as the longest and shortest side of `base` allow."""
    whole = np.array([0, 0, *image.shape[1:]])
    size = fitted_size(image.shape[1:], *base)
    return resize_one(image, whole, size, flip=False, interpolation="bilinear", antialias=False)


def _resize_matrix(
    start: Float[Tensor, " B"], length: Float[Tensor, " B"], size_in: int, size_out: int, kernel: Kernel
) -> Float[Tensor, "B out in"]:
    """Weights of the input pixels in each output pixel; pixels outside the box have none."""
    step = length[:, None] / size_out
    centre = start[:, None] + (torch.arange(size_out, device=start.device) + 0.5) * step
    pixel = torch.arange(size_in, device=start.device)
    distance = ((pixel + 0.5) - centre[:, :, None]) / step.clamp(min=1)[:, :, None]
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = kernel(distance.abs()) * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, of the absolute distance."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


_KERNELS: dict[Interpolation, Kernel] = {"bicubic": _cubic, "bilinear": lambda distance: (1 - distance).clamp(min=0)}
