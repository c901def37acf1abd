"""A fine-tuned classifier on labelled images: how often it is right, on which classes, and where it errs most.

Nothing is learned or chosen here. Classes are matched by name: the ids of a data set mean nothing outside it.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from pantomim.config import to_dict
from pantomim.core.files import check_out, replace_file
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne
from pantomim.data.dataset import Dataset
from pantomim.data.layout import part_names
from pantomim.data.sources import open_split, read_contents
from pantomim.data.stream import evaluation_batches
from pantomim.engine.runtime import usable_device
from pantomim.evaluate.base import PROTOCOL_VERSION, Scores
from pantomim.evaluate.parts import accuracy
from pantomim.formats.native import CLASSIFIER, damaged, load_classifier, read_description
from pantomim.nn.heads import Classifier

CONFIDENCE = 0.95
NUM_HARDEST = 24
RUN_WIDE = ("classifier", "data", "out", "chunk", "device", "protocol")  # options that are no settings of a result


@dataclass(frozen=True)
class TrainedClassifier:
    """The classifier of a fine-tuned run, in evaluation mode."""

    folder: Path
    module: Classifier
    about: Mapping[str, Any]  # classifier.json
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the logits."""
        return tuple(self.about["classes"])

    @torch.inference_mode()
    def logits(
        self, dataset: Dataset, chunk: int, margin: float | None = None
    ) -> Iterator[tuple[Float[Tensor, "B classes"], Int[np.ndarray, " B"]]]:
        """Of the centre of every readable image, in order, with the indices of the images; on the CPU.

        `margin`: the resized image's shorter side over the crop's; by default as the run recorded it.
        """
        for images, indices in self.crops(dataset, chunk, margin):
            yield self.module(images).float().cpu(), indices

    def crops(
        self, dataset: Dataset, chunk: int, margin: float | None = None
    ) -> Iterator[tuple[Float[Tensor, "B C H W"], Int[np.ndarray, " B"]]]:
        """What `logits` are of. Refuses images unlike those of the training: in channels, or in their scale."""
        trained = (self.module.encoder.in_chans, self.about["scale"]["divisor"])
        if trained != (dataset.channels, dataset.scale.divisor):
            raise ValueError(
                f"Classifier.images must be like those of its training, {trained[0]} channel(s) of values divided by "
                f"{trained[1]:g}; got {dataset.channels} channel(s) of {dataset.facts.dtype}, divided by "
                f"{dataset.scale.divisor:g}, in {dataset.spec}. Convert them."
            )
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
        places = {name: place for place, name in enumerate(self.classes)}
        present = [dataset.classes[class_id] for class_id in np.unique(dataset.labels)]
        if unknown := [name for name in present if name not in places]:
            raise ValueError(
                f"Classifier.classes must include those of the images; got {', '.join(unknown[:10])} in {dataset.spec} "
                f"({dataset.split}), unknown to it. It was trained on {', '.join(self.classes[:10])}"
                f"{' ...' if len(places) > 10 else ''}: rename or remove the others."
            )
        table = torch.tensor([places.get(name, -1) for name in dataset.classes])
        return table[torch.from_numpy(dataset.labels)]


def open_classifier(run: str | Path, device: torch.device) -> TrainedClassifier:
    """The classifier of a fine-tuned run, by the run's folder or its classifier.safetensors."""
    folder, _ = find_head(run)
    module, about = load_classifier(folder), read_description(folder, CLASSIFIER)
    if len(about.get("classes", ())) != module.head.out_features or "test_margin" not in about:
        missing = f"no test_margin, or not the names of all {module.head.out_features} classes"
        raise damaged(folder / f"{CLASSIFIER}.json", missing)
    return TrainedClassifier(folder, module.to(device), about, device)


def find_head(run: str | Path, kinds: Sequence[str] = (CLASSIFIER,)) -> tuple[Path, str]:
    """The folder of a fine-tuned run, given that or its weights, and the first of these pairs of files in it."""
    path = Path(run)
    folder, named = (path.parent, (path.stem,)) if path.suffix == ".safetensors" else (path, kinds)
    for kind in kinds:
        if kind in named and (folder / f"{kind}.json").is_file():
            return folder, kind
    has = "an encoder alone" if (folder / "encoder.json").is_file() else "none"
    weights = " or ".join(f"{kind}.safetensors" for kind in kinds)
    raise ValueError(
        f"Classifier.run must be the folder of a fine-tuned run, or its {weights}; got {run}, which has {has}. "
        f"`pantomim finetune` makes a classifier from an encoder and labelled images."
    )


@frozen
class ClassifierEvaluation(ABC):
    """A question to a fine-tuned classifier, with the options that all of them have.

    Args:
        classifier: The folder of a fine-tuned run, or its classifier.safetensors.
        data: As for training, with labels.
        out: FILE.json; by default in the folder eval of the run, named after the data.
        split: Of the data; without a test split, "test" is val, or the fifth that training leaves out.
        test_images: Use only this many images: a fixed draw, balanced over the classes.
        chunk: Images at once.
        device: "auto" takes a GPU if there is one.
    """

    classifier: str
    data: str
    out: Path | None = None
    split: Literal["test", "val", "train", "all"] = "test"
    test_images: AtLeastOne | None = None
    chunk: AtLeastOne = 256
    device: Literal["auto", "cpu", "cuda"] = "auto"
    protocol: tyro.conf.Suppress[str] = ""

    stem: ClassVar[str]  # what the file of the result is named after, before the data

    @abstractmethod
    def score(self, trained: TrainedClassifier, dataset: Dataset, name: str, key: Mapping[str, Any]) -> dict[str, Any]:
        """Scores under "trained", where other results have those of the encoder, and what else is to be written.

        `name` is that of the result's file in a run folder, `key` what identifies the data.
        """

    @abstractmethod
    def headline(self, result: Mapping[str, Any]) -> str:
        """The result in one line."""

    def to_file(self) -> tuple[Path, dict[str, Any]]:
        """Score, and write the result; a file about other images of the same name is left alone."""
        begin = time.perf_counter()
        trained = open_classifier(self.classifier, usable_device(type(self).__name__, self.device))
        contents = read_contents(self.data)
        split = part_names(contents.splits)["test"] if self.split == "test" else self.split
        whole = open_split(contents, self.data, split)
        name = f"{self.stem}-{whole.name}{'' if self.split == 'test' else f'-{self.split}'}.json"
        path, key = self.out or trained.folder / "eval" / name, whole.key()
        check_out(f"{type(self).__name__}.out", path, [".json"])
        if self.out is None and path.is_file() and key != (before := _read_result(path)["data"]).get("key"):
            raise ValueError(
                f"{type(self).__name__}.out must be given for {self.data}: {path} is about other images of the same "
                f"name, from {before.get('spec')}. Name another file, or remove that one."
            )
        dataset = whole if self.test_images is None else whole.drawn(self.test_images)
        about = {
            "spec": self.data,
            "test_split": dataset.split,
            "channels": dataset.channels,
            "scale": asdict(dataset.scale),
            "num_classes": len(trained.classes),
            "image_size": list(trained.module.encoder.image_size),
            "key": key,
        }
        scores = self.score(trained, dataset, name, key)
        broken = [asdict(image) for image in dataset.broken]
        result = {
            "protocol": self.stem,
            "protocol_version": PROTOCOL_VERSION,
            "dataset": dataset.name,
            "data": {**about, "num_test": len(dataset) - len(broken), "broken": broken},
            "labels_per_class": None,
            "settings": {name: value for name, value in to_dict(self).items() if name not in RUN_WIDE},
            "classifier": self.classifier,
            "classifier_sha256": trained.about["sha256"],
            "test_margin": trained.about["test_margin"],
            "chosen": trained.about.get("chosen"),
            **scores,
            "wall_s": round(time.perf_counter() - begin, 2),
        }
        replace_file(path, (json.dumps(result, indent=2) + "\n").encode())
        return path, result


@frozen
class Classification(ClassifierEvaluation):
    """A fine-tuned classifier on labelled images: top-1, each class, what is confused, the hardest images.

    Args:
        against: Another fine-tuned run that was scored on the same images: is the difference to it chance?
    """

    against: str | None = None
    protocol: tyro.conf.Suppress[Literal["classifier"]] = "classifier"

    stem = "finetune"

    def score(self, trained: TrainedClassifier, dataset: Dataset, name: str, key: Mapping[str, Any]) -> dict[str, Any]:
        """The scores of `class_scores`, and how they differ from another run's."""
        theirs = None if self.against is None else self._hits_of_other(name, key)
        logits, labels, rows = trained.labelled(dataset, self.chunk)
        names = dataset.names
        scores = class_scores(logits, labels, trained.classes, [names[row] for row in rows])
        if theirs is None:
            return {"trained": scores}
        difference = paired_difference(hits_of(scores), theirs)
        return {"trained": scores, "against": {"classifier": self.against, **difference}}

    def headline(self, result: Mapping[str, Any]) -> str:
        """Top-1, how sure that is, and how it differs from another run's."""
        scores, percent = result["trained"], "{:.1f}".format
        low, high = (percent(100 * end) for end in scores["top1_interval"])
        words = [f"top-1 {percent(100 * scores['top1'])} % (95 % interval {low} to {high})"]
        words += [f"top-5 {percent(100 * scores['top5'])} %"] if "top5" in scores else []
        words += [f"mean over classes {percent(100 * scores['top1_per_class'])} %"]
        if other := result.get("against"):
            low, high = (f"{100 * end:+.1f}" for end in other["interval"])
            words += [f"{100 * other['difference']:+.1f} points against {self.against} ({low} to {high})"]
        return f"{result['protocol']} on {result['dataset']}: {', '.join(words)}{left_out(result)}"

    def _hits_of_other(self, name: str, key: Mapping[str, Any]) -> Bool[np.ndarray, " n"]:
        path = find_head(str(self.against))[0] / "eval" / name
        result = _read_result(path) if path.is_file() else {}
        drawn = result.get("settings", {}).get("test_images")
        if not result or result["data"].get("key") != key or drawn != self.test_images:
            raise ValueError(
                f"Classification.against must be a run that was scored on the same images; got {self.against}, which "
                f"has {'other images in' if result else 'no'} {path}. Score it on {self.data} in the same way first."
            )
        return hits_of(result["trained"])


def _read_result(path: Path) -> dict[str, Any]:
    """A result of `to_file`; of a file of another kind what is there."""
    return {"data": {}, **json.loads(path.read_text(encoding="utf-8"))}


def left_out(result: Mapping[str, Any]) -> str:
    """How many images were broken, for the end of a headline."""
    count = len(result["data"]["broken"])
    return f"; {count} broken image{'s' if count > 1 else ''} left out" if count else ""


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
    reach = float(stats.norm.isf((1 - CONFIDENCE) / 2)) * error
    return {
        "difference": mean,
        "interval": [mean - reach, mean + reach],
        "only_this": int((differences > 0).sum()),
        "only_other": int((differences < 0).sum()),
    }
