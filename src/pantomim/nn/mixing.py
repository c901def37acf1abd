"""Two images and their labels become one: mixup and CutMix of a batch with itself in another order.

All that is random is in `draw_mixing`; the rest repeats exactly. timm's `Mixup` has the same arithmetic but draws from
NumPy's global state, so a step could not be repeated from its seed.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]  # first row, end row, first column, end column


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed with itself: `lam` is the share of an image that stays its own, in [0, 1].

    CutMix pastes a `box`; mixup, which blends, has none.
    """

    lam: float
    box: Box | None = None


def draw_mixing(
    generator: np.random.Generator,
    image_size: tuple[int, int],
    *,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
) -> Mixing:
    """Draw mixup or CutMix for a whole batch, from a generator seeded by (seed, step); an alpha of 0 leaves one out.

    Paper: Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899; defaults: He et al. 2022, Table 9.
    """
    if min(mixup_alpha, cutmix_alpha) < 0 or max(mixup_alpha, cutmix_alpha) == 0:
        raise ValueError(
            f"draw_mixing.mixup_alpha and cutmix_alpha must be at least 0, and one positive; got {mixup_alpha} and "
            f"{cutmix_alpha}. Leave mixing out altogether instead."
        )
    # The coin is thrown in any case: the draws that follow do not depend on the alphas.
    cutmix = generator.random() < 0.5
    if mixup_alpha == 0 or cutmix_alpha == 0:
        cutmix = mixup_alpha == 0
    alpha = cutmix_alpha if cutmix else mixup_alpha
    lam = float(generator.beta(alpha, alpha))
    if not cutmix:
        return Mixing(lam)
    (height, width), side = image_size, math.sqrt(1.0 - lam)
    top, bottom = _interval(generator, height, int(height * side))
    left, right = _interval(generator, width, int(width * side))
    box = (top, bottom, left, right)
    return Mixing(cutmix_lam(box, image_size), box)  # the border may have cut off a part of the box


def _interval(generator: np.random.Generator, size: int, length: int) -> tuple[int, int]:
    """`length` pixels around a uniformly drawn centre, cut off at the border."""
    centre = int(generator.integers(size))
    return max(centre - length // 2, 0), min(centre + (length + 1) // 2, size)


def cutmix_lam(box: Box, image_size: tuple[int, int]) -> float:
    """The share of an image that a pasted box leaves its own."""
    top, bottom, left, right = box
    return 1.0 - (bottom - top) * (right - left) / (image_size[0] * image_size[1])


def swap_neighbours(values: Tensor) -> Tensor:
    """Rows 0 and 1 in each other's place, 2 and 3, and so on: partners that stay the same however a batch is shared."""
    if len(values) % 2:
        raise ValueError(
            f"swap_neighbours.values must have an even number of rows, as each needs a partner; got {len(values)}. "
            f"Choose a batch size that gives each process and micro-batch an even number of images, or mix none."
        )
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mix_images(
    images: Float[Tensor, "B C H W"], mixing: Mixing, partners: Float[Tensor, "B C H W"] | None = None
) -> Float[Tensor, "B C H W"]:
    """Every image mixed with its partner: image B - 1 - i for image i, as in timm, unless partners are given."""
    partners = images.flip(0) if partners is None else partners
    if mixing.box is None:
        return mixing.lam * images + (1.0 - mixing.lam) * partners
    top, bottom, left, right = mixing.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return mixed


def mix_targets(
    labels: Int[Tensor, " B"],
    num_classes: int,
    lam: float,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
    partners: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B classes"]:
    """Class probabilities of the images of `mix_images`; `smoothing` is the share spread evenly over all classes."""
    own, others = (
        F.one_hot(ids, num_classes).to(dtype) * (1.0 - smoothing) + smoothing / num_classes
        for ids in (labels, labels.flip(0) if partners is None else partners)
    )
    return lam * own + (1.0 - lam) * others
