"""A fine-tuned classifier on labelled images: how often it is right, on which classes, and where it errs most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.intervals import CONFIDENCE, half_interval
from pantomim.core.ranges import AtLeastOne
from pantomim.data.dataset import Dataset
from pantomim.data.stream import evaluation_batches
from pantomim.evaluate.base import Scores
from pantomim.evaluate.features import check_finite, check_images
from pantomim.evaluate.parts import accuracy
from pantomim.evaluate.trained import TaskEvaluation, Trained
from pantomim.formats.native import CLASSIFIER, load_classifier
from pantomim.nn.heads import Classifier

NUM_HARDEST = 24


@dataclass(frozen=True)
class TrainedClassifier(Trained):
    """The classifier of a fine-tuned run, in evaluation mode."""

    module: Classifier

    kind = CLASSIFIER
    load = staticmethod(load_classifier)
    by_class: ClassVar = {"classes": "names"}
    told = ("test_margin",)

    @torch.inference_mode()
    def logits(
        self, dataset: Dataset, chunk: int, margin: float | None = None
    ) -> Iterator[tuple[Float[Tensor, "B classes"], Int[np.ndarray, " B"]]]:
        """Of the centre of every readable image, with its index, on the CPU; `margin` by default as in training."""
        for images, indices in self.crops(dataset, chunk, margin):
            yield check_finite(self.module(images).float().cpu(), dataset.spec), indices

    def crops(
        self, dataset: Dataset, chunk: int, margin: float | None = None
    ) -> Iterator[tuple[Float[Tensor, "B C H W"], Int[np.ndarray, " B"]]]:
        """What `logits` are of; images unlike those of the training are refused."""
        check_images(self.module.encoder, dataset)
        margin = self.about["test_margin"] if margin is None else margin
        return evaluation_batches(dataset, self.module.encoder.image_size, chunk, self.device, margin=margin)

    def labelled(
        self, dataset: Dataset, chunk: int, margin: float | None = None
    ) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"], Int[np.ndarray, " n"]]:
        """Logits of all readable images, their true classes (see `positions`), and their indices."""
        labels = self.positions(dataset)
        logits, indices = zip(*self.logits(dataset, chunk, margin), strict=True)
        return torch.cat(logits), labels[rows := np.concatenate(indices)], rows

    def positions(self, dataset: Dataset) -> Int[Tensor, " n"]:
        """The true class of each image, by its name, as a position among our classes."""
        if dataset.labels is None or dataset.classes is None:
            raise ValueError(
                f"Classifier.images must have labels to be scored; got none in {dataset.spec} ({dataset.split}). Sort "
                f"them into one folder a class, or write the classes behind the names in a .txt."
            )
        present = [dataset.classes[class_id] for class_id in np.unique(dataset.labels)]
        places = self.places(present, f"{dataset.spec} ({dataset.split})")
        table = torch.tensor([places.get(name, -1) for name in dataset.classes])
        return table[torch.from_numpy(dataset.labels)]


@frozen
class ClassifierEvaluation(TaskEvaluation):
    """A question to a fine-tuned classifier."""

    # The folder of a fine-tuned run, or the weights in it
    run: Annotated[str, tyro.conf.arg(name=CLASSIFIER)]
    chunk: AtLeastOne = 256  # Images at once

    network = TrainedClassifier


@frozen
class Classification(ClassifierEvaluation):
    """A fine-tuned classifier on labelled images: top-1, each class, what is confused, the hardest images."""

    against: str | None = None  # Another run that was scored on the same images: is the difference to it chance?
    protocol: tyro.conf.Suppress[Literal["classifier"]] = "classifier"

    stem = "finetune"

    def score(self, trained: TrainedClassifier, dataset: Dataset, theirs: Scores | None) -> dict[str, Any]:
        """The scores of `class_scores`, and how top-1 differs."""
        logits, labels, rows = trained.labelled(dataset, self.chunk)
        names = dataset.names
        scores = class_scores(logits, labels, trained.classes, [names[row] for row in rows])
        if theirs is None:
            return {"trained": scores}
        difference = paired_difference(hits_of(scores), hits_of(theirs))
        return {"trained": scores, "against": {"top1": theirs["top1"], **difference}}

    def words(self, result: Mapping[str, Any]) -> list[str]:
        """Top-1, how sure that is, and the mean over classes."""
        scores, percent = result["trained"], "{:.1f}".format
        low, high = (percent(100 * end) for end in scores["top1_interval"])
        return [
            f"top-1 {percent(100 * scores['top1'])} % (95 % interval {low} to {high})",
            *([f"top-5 {percent(100 * scores['top5'])} %"] if "top5" in scores else []),
            f"mean over classes {percent(100 * scores['top1_per_class'])} %",
        ]


def class_scores(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], classes: Sequence[str], names: Sequence[str]
) -> Scores:
    """All that a classifier's logits tell, as shares; of the `classes` those that occur.

    `top1_interval` is Wilson's 95 % interval; `f1` the mean over classes that occur or are predicted; `nll` the mean
    negative log-likelihood; `confusion` counts by true class, then predicted class; `hardest` the images of the highest
    loss; `hits` a digit for each image, 1 where it is right.
    """
    num_classes, guesses = len(classes), logits.argmax(dim=1)
    true_names, guessed_names = ([classes[place] for place in places.tolist()] for places in (labels, guesses))
    log_chances = logits.double().log_softmax(dim=1)
    losses, right = -log_chances.gather(1, labels[:, None]).squeeze(1), guesses == labels
    counts = (labels * num_classes + guesses).bincount(minlength=num_classes**2).view(num_classes, num_classes)
    hits, true, guessed = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
    f1 = (2 * hits / (true + guessed))[true + guessed > 0].mean()
    within_5 = (logits.topk(min(5, num_classes)).indices == labels[:, None]).any(dim=1)
    from scipy import stats  # takes a second, so only where it is needed

    interval = stats.binomtest(int(right.sum()), len(labels)).proportion_ci(CONFIDENCE, "wilson")
    return {
        **accuracy(guesses, labels),
        "top1_interval": [interval.low, interval.high],
        **({"top5": float(within_5.double().mean())} if num_classes > 5 else {}),
        "f1": float(f1),
        "nll": float(losses.mean()),
        "by_class": {classes[place]: float(hits[place] / true[place]) for place in true.nonzero().flatten().tolist()},
        "confusion": {
            classes[row]: {classes[column]: counted for column, counted in enumerate(counts[row].tolist()) if counted}
            for row in true.nonzero().flatten().tolist()
        },
        "hardest": [
            {
                "name": names[image],
                "true": true_names[image],
                "predicted": guessed_names[image],
                "probability": float(log_chances[image, guesses[image]].exp()),
                "probability_of_true": float(log_chances[image, labels[image]].exp()),
            }
            for image in losses.argsort(descending=True, stable=True)[:NUM_HARDEST].tolist()
        ],
        "hits": "".join("1" if hit else "0" for hit in right.tolist()),
    }


def hits_of(scores: Mapping[str, Any]) -> Bool[np.ndarray, " n"]:
    """Which images were classified rightly, in order."""
    return np.frombuffer(scores["hits"].encode(), dtype=np.uint8) == ord("1")


def paired_difference(right_a: Bool[np.ndarray, " n"], right_b: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Top-1 of a minus b on the same images, with a 95 % interval, and how many images only one of them gets right.

    The interval is normal, by the variance of the differences image by image, as in McNemar's test: images that both
    get right or wrong say nothing, so that it is narrower than that of two scores on different images.
    """
    if right_a.shape != right_b.shape:
        raise ValueError(f"paired_difference must get the same images twice; got {len(right_a)} and {len(right_b)}.")
    differences = right_a.astype(float) - right_b
    mean, error = float(differences.mean()), float(differences.std() / np.sqrt(len(differences)))
    from scipy import stats

    reach = float(stats.norm.isf((1 - CONFIDENCE) / 2)) * error
    return {
        "difference": mean,
        "interval": [mean - reach, mean + reach],
        "only_this": int((differences > 0).sum()),
        "only_other": int((differences < 0).sum()),
    }


def difference_over_draws(right_a: Bool[np.ndarray, "draws n"], right_b: Bool[np.ndarray, "draws n"]) -> dict[str, Any]:
    """The same as a mean over draws of the labelled images, with a 95 % interval for other draws and other test images.

    The variance is that among images, of their differences' means over draws, over the number of images, plus that
    among draws over their number; degrees of freedom: Welch and Satterthwaite. Of one draw: `paired_difference`.
    """
    if len(right_a) == 1:
        return paired_difference(right_a[0], right_b[0])
    differences = right_a.astype(float) - right_b
    sides = [differences.mean(axis=0), differences.mean(axis=1)]
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    mean = float(differences.mean())
    reach = half_interval((part, len(side) - 1) for part, side in zip(parts, sides, strict=True))
    return {"difference": mean, "interval": [mean - reach, mean + reach]}
