"""k-nearest neighbours: an image's class is voted by the training images whose features are most like its own.

Paper: Wu et al. 2018, arXiv:1805.01978, section 3.4 (weights exp(similarity / 0.07)); Caron et al. 2021,
arXiv:2104.14294, appendix F.1 (several k).
"""

from typing import Literal

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.progress import tracked
from pantomim.evaluate.base import Bench, Evaluation, Scores
from pantomim.evaluate.features import FeatureTable
from pantomim.evaluate.parts import Outcome, Tables, best_view, top1

TEMPERATURE = 0.07
NUM_NEIGHBOURS = (5, 10, 20, 50, 100)


@frozen
class KNN(Evaluation):
    """k-nearest neighbours by cosine similarity; k is chosen on held-out training images."""

    protocol: tyro.conf.Suppress[Literal["knn"]] = "knn"

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Also `by_k`: the test score of each k."""
        return {name: knn(parts) for name, parts in bench.tables()}


def knn(parts: Tables) -> Scores:
    """Scores of one contender; k and the view are chosen on the validation part, then all of train votes on test."""

    def votes(view: str, bank: FeatureTable, queries: FeatureTable, ks: tuple[int, ...]) -> dict[int, Tensor]:
        return neighbour_votes(bank.views[view], bank.known_labels, queries.views[view], parts.num_classes, ks)

    outcomes, by_k = {}, {}
    for view in parts.train.views:
        guesses = votes(view, parts.fit, parts.validation, NUM_NEIGHBOURS)
        validation = {k: top1(guess, parts.validation.known_labels) for k, guess in guesses.items()}
        k = max(validation, key=lambda k: validation[k])
        test = votes(view, parts.train, parts.test, tuple(guesses))
        outcomes[view] = Outcome(validation[k], {"k": k}, test[k])
        by_k[view] = {f"k{k}": top1(guess, parts.test.known_labels) for k, guess in test.items()}
    return {**best_view(outcomes, parts.test.known_labels), "by_k": by_k}


def neighbour_votes(
    bank: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m D"],
    num_classes: int,
    ks: tuple[int, ...],
    chunk: int = 1024,
) -> dict[int, Int[Tensor, " m"]]:
    """Predicted classes for each number of neighbours that the bank can give (at least one: all of a small bank)."""
    ks = tuple(k for k in ks if k <= len(bank)) or (len(bank),)
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    parts = queries.split(chunk)
    for part in tracked(parts, "nearest neighbours", len(parts)):
        similarity, neighbours = (part @ bank.T).topk(max(ks), dim=1)
        weight = ((similarity - 1) / TEMPERATURE).exp()  # a common factor, so that nothing overflows
        ballots = labels[neighbours]
        for k in ks:
            votes = weight.new_zeros(len(part), num_classes).scatter_add_(1, ballots[:, :k], weight[:, :k])
            predictions[k].append(votes.argmax(dim=1))
    return {k: torch.cat(chunks) for k, chunks in predictions.items()}
