"""The protocol of everything that decides which patches are masked."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.mask import Mask


@runtime_checkable
class Masker(Protocol):
    """Decides what to hide; a frozen value that is its own config."""

    @property
    def varies(self) -> bool:
        """Whether the number of hidden patches differs between images; then masks are padded and have weights."""
        ...

    @property
    def guided(self) -> bool:
        """Whether attention decides, so that it cannot be called without."""
        ...

    def num_masked(self, grid: tuple[int, int]) -> int:
        """How many patches of a grid of (rows, columns) are hidden (at most), known without reading a tensor.

        Raises:
            ValueError: if masks of this grid cannot be drawn.
        """
        ...

    def __call__(
        self,
        batch_size: int,
        grid: tuple[int, int],
        generator: torch.Generator,
        epoch: float = 0.0,
        attention: Float[Tensor, "B N"] | None = None,
    ) -> Mask:
        """Draw the masks of a whole batch on the device of `generator`, without waiting for that device.

        Args:
            batch_size: Images of the global batch.
            grid: Rows and columns of patches.
            generator: All randomness comes from here.
            epoch: Passes over the data so far, for strategies that change on the way.
            attention: A score of every patch, for strategies that look at the image.
        """
        ...


def check_ratio(owner: str, ratio: float) -> None:
    """Refuse a ratio that is no share.

    Raises:
        ValueError: if `ratio` lies outside (0, 1).
    """
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"{owner}.ratio must be in (0, 1); got {ratio}. Give a share, not a percentage.")


def count_masked(owner: str, ratio: float, num_patches: int) -> int:
    """Number of hidden patches: all but `int(num_patches * (1 - ratio))`, truncated as in MAE's code.

    Raises:
        ValueError: if no visible or no masked patch would be left.
    """
    num_visible = int(num_patches * (1 - ratio))
    if num_visible == 0 or num_visible == num_patches:
        left = "visible" if num_visible == 0 else "masked"
        raise ValueError(
            f"{owner}.ratio must leave at least one visible and one masked patch; got {ratio}, which leaves no "
            f"{left} one of {num_patches}. Use smaller patches, larger images or another ratio."
        )
    return num_patches - num_visible
