"""The protocol of everything that decides which patches are masked, and how pages show it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.mask import Mask
from pantomim.core.ranges import Range

Grid = tuple[int, int]  # rows and columns of patches
Attended = Float[Tensor, "B N"] | None  # of every patch of a batch
Ratio = Annotated[float, Range(above=0, below=1)]  # of masked patches: a share, no percentage


@runtime_checkable
class Masker(Protocol):
    """Decides what to mask; a frozen value that is its own config."""

    @property
    def kind(self) -> str:
        """Its name in configs."""

    @property
    def varies(self) -> bool:
        """Whether the number of masked patches differs between images; then masks are padded and have weights."""

    @property
    def guided(self) -> bool:
        """Whether attention decides, so that it cannot be called without."""

    @property
    def manner(self) -> str:
        """How patches are masked, in two or three words behind "75 % masked"."""

    @property
    def strategies(self) -> tuple["Strategy", ...]:
        """What commands, galleries and studies know by name; nothing where a network must be asked."""

    def num_masked(self, grid: Grid) -> int:
        """How many patches of a grid of (rows, columns) are masked (at most), known without reading a tensor."""

    def __call__(self, batch_size: int, grid: Grid, generator: torch.Generator, attention: Attended = None) -> Mask:
        """Draw the masks of a whole global batch on the device of `generator`, without waiting for that device."""


@dataclass(frozen=True)
class Strategy:
    """A way of masking that commands, galleries and studies know by name."""

    name: str
    masker: Callable[[float], Masker]  # at a given ratio
    colour: str  # as #rrggbb, seen on light and dark pages alike
    sentence: str  # what it masks, for pages
    drawn: str = ""  # how its masks come about where they are not cut out of a pattern

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as 8-bit values."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


def count_masked(owner: str, ratio: float, num_patches: int) -> int:
    """Number of masked patches: all but `int(num_patches * (1 - ratio))`, truncated as in MAE's code."""
    return check_count(owner, ratio, num_patches - int(num_patches * (1 - ratio)), num_patches)


def check_count(owner: str, ratio: float, num_masked: int, num_patches: int) -> int:
    """The count; a ValueError unless both visible and masked patches are left."""
    if not 0 < num_masked < num_patches:
        left = "masked" if num_masked <= 0 else "visible"
        raise ValueError(
            f"{owner}.ratio must leave at least one visible and one masked patch; got {ratio}, which leaves no "
            f"{left} one of {num_patches}. Use smaller patches, larger images or another ratio."
        )
    return num_masked
