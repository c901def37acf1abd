"""A classifier from a few labels a class: logistic regression on cached features, over several draws of the labels."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Int
from threadpoolctl import threadpool_limits

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne
from pantomim.evaluate.base import Bench, Evaluation, Scores
from pantomim.evaluate.linear import standardiser
from pantomim.evaluate.parts import Tables, accuracy, top1

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C, on standardised features
FOLDS = 3


@frozen
class FewLabels(Evaluation):
    """A linear classifier from a few labels a class: the mean over several draws of the labelled images."""

    protocol: tyro.conf.Suppress[Literal["few_labels"]] = "few_labels"
    chosen_within: ClassVar[str | None] = "the labelled images, by cross-validation"
    labels_per_class: AtLeastOne = 10  # Images of each class whose labels are used
    draws: AtLeastOne = 5  # Of the labelled images

    @property
    def name(self) -> str:
        """A linear classifier too: results tell it from the other by the number of labels."""
        return "linear"

    @property
    def stem(self) -> str:
        """With the number of labels."""
        return f"linear-{self.labels_per_class}"

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Mean and std over the draws."""
        return {name: self.score(parts) for name, parts in bench.tables()}

    def score(self, parts: Tables) -> Scores:
        """Scores of one contender; strength and view are chosen by cross-validation within the labelled images alone.

        The features are standardised over all training images, which needs no label. With one label a class there is
        nothing to cross-validate: then C is 1 and the first view is chosen.
        """
        labels, truth = parts.train.known_labels.numpy(), parts.test.known_labels
        draws: list[dict[str, float]] = []
        chosen: list[str] = []
        for draw in range(self.draws):
            rows = draw_labelled(labels, self.labels_per_class, seed=self.seed, draw=draw)
            fitted = {}
            for view in parts.train.views:
                standardise = standardiser(parts.train.views[view])
                train, test = (
                    standardise(table.views[view]).double().numpy() for table in (parts.train.rows(rows), parts.test)
                )
                with threadpool_limits(limits=1):  # problems this small only get slower with more
                    train, test = reduced(train, test)
                    model, validation = choose(train, labels[rows], seed=self.seed)
                    fitted[view] = (validation, torch.from_numpy(model.predict(test)))
            view = max(fitted, key=lambda name: fitted[name][0])
            chosen.append(view)
            by_view = {f"top1_{name}": top1(found, truth) for name, (_, found) in fitted.items()}
            draws.append(accuracy(fitted[view][1], truth) | by_view)
        result: Scores = {}
        for name in draws[0]:
            values = [scores[name] for scores in draws]
            result[name] = float(np.mean(values))
            result[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {**result, "views": chosen, "draws": [scores["top1"] for scores in draws]}


def draw_labelled(
    labels: Int[np.ndarray, " n"], labels_per_class: int, *, seed: int, draw: int
) -> Int[np.ndarray, " m"]:
    """The images whose labels are known in one draw: the same number of every class."""
    counts = np.bincount(labels)
    if counts.min() < labels_per_class:
        raise ValueError(
            f"FewLabels.labels_per_class must be at most the images of the smallest class, {counts.min()}; got "
            f"{labels_per_class}. Ask for fewer."
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, draw, labels_per_class]))
    rows = [rng.permutation(np.flatnonzero(labels == index))[:labels_per_class] for index in range(len(counts))]
    return np.sort(np.concatenate(rows))


def reduced(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same features in the training images' span, where it is smaller: a squared penalty keeps weights there."""
    if train.shape[1] <= len(train):
        return train, test
    basis = np.linalg.svd(train, full_matrices=False)[2].T
    return train @ basis, test @ basis


def choose(train: np.ndarray, labels: np.ndarray, *, seed: int) -> tuple["LogisticRegression", float]:
    """A classifier with the strength that does best in cross-validation, and how well it did."""
    from sklearn.linear_model import LogisticRegression  # takes a second, so only where it is needed
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    model = LogisticRegression(C=1.0, max_iter=5000)
    folds = min(FOLDS, int(np.bincount(labels).min()))
    if folds < 2:
        return model.fit(train, labels), 0.0
    division = StratifiedKFold(folds, shuffle=True, random_state=seed)
    search = GridSearchCV(model, {"C": list(STRENGTHS)}, cv=division).fit(train, labels)
    return search.best_estimator_, float(search.best_score_)
