"""Colours and sharpness of a batch of images, each by its own amount; values are and stay in [0, 1]."""

import torch
from jaxtyping import Float
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's


def gray(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """Brightness as the eye weighs red, green and blue; of other channels their mean."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def blend(images: Tensor, other: Tensor, factor: Float[Tensor, " B"]) -> Tensor:
    """From `other` (factor 0) to the images (1) and beyond."""
    share = factor.view(-1, 1, 1, 1)
    return (share * images + (1 - share) * other).clamp(0, 1)


def brightened(images: Float[Tensor, "B C H W"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Away from black, or towards it."""
    return (images * factor.view(-1, 1, 1, 1)).clamp(0, 1)


def contrasted(images: Float[Tensor, "B C H W"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Away from the image's mean brightness, or towards it."""
    return blend(images, gray(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturated(images: Float[Tensor, "B 3 H W"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
    """Away from gray, or towards it."""
    return blend(images, gray(images), factor)


def turned(images: Float[Tensor, "B 3 H W"], share: Float[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
    """Hues turned by a share of the circle, by way of hue, saturation and value."""
    red, green, blue = images.unbind(dim=1)
    value, least = images.amax(dim=1), images.amin(dim=1)
    span = value - least
    safe = torch.where(span > 0, span, torch.ones_like(span))
    hue = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(value == red, (green - blue) / safe, hue) + 6 * share.view(-1, 1, 1)
    channels = []
    for place in (5, 3, 1):
        angle = (place + hue) % 6
        channels.append(value - span * torch.minimum(angle, 4 - angle).clamp(0, 1))
    return torch.stack(channels, dim=1)


COLOUR_STEPS = (brightened, contrasted, saturated, turned)  # in the order of Augment.jitter


def solarised(images: Float[Tensor, "B C H W"], threshold: float = 0.5) -> Float[Tensor, "B C H W"]:
    """Values from a threshold on inverted."""
    return torch.where(images >= threshold, 1 - images, images)


def blurred(images: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Gaussian blur, sigma in pixels; at the border the mean over the pixels that are there."""
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = (_blur_matrix(sigma, size) for size in images.shape[2:])
        return (rows[:, None] @ images @ columns[:, None].transpose(2, 3)).clamp(0, 1)


def _blur_matrix(sigma: Float[Tensor, " B"], size: int) -> Float[Tensor, "B size size"]:
    """Weights of the input pixels in each output pixel."""
    pixel = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    weights = torch.exp(-0.5 * ((pixel[:, None] - pixel) / sigma.view(-1, 1, 1)) ** 2)
    weights = torch.where(weights > 1e-7, weights, 0.0)  # denormal ones would slow a CPU down
    return weights / weights.sum(dim=2, keepdim=True)
