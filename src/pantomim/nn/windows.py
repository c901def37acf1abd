"""Sliding windows: the logits of images that are larger than what a model takes.

Source: mmsegmentation's `encoder_decoder.py`: the mean of logits, not of probabilities, over overlapping windows.
"""

from collections.abc import Callable
from itertools import product

from jaxtyping import Float
from torch import Tensor

from pantomim.core.precision import at_least_float32
from pantomim.nn.tokens import enlarge


def window_starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride`, the last one moved back inside; at 0 alone if it is shorter."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(number * stride, side - crop), 0) for number in range(count)]


def sliding_logits(
    model: Callable[[Float[Tensor, "B C _ _"]], Float[Tensor, "B K _ _"]],
    images: Float[Tensor, "B C H W"],
    num_classes: int,
    crop: tuple[int, int],
    stride: tuple[int, int],
    fill: Float[Tensor, " C"] | None,
) -> Float[Tensor, "B K H W"]:
    """Logits of every pixel: the mean over the windows that see it, each window's enlarged to its size first.

    A side shorter than the crop is continued to the right or below with the colour `fill`, in the scale of the images
    (the encoder's `mean`), and what is added is cut off the logits. None is for a model that takes any size: there the
    window is the whole side.
    """
    if not all(1 <= step <= side for step, side in zip(stride, crop, strict=True)):
        raise ValueError(
            f"sliding_logits.stride must be at least 1 and at most the crop of {crop[0]} x {crop[1]}; got {stride[0]} "
            f"and {stride[1]}. Two thirds of the crop are usual."
        )
    height, width = images.shape[2:]
    if fill is not None:
        size = (max(height, crop[0]), max(width, crop[1]))
        padded = fill.to(images).view(1, -1, 1, 1).repeat(len(images), 1, *size)
        padded[:, :, :height, :width] = images
        images = padded
    total = images.new_zeros(len(images), num_classes, *images.shape[2:])
    count = images.new_zeros(images.shape[2:])
    sides = zip(images.shape[2:], crop, stride, strict=True)
    for top, left in product(*(window_starts(*given) for given in sides)):
        window = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
        seen = images[window]
        total[window] += enlarge(at_least_float32(model(seen)), seen.shape[2:])
        count[window] += 1
    return (total / count)[:, :, :height, :width]
