"""What is hidden from the encoder, and the protocol of everything that decides it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """The only way to say which patches of a batch are hidden.

    `ids_keep` and `ids_mask` together hold every patch of an image once.

    Args:
        masked: True where a patch is hidden.
        ids_keep: Visible patches, in raster order.
        ids_mask: Hidden patches, in raster order; where a sampler's count varies between images, followed by visible
            ones as padding.
        weight: 0 for padding in `ids_mask`, else 1; None where nothing is padded.
    """

    masked: Bool[Tensor, "B N"]
    ids_keep: Int[Tensor, "B V"]
    ids_mask: Int[Tensor, "B M"]
    weight: Float[Tensor, "B M"] | None = None

    @classmethod
    def from_scores(cls, scores: Float[Tensor, "B N"], num_masked: int) -> "Mask":
        """Hide the `num_masked` patches with the highest scores, the same number in every image."""
        num_visible = scores.shape[1] - num_masked
        order = scores.argsort(dim=1, stable=True)  # of equal scores the first is visible, on every device
        ids_keep = order[:, :num_visible].sort(dim=1).values
        ids_mask = order[:, num_visible:].sort(dim=1).values
        masked = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ids_mask, True)
        return cls(masked, ids_keep, ids_mask)

    @classmethod
    def from_masked(cls, masked: Bool[Tensor, "B N"], num_masked: int, varies: bool = False) -> "Mask":
        """Hide what is marked: `num_masked` patches in every image or, if the count varies, at most so many.

        No value is read back from the device, so a wrong count cannot be noticed here.
        """
        order = _true_first(masked)
        ids_mask, ids_keep = order[:, :num_masked], order[:, num_masked:]
        return cls(masked, ids_keep, ids_mask, masked.gather(1, ids_mask).float() if varies else None)

    def rows(self, start: int, count: int) -> "Mask":
        """The masks of images `start : start + count`; how a process takes its part of a global draw."""
        part = slice(start, start + count)
        weight = None if self.weight is None else self.weight[part]
        return Mask(self.masked[part], self.ids_keep[part], self.ids_mask[part], weight)


def _true_first(values: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Where the true values of each row stand, then the false ones, both in order."""
    if values.device.type == "cpu":  # NumPy sorts bytes by their digits
        return torch.from_numpy(np.argsort(~values.numpy(), axis=1, kind="stable"))
    return values.logical_not().to(torch.uint8).argsort(dim=1, stable=True)


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
