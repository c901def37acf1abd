"""The images of one step, as a method gets them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = 255  # in `Batch.masks`: a pixel that has no class


@dataclass(frozen=True)
class Batch:
    """The images that one process sees at once: rows `start : start + B` of a global batch of `total` images."""

    images: Float[Tensor, "B C H W"]  # Scaled as the data set says (8 bit: to [0, 1]), not normalised
    ids: Int[Tensor, " B"] | None = None  # Position of each image in the data set
    labels: Int[Tensor, " B"] | None = None  # Class ids, or None
    start: int = 0
    total: int = 0
    second: Float[Tensor, "B C H W"] | None = None  # Another view of the same images, where the data give one
    masks: Int[Tensor, "B H W"] | None = None  # Class number of every pixel, or `IGNORE`, where the data have masks

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def joined(cls, parts: Sequence["Batch"]) -> "Batch":
        """Consecutive rows as one."""
        if len(parts) == 1:
            return parts[0]
        tensors: dict[str, Any] = {}
        for name in (field.name for field in fields(cls) if isinstance(getattr(parts[0], field.name), Tensor)):
            tensors[name] = torch.cat([getattr(part, name) for part in parts])
        return replace(parts[0], **tensors)
