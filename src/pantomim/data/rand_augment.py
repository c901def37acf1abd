"""RandAugment as timm has it (`inc1`: a higher level always changes an image more), for a batch at once.

Paper: Cubuk et al. 2020, *RandAugment*, arXiv:1909.13719; operations, ranges and rounding are those of timm's
    `rand-m9-mstd0.5-inc1`, which DeiT, BEiT and MAE use.
Deviation: images stay floats, where Pillow rounds to 8 bits after each operation; what is turned, sheared and shifted
    is resampled with torch's bicubic kernel (a = -0.75), where Pillow's has a = -0.5.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.data.colours import blend, brightened, contrasted, saturated

# What an operation needs: images (B, 3, H, W), its amount for each, and what gaps are filled with (3, 1, 1).
Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
# From levels in [0, 10] and directions (1 or -1) to amounts.
Amount = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _tv() -> Any:
    """The operations of torchvision, which takes as long to import as torch."""
    from torchvision.transforms.v2 import functional

    return functional


def _equalize(images: Tensor, amount: Tensor, fill: Tensor) -> Tensor:
    return _tv().equalize((images * 255).round().to(torch.uint8)).to(images.dtype) / 255


def rotated(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """Turned about the centre, counter-clockwise."""
    height, width = images.shape[2:]
    angle = -torch.deg2rad(degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y = width / 2, height / 2
    return _sampled(images, torch.stack([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]), fill)


def _moved(images: Tensor, fill: Tensor, **entries: Tensor) -> Tensor:
    """Sheared or shifted: sampled by the identity matrix but for these entries of it, a to f."""
    identity = {entry: images.new_full((len(images),), entry in "ae") for entry in "abcdef"}
    return _sampled(images, torch.stack(list((identity | entries).values())), fill)


def _posterize(images: Tensor, bits: Tensor, fill: Tensor) -> Tensor:
    step = torch.exp2(8 - bits).view(-1, 1, 1, 1)
    return torch.floor((images * 255).round() / step) * step / 255


def _solarize(images: Tensor, threshold: Tensor, fill: Tensor) -> Tensor:
    return torch.where((images * 255).round() >= threshold.view(-1, 1, 1, 1), 1 - images, images)


def _solarize_add(images: Tensor, added: Tensor, fill: Tensor) -> Tensor:
    lighter = (images + added.view(-1, 1, 1, 1) / 255).clamp(max=1)
    return torch.where((images * 255).round() < 128, lighter, images)


def _signed(most: float) -> Amount:
    return lambda level, sign: sign * level / 10.0 * most


def _factor(level: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return np.maximum(0.1, 1.0 + sign * level / 10.0 * 0.9)


# What may be drawn, each as likely: the operation, and its amount.
OPERATIONS: tuple[tuple[Operation, Amount], ...] = (
    (lambda images, _, fill: _tv().autocontrast(images), _signed(0)),
    (_equalize, _signed(0)),
    (lambda images, _, fill: 1 - images, _signed(0)),
    (rotated, _signed(30.0)),
    (_posterize, lambda level, sign: 4.0 - np.floor(level / 10.0 * 4)),
    (_solarize, lambda level, sign: 256.0 - np.minimum(256, np.floor(level / 10.0 * 256))),
    (_solarize_add, lambda level, sign: np.minimum(128.0, np.floor(level / 10.0 * 110))),
    (lambda images, factor, fill: saturated(images, factor), _factor),
    (lambda images, factor, fill: contrasted(images, factor), _factor),
    (lambda images, factor, fill: brightened(images, factor), _factor),
    (lambda images, factor, fill: blend(images, _tv().adjust_sharpness(images, 0.0), factor), _factor),
    (lambda images, amount, fill: _moved(images, fill, b=amount), _signed(0.3)),  # shear along x, then along y
    (lambda images, amount, fill: _moved(images, fill, d=amount), _signed(0.3)),
    (lambda images, share, fill: _moved(images, fill, c=share * images.shape[3]), _signed(0.45)),  # shift, likewise
    (lambda images, share, fill: _moved(images, fill, f=share * images.shape[2]), _signed(0.45)),
)


def rand_augmented(
    change: Callable[..., None],
    operations: Int[np.ndarray, " B"],
    levels: Float[np.ndarray, " B"],
    signs: Float[np.ndarray, " B"],
    fill: Float[Tensor, "3 1 1"],
) -> None:
    """One operation an image, by its number (-1: none), `fill` in gaps; `change` puts chosen rows through an action."""
    for number, (operation, amount) in enumerate(OPERATIONS):
        change(operations == number, lambda *of, apply=operation: apply(*of, fill), amount(levels, signs))


def _sampled(images: Tensor, matrix: Float[Tensor, "6 B"], fill: Tensor) -> Tensor:
    """Each output pixel from where its matrix says: x = a X + b Y + c, y = d X + e Y + f, of pixel centres."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrix.view(6, -1, 1, 1)
    rows = (torch.arange(height, device=images.device, dtype=images.dtype) + 0.5)[:, None]
    columns = torch.arange(width, device=images.device, dtype=images.dtype) + 0.5
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=3)
    sampled = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
    there = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[:, None]
    return torch.where(there, sampled, fill)
