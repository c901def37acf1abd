"""Training crops of an image and its mask together, as the segmentation recipes make them.

Numbers are drawn for each row of the global batch from (seed, step, row), as they are needed: how many a crop takes
depends on the mask.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, Positive, Share
from pantomim.data.distortion import Distortion, Random, distorted
from pantomim.data.transforms import fitted_size, nearest_pixels, resize_one

PADDING = -1  # in a mask: beside the image
_TRIES = 10  # of a place for the crop, before the next is taken unseen; as in mmsegmentation
_PURPOSE = 4  # keeps these draws apart from others of the same seed and step


@frozen
class MaskCrop:
    """How an image and its mask become a training pair of the given size.

    In this order: resize, crop, mirror, distort the colours, fill up at the right and the bottom.

    Paper: Xiao et al. 2018, arXiv:1807.10221, as in mmsegmentation 1.2.2 (BEiT's, CAE's and dBOT's configs).
    Deviation: a mask's pixels are the nearest to the same centres as the image's; OpenCV's nearest ones lie up to half
        a pixel further up and left.
    """

    # Longest and shortest side, in pixels, that an image is resized to at ratio 1, its proportions kept
    base: tuple[AtLeastOne, AtLeastOne] = (2048, 512)
    ratio: tuple[Positive, Positive] = (0.5, 2.0)  # Smallest and largest ratio; drawn uniformly
    # A crop must have two classes at least, and less than this share of its pixels of one of them; else another is
    # drawn, ten times at most. 1: any crop will do
    max_share: Share = 0.75
    flip: bool = True  # Mirror half of the images, left to right
    distortion: Distortion | None = Distortion()  # Of the colours; None: they stay as they are
    # What stands beside images that are smaller than the crop: the encoder's mean; one value, or one a channel
    fill: tuple[float, ...] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"MaskCrop.ratio must be two rising ratios; got {self.ratio}. Swap them.")
        if self.base[0] < self.base[1]:
            raise ValueError(f"MaskCrop.base must be the longest and the shortest side; got {self.base}. Swap them.")


def row_random(seed: int, step: int, row: int) -> np.random.Generator:
    """The random numbers of one row of the global batch of a step."""
    return np.random.default_rng(np.random.SeedSequence([seed, step, _PURPOSE, row]))


def cropped_pair(
    image: Shaped[np.ndarray, "C H W"],
    mask: Int[np.ndarray, "H W"],
    crop: MaskCrop,
    image_size: tuple[int, int],
    random: Random,
    *,
    ignore: int,
    divisor: float = 255.0,
) -> tuple[Shaped[Tensor, "C h w"], Int[Tensor, "h w"]]:
    """A training pair, values as they are stored; the mask is `PADDING` beside the image, which is 0 there."""
    ratio = random.uniform(*crop.ratio)
    size = fitted_size(mask.shape, int(crop.base[0] * ratio), int(crop.base[1] * ratio))
    mask = mask[nearest_pixels(mask.shape[0], size[0])[:, None], nearest_pixels(mask.shape[1], size[1])]
    top, left = crop_place(mask, image_size, crop.max_share, ignore, random)
    rows, columns = slice(top, top + image_size[0]), slice(left, left + image_size[1])
    whole = np.array([0, 0, *image.shape[1:]])
    resized = resize_one(image, whole, size, flip=False, interpolation="bilinear", antialias=False)
    part, mask = resized.numpy()[:, rows, columns], mask[rows, columns]
    if crop.flip and random.integers(0, 2):
        part, mask = part[:, :, ::-1], mask[:, ::-1]
    if crop.distortion is not None:
        part = distorted(part, crop.distortion, random, divisor)
    rest = (0, image_size[1] - mask.shape[1], 0, image_size[0] - mask.shape[0])
    image_tensor, mask_tensor = (torch.from_numpy(np.ascontiguousarray(values)) for values in (part, mask))
    return F.pad(image_tensor, rest), F.pad(mask_tensor.to(torch.int16), rest, value=PADDING)


def crop_place(
    mask: Int[np.ndarray, "H W"], size: tuple[int, int], max_share: float, ignore: int, random: Random
) -> tuple[int, int]:
    """Top and left of a crop by the class-share rule of `MaskCrop`; it reaches beyond a mask that is smaller."""
    margins = [max(have - want, 0) for have, want in zip(mask.shape, size, strict=True)]
    for _ in range(_TRIES):
        top, left = (random.integers(0, margin + 1) for margin in margins)
        if max_share == 1:
            return top, left
        counts = class_counts(mask[top : top + size[0], left : left + size[1]], ignore)
        if len(counts) > 1 and counts.max() / counts.sum() < max_share:
            return top, left
    top, left = (random.integers(0, margin + 1) for margin in margins)
    return top, left


def class_counts(mask: Int[np.ndarray, "H W"], ignore: int) -> Int[np.ndarray, " classes"]:
    """How many pixels each class has that occurs."""
    counts = np.bincount(mask.reshape(-1), minlength=ignore + 1)
    counts[ignore] = 0
    return counts[counts > 0]
