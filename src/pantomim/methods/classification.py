"""What fine-tuning and probing share: the answer is a class, and what counts is how often it is right."""

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.methods.base import Task

NUM_TOP = 5


class Classification(Task):
    """A task whose model tells classes apart, of which there are `num_classes`."""

    metric: ClassVar[str] = "top1"
    num_classes: int

    @abstractmethod
    def logits(self, model: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """By the model, or by a copy of it."""

    def tally(self, model: nn.Module, batch: Batch) -> Tensor:
        """By class: images, those whose best guess is right, those with the right class among five; then the loss."""
        assert batch.labels is not None
        logits = self.logits(model, batch.images).double()
        right = logits.topk(min(NUM_TOP, logits.shape[1])).indices == batch.labels[:, None]
        ones, loss = torch.ones_like(right[:, 0]), F.cross_entropy(logits, batch.labels, reduction="none")
        columns = torch.stack([ones, right[:, 0], right.any(dim=1), loss]).double()
        return columns.new_zeros(4, self.num_classes).index_add_(1, batch.labels, columns).cpu()

    def scores(self, tally: Tensor) -> dict[str, float]:
        """Top-1, top-5, top-1 averaged over classes, and cross-entropy without smoothing."""
        number, top1, top5, loss = tally
        total, seen = number.sum(), number > 0
        shares = {"top1": top1.sum() / total, "top1_per_class": (top1[seen] / number[seen]).mean()}
        shares |= {"loss": loss.sum() / total} | ({"top5": top5.sum() / total} if len(number) > NUM_TOP else {})
        return {name: float(value) for name, value in shares.items()}
