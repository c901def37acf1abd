"""Colour noise: white noise, filtered until its patterns have the scale that its name promises.

Red is what a low-pass filter leaves of white noise, blue a high-pass, green a band-pass and purple a band-stop one. A
bank of such patterns is made once, offline; training only cuts windows out of it.

Paper: Hinojosa et al. 2024, *ColorMAE: Exploring data-independent masking strategies in Masked AutoEncoders*,
arXiv:2407.13036; the filters are its equations, of which the band-pass is Eq. 3. The paper's sigmas and the number
of passes are not stated where we can read it; the authors' patterns come without the code that made them.
"""

import math
from dataclasses import replace
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, AtLeastTwo

Color = Literal["red", "green", "blue", "purple", "white"]
Blur = Literal["sampled_kernel", "transfer_function"]


class Filtering(NamedTuple):
    """How a colour is made where nothing else is set: our reading, not a statement of the paper."""

    sigma: tuple[float, ...]  # of the Gaussian, in patches; two for a band
    passes: int  # how often filter and equalisation are repeated


# Fitted to the masks and spectra in the picture of the authors' repository (assets/proposed.png). The flanks there are
# too steep for one pass of the equations, and match "filter, equalise, repeat" five times.
PRESETS: dict[Color, Filtering] = {
    "red": Filtering((4.7,), 1),  # fits the printed spectrum; passes do not matter for a Gaussian
    "blue": Filtering((1.0,), 5),  # fits the printed mask
    "green": Filtering((0.8, 1.6), 5),  # fits ring and printed mask
    "purple": Filtering((0.5, 2.75), 5),  # fits the printed spectrum
    "white": Filtering((), 0),  # the control: MAE's random masks
}
MIN_SIGMA = 0.1  # a narrower Gaussian leaves white noise as it is
MAX_BYTES = 4 << 30  # of a bank
CUT = 6  # a sampled kernel ends here, in sigmas


@frozen
class Noise:
    """How a bank of patterns is made.

    Where sigma and passes are None, they are the color's in `PRESETS`.
    """

    color: Color = "green"  # Which filter
    # Of the Gaussian, in patches: one number for red and blue, two rising ones for green and purple
    sigma: tuple[float, ...] | None = None
    passes: int | None = None  # How often filter and equalisation are repeated; 1 is the paper's equation to the letter
    # Replace values by their ranks after each pass. A single pass gives the same masks without it
    equalise: bool = True
    # The Gaussian as a kernel sampled at whole patches, or by its transfer function; they differ below 0.8
    blur: Blur = "sampled_kernel"
    patterns: AtLeastOne = 256  # How many
    side: AtLeastTwo = 256  # Height and width of a pattern, in patches
    seed: int = 0  # Of the white noise

    def __post_init__(self) -> None:
        sigma, passes = self.resolved
        num_sigmas = len(PRESETS[self.color].sigma)
        if len(sigma) != num_sigmas:
            raise ValueError(f"Noise.sigma must be {num_sigmas} number(s) for {self.color}; got {list(sigma)}.")
        if not all(MIN_SIGMA <= value <= self.side for value in sigma) or list(sigma) != sorted(set(sigma)):
            raise ValueError(
                f"Noise.sigma must be from {MIN_SIGMA} to the side of a pattern, the second above the first; "
                f"got {list(sigma)}. Leave it out for the preset."
            )
        if passes < (self.color != "white"):
            raise ValueError(f"Noise.passes must be at least 1 for {self.color}; got {passes}. Leave it out.")
        if 4 * self.patterns * self.side**2 > MAX_BYTES:
            raise ValueError(
                f"Noise.patterns must come to {MAX_BYTES >> 30} GiB at most, as training holds them on the device; got "
                f"{self.patterns} of {self.side} x {self.side}. Make fewer or smaller ones."
            )

    @property
    def resolved(self) -> Filtering:
        """Sigma and passes, presets filled in."""
        preset = PRESETS[self.color]
        sigma = preset.sigma if self.sigma is None else self.sigma
        return Filtering(tuple(sigma), preset.passes if self.passes is None else self.passes)

    @property
    def explicit(self) -> "Noise":
        """The same noise with its preset written out."""
        return replace(self, sigma=self.resolved.sigma, passes=self.resolved.passes)


def color_filter(
    fields: Float[Tensor, "*L M N"], color: Color, sigma: tuple[float, ...], blur: Blur
) -> Float[Tensor, "*L M N"]:
    """One pass of a colour's filter over periodic fields; white leaves them as they are.

    With G a Gaussian blur: red is G * W, blue W - G * W, green G1 * W - G2 * W, and purple W - (G1 * W - G2 * W).
    """
    if color == "white":
        return fields
    height, width = cast("tuple[int, int]", fields.shape[-2:])
    first, *second = (_transfer(height, width, value, blur, fields) for value in sigma)
    passed = first - second[0] if second else first
    transfer = passed if color in ("red", "green") else 1 - passed
    return torch.fft.irfft2(torch.fft.rfft2(fields) * transfer, s=(height, width))


def equalise(fields: Float[Tensor, "*L M N"]) -> Float[Tensor, "*L M N"]:
    """Each value's rank within its field, from 0 to 1: a flat histogram in the same order. On the CPU."""
    flat = fields.flatten(-2)
    last = flat.shape[-1] - 1
    levels = torch.arange(last + 1, dtype=fields.dtype) / last
    order = torch.from_numpy(np.argsort(flat.numpy(), axis=-1))
    return torch.empty_like(flat).scatter_(-1, order, levels.expand_as(flat)).view_as(fields)


def make_bank(noise: Noise) -> Float[Tensor, "L M N"]:
    """Draw and filter all patterns: uniform white noise, then `passes` times filter and equalise.

    Worked out in float64, so that rounding hardly ever decides the order of two values; stored as float32, whose steps
    are finer than the ranks. Some seconds for 256 patterns of 256 x 256.
    """
    generator = torch.Generator().manual_seed(noise.seed)
    bank = torch.empty(noise.patterns, noise.side, noise.side)
    sigma, passes = noise.resolved
    for pattern in bank:
        field = torch.rand(noise.side, noise.side, generator=generator, dtype=torch.float64)
        for _ in range(passes):
            field = color_filter(field, noise.color, sigma, noise.blur)
            if noise.equalise:
                field = equalise(field)
        pattern.copy_(field)
    return bank


def _transfer(height: int, width: int, sigma: float, blur: Blur, like: Tensor) -> Float[Tensor, "M F"]:
    """What a Gaussian blur multiplies the coefficients of a real transform of (height, width) with."""
    if blur == "transfer_function":
        rows, columns = torch.fft.fftfreq(height, dtype=like.dtype), torch.fft.rfftfreq(width, dtype=like.dtype)
        return torch.exp(-2 * (math.pi * sigma) ** 2 * (rows[:, None] ** 2 + columns**2)).to(like.device)
    rows, columns = torch.fft.fft(_kernel(height, sigma, like)).real, torch.fft.rfft(_kernel(width, sigma, like)).real
    return rows[:, None] * columns


def _kernel(size: int, sigma: float, like: Tensor) -> Float[Tensor, " size"]:
    """A Gaussian sampled at whole distances and wrapped around a ring of `size`; symmetric, with sum 1."""
    radius = int(CUT * sigma + 0.5)
    places = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (places.to(like.dtype) / sigma) ** 2)
    ring = torch.zeros(size, dtype=like.dtype).index_add_(0, places % size, weights / weights.sum())
    return ring.to(like.device)
