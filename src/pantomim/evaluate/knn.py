"""k-nearest neighbours: an image's class is voted by the training images whose features are most like its own.

Paper: Wu et al. 2018, arXiv:1805.01978, section 3.4 (weights exp(similarity / 0.07)); Caron et al. 2021,
arXiv:2104.14294, appendix F.1 (several k).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.evaluate.parts import Parts
from pantomim.evaluate.scores import Outcome, best_view, top1

TEMPERATURE = 0.07
NUM_NEIGHBOURS = (5, 10, 20, 50, 100)


def knn(parts: Parts) -> dict[str, Any]:
    """Scores of one contender; k and the view are chosen on the validation part, then all of train votes on test."""
    assert parts.test.labels is not None
    outcomes, by_k = {}, {}
    for view in parts.views:
        right = _predict(parts, view, parts.fit, parts.validation)
        validation = {k: top1(predictions, _labels(parts.validation)) for k, predictions in right.items()}
        k = max(validation, key=lambda k: validation[k])
        test = _predict(parts, view, parts.train, parts.test)
        outcomes[view] = Outcome(validation[k], {"k": k}, test[k])
        by_k[view] = {f"k{k}": top1(predictions, parts.test.labels) for k, predictions in test.items()}
    return {**best_view(outcomes, parts.test.labels), "by_k": by_k}


def neighbour_votes(
    bank: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m D"],
    num_classes: int,
    ks: tuple[int, ...],
    chunk: int = 1024,
) -> dict[int, Int[Tensor, " m"]]:
    """Predicted classes for each number of neighbours that the bank can give (at least one: all of a small bank).

    Each of the k most similar (cosine) votes for its class with weight exp(similarity / 0.07).
    """
    ks = tuple(k for k in ks if k <= len(bank)) or (len(bank),)
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in queries.split(chunk):
        similarity, neighbours = (part @ bank.T).topk(max(ks), dim=1)
        weight = ((similarity - 1) / TEMPERATURE).exp()  # a common factor, so that nothing overflows
        ballots = labels[neighbours]
        for k in ks:
            votes = weight.new_zeros(len(part), num_classes).scatter_add_(1, ballots[:, :k], weight[:, :k])
            predictions[k].append(votes.argmax(dim=1))
    return {k: torch.cat(chunks) for k, chunks in predictions.items()}


def _predict(parts: Parts, view: str, bank: Any, queries: Any) -> dict[int, Tensor]:
    ks = tuple(k for k in NUM_NEIGHBOURS if k <= len(parts.fit)) or (len(parts.fit),)
    return neighbour_votes(bank.views[view], _labels(bank), queries.views[view], parts.num_classes, ks)


def _labels(table: Any) -> Tensor:
    assert table.labels is not None
    return table.labels
