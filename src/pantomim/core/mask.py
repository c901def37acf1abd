"""Which patches of a batch are masked."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """The only way to say which patches of a batch are masked; `ids_keep` and `ids_mask` hold every patch once."""

    masked: Bool[Tensor, "B N"]  # True where a patch is masked
    ids_keep: Int[Tensor, "B V"]  # Visible patches, in raster order
    # Masked patches, in raster order; where a sampler's count varies between images, followed by visible ones as
    # padding
    ids_mask: Int[Tensor, "B M"]
    weight: Float[Tensor, "B M"] | None = None  # 0 for padding in `ids_mask`, else 1; None where nothing is padded

    @classmethod
    def from_scores(cls, scores: Float[Tensor, "B N"], num_masked: int) -> "Mask":
        """Mask the `num_masked` patches with the highest scores, the same number in every image."""
        num_visible = scores.shape[1] - num_masked
        if scores.device.type == "cpu" and type(scores) is Tensor:  # there are tensors without memory
            return cls.from_masked(torch.from_numpy(_highest(scores.numpy(), num_visible)), num_masked)
        order = scores.argsort(dim=1, stable=True)  # of equal scores the first is visible, on every device
        ids_keep = order[:, :num_visible].sort(dim=1).values
        ids_mask = order[:, num_visible:].sort(dim=1).values
        masked = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ids_mask, True)
        return cls(masked, ids_keep, ids_mask)

    @classmethod
    def from_masked(cls, masked: Bool[Tensor, "B N"], num_masked: int, varies: bool = False) -> "Mask":
        """Mask what is marked: `num_masked` patches in every image or, if the count varies, at most so many.

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


def _highest(scores: np.ndarray, first: int) -> np.ndarray:
    """True at all scores of each row but the `first` smallest; of equal ones the first count as smaller."""
    masked = scores >= np.partition(scores, first, axis=1)[:, first : first + 1]
    tied = np.flatnonzero(masked.sum(axis=1) > scores.shape[1] - first)  # at the border: one row in some thousands
    order = np.argsort(scores[tied], axis=1, kind="stable")
    np.put_along_axis(ranked := np.empty_like(order), order, np.arange(scores.shape[1]), axis=1)
    masked[tied] = ranked >= first
    return masked


def _true_first(values: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """The positions of the true values of each row, then of the false ones, both in order."""
    if values.device.type == "cpu":  # NumPy sorts bytes by their digits
        return torch.from_numpy(np.argsort(~values.numpy(), axis=1, kind="stable"))
    return values.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
