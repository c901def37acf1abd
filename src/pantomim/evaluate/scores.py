"""How right predictions are, as shares."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """One view's score on the validation part, what was chosen there, and its predictions on the test part."""

    validation: float
    chosen: dict[str, float]
    predictions: Int[Tensor, " n"]


def top1(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Share of right predictions."""
    return float((predictions == labels).double().mean())


def top1_per_class(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """The same for each class, then averaged: rare classes count as much as frequent ones."""
    right = (predictions == labels).double()
    counts = labels.bincount()
    present = counts > 0
    return float((labels.bincount(right)[present] / counts[present]).mean())


def best_view(outcomes: dict[str, Outcome], labels: Int[Tensor, " n"]) -> dict[str, Any]:
    """The result of a contender; its headline is the view that is best on the validation part."""
    view = max(outcomes, key=lambda name: outcomes[name].validation)
    predictions = outcomes[view].predictions
    return {
        "top1": top1(predictions, labels),
        "top1_per_class": top1_per_class(predictions, labels),
        **{f"top1_{name}": top1(outcome.predictions, labels) for name, outcome in outcomes.items()},
        "view": view,
        "chosen": {name: outcome.chosen for name, outcome in outcomes.items()},
        "validation": {name: outcome.validation for name, outcome in outcomes.items()},
    }
