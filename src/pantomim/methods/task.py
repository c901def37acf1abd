"""Methods that learn from labels: one model that answers, judged by held-out images while it trains."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.modes import evaluating
from pantomim.methods.base import Method
from pantomim.nn.momentum import EMA, Best
from pantomim.nn.vit import Encoder

NUM_TOP = 5


class Task(Method):
    """A method that learns from labels: its `model` answers a question, and is judged by held-out images.

    The weights that answer best are kept in `best`, once `watch` has been called; where there is an `ema` of the
    weights, it is judged beside them. What is exported is the best.
    """

    metric: str  # the score that decides; higher is better
    model: nn.Module
    ema: EMA | None
    best: Best | None

    def __init__(self) -> None:
        super().__init__()
        self.ema = self.best = None  # no attributes of the class, which would hide the modules

    @property
    def encoder(self) -> Encoder:
        """What pre-trained weights are copied into."""
        encoder = self.model.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    @property
    @abstractmethod
    def counts_shape(self) -> tuple[int, ...]:
        """Of what `count` gives, also of a process that has no image to judge."""

    @abstractmethod
    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `model` makes of held-out images, as float64 counts that add up over batches and processes."""

    @abstractmethod
    def scores(self, counts: Tensor) -> dict[str, float]:
        """Shares and means by name, `metric` among them, from counts."""

    def take_encoder(self, weights: dict[str, Tensor], table: str) -> tuple[dict[str, Tensor], list[str]]:
        """An encoder's weights as ours takes them, and what was done with them; `table` names its position table.

        A final norm is left out where ours has none.
        """
        found, remarks = dict(weights), []
        if isinstance(self.encoder.norm, nn.Identity) and "norm.weight" in found:
            found = {name: weight for name, weight in found.items() if not name.startswith("norm.")}
            remarks.append("the final norm is left out")
        return found, remarks

    def watch(self) -> None:
        """Keep the best weights from now on."""
        self.best = Best(self.model)

    @torch.no_grad()
    def validate(
        self, step: int, batches: Callable[[], Iterable[Batch]], add: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Score the weights after `step` steps, and their average; `add` sums over processes. Keeps the best."""
        assert self.best is not None
        found: dict[str, float] = {}
        models = {"": self.model} | ({} if self.ema is None else {"_ema": self.ema.copy})
        for whose, model in models.items():
            scores = self.judge(model, batches(), add)
            self.best.see(model, scores[self.metric], step, averaged=bool(whose))
            found |= {f"val_{name}{whose}": value for name, value in scores.items()}
        return found

    @torch.no_grad()
    def judge(
        self, model: nn.Module, batches: Iterable[Batch], add: Callable[[Tensor], Tensor] = lambda counts: counts
    ) -> dict[str, float]:
        """Scores of a model, in evaluation mode, on held-out images; `add` sums over processes."""
        counts = torch.zeros(self.counts_shape, dtype=torch.float64)
        with evaluating(model):
            for batch in batches:
                counts = counts + self.count(model, batch)
        return self.scores(add(counts))

    @property
    def chosen(self) -> nn.Module:
        """The weights that are exported: the best, else their average, else the last."""
        if self.best is not None and self.best.step > 0:
            return self.best.copy
        return self.model if self.ema is None else self.ema.copy

    def how_chosen(self) -> dict[str, Any]:
        """Which weights these are, for the record."""
        if self.best is None or self.best.step == 0:
            return {"weights": "last" if self.ema is None else "ema"}
        whose = "ema" if self.best.averaged else "weights"
        return {"step": int(self.best.step), "weights": whose, "metric": self.metric} | {
            "validation": float(self.best.score)
        }


class ClassTask(Task):
    """A task whose answer is one of `num_classes`."""

    metric: str = "top1"
    num_classes: int

    @property
    def counts_shape(self) -> tuple[int, ...]:
        """See `count`."""
        return 4, self.num_classes

    @abstractmethod
    def logits(self, model: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """By the model, or by a copy of it."""

    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """By class: images, those whose best guess is right, those with the right class among five; then the loss."""
        assert batch.labels is not None
        logits = self.logits(model, batch.images).double()
        right = logits.topk(min(NUM_TOP, logits.shape[1])).indices == batch.labels[:, None]
        ones, loss = torch.ones_like(right[:, 0]), F.cross_entropy(logits, batch.labels, reduction="none")
        columns = torch.stack([ones, right[:, 0], right.any(dim=1), loss]).double()
        return columns.new_zeros(4, self.num_classes).index_add_(1, batch.labels, columns).cpu()

    def scores(self, counts: Tensor) -> dict[str, float]:
        """Top-1, top-5, top-1 averaged over classes, and cross-entropy without smoothing."""
        number, top1, top5, loss = counts
        total, seen = number.sum(), number > 0
        shares = {"top1": top1.sum() / total, "top1_per_class": (top1[seen] / number[seen]).mean()}
        shares |= {"loss": loss.sum() / total} | ({"top5": top5.sum() / total} if len(number) > NUM_TOP else {})
        return {name: float(value) for name, value in shares.items()}
