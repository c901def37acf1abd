"""Who may see what in an evaluation: one part to fit, one to choose by, one to report, and how right it was."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pantomim.data.dataset import Dataset
from pantomim.data.layout import divide, part_names
from pantomim.data.masks import MaskedSource
from pantomim.data.sources import open_source, splits
from pantomim.evaluate.features import AnyEncoder, FeatureTable, pixel_size
from pantomim.formats.wrapped import WrappedEncoder

MAX_STRETCH = 2  # the shorter side of the patch grid over the encoder's own


@dataclass(frozen=True)
class Labelled:
    """A source of labelled images, divided."""

    parts: dict[str, Dataset]  # the splits "train", "test" and perhaps "val"
    classes: Int[Tensor, " classes"]  # the ids that occur in train, rising

    def key(self) -> dict[str, Any]:
        """What identifies the images of each part."""
        return {part: dataset.key() for part, dataset in self.parts.items()}

    def size_for(self, encoder: AnyEncoder) -> tuple[int, int]:
        """Height and width at which an encoder sees the images, where the user leaves it open: its own."""
        return encoder.image_size

    def about(self, encoder: AnyEncoder) -> dict[str, Any]:
        """For the record, of the images as this encoder sees them."""
        pixels = list(pixel_size(encoder.image_size, self.parts["train"].channels))
        sizes = {"image_size": list(encoder.image_size), "pixels_image_size": pixels}
        return {"num_classes": len(self.classes), **sizes}


def open_labelled(
    spec: str, images: int | None = None, test_images: int | None = None, scale: float | None = None
) -> Labelled:
    """The labelled splits of a source, as `part_names` divides them; train and test may be drawn from."""
    names, counts = part_names(splits(spec)), {"train": images, "test": test_images}
    parts = {part: open_source(spec, split, scale).labelled().part(counts.get(part)) for part, split in names.items()}
    labels = {}
    for part, dataset in parts.items():
        if dataset.labels is None:
            raise ValueError(
                f"Evaluation.data must have labels; got none for {spec} ({part}). Sort the images into one folder a "
                f"class (DATA/train/CLASS/*.jpg, DATA/test/CLASS/*.jpg), write them behind the file names in a .txt "
                f"list, or put an array `labels` into the .npz. Ten a class are a start (`evaluate few_labels`). "
                f"Without labels: `evaluate label_free`, and `inspect neighbours`, pca, attention, map or reconstruct."
            )
        labels[part] = torch.from_numpy(dataset.labels)
    classes = known_classes(labels["train"])
    for part in parts:
        renumber(labels[part], classes, part)
    return Labelled(parts, classes)


@dataclass(frozen=True)
class MaskedParts(MaskedSource):
    """Images with masks, divided, as an encoder is scored on them."""

    def size_for(self, encoder: AnyEncoder) -> tuple[int, int]:
        """Whole patches in the images' proportions, no larger than these nor `MAX_STRETCH` times the encoder's grid."""
        if isinstance(encoder, WrappedEncoder):
            return encoder.image_size
        patch = encoder.patch_size
        shorter = max(1, min(min(self.size) // patch, MAX_STRETCH * min(encoder.grid)))
        scale = min(1.0, shorter * patch / min(self.size))
        height, width = (max(1, round(side * scale / patch)) for side in self.size)
        return height * patch, width * patch

    def about(self, encoder: AnyEncoder) -> dict[str, Any]:
        """For the record, of the images as this encoder sees them."""
        unknown = sorted(set(self.ids) - set(self.known))
        return {
            "num_classes": len(self.ids),
            "classes_unknown_to_train": [self.name_of(class_id) for class_id in unknown],
            "masks": self.masks.name,
            "ignore": self.masks.ignore,
            "ignored": self.ignored,
            "reduce_zero": self.masks.reduce_zero,
            "image_size": list(encoder.image_size),
            "grid": list(encoder.grid),
        }


@dataclass(frozen=True)
class Tables:
    """The tables of one contender, labels counted from 0 in all."""

    train: FeatureTable  # all images that may be learned from
    fit: FeatureTable  # learned from while choosing; a part of `train`
    validation: FeatureTable  # all choices (rates, neighbours, kind of feature) are made on these
    test: FeatureTable  # reported, never chosen by
    num_classes: int


def make_parts(train: FeatureTable, validation: FeatureTable | None, test: FeatureTable, *, seed: int) -> Tables:
    """Divide the tables; without a validation part, a seeded fifth of train is held out for choices."""
    classes = known_classes(train.known_labels)

    def renumbered(table: FeatureTable, where: str) -> FeatureTable:
        return replace(table, labels=renumber(table.known_labels, classes, where))

    train, test = renumbered(train, "train"), renumbered(test, "test")
    if validation is not None:
        return Tables(train, train, renumbered(validation, "val"), test, len(classes))
    rows = held_out_rows(train.known_labels.numpy(), seed)
    return Tables(train, train.rows(rows["train"]), train.rows(rows["test"]), test, len(classes))


def held_out_rows(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Where a source has no part to choose by: the rows of train to fit on, and a fifth of every class, as "test"."""
    rows = divide(len(labels), labels, seed=seed)
    if not len(rows["test"]):
        raise ValueError(
            f"Evaluation.data must have at least two images of some class in train; got {len(labels)} images of "
            f"{len(np.unique(labels))} classes. Add images, or a val part."
        )
    return rows


def known_classes(labels: Int[Tensor, " n"]) -> Int[Tensor, " classes"]:
    """The class ids that occur in train, rising; at least two."""
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError(
            f"Evaluation.data must have at least two classes in train; got {len(classes)}. "
            f"Scores need classes to tell apart: give data with one folder a class."
        )
    return classes


def renumber(labels: Int[Tensor, " n"], classes: Int[Tensor, " classes"], where: str) -> Int[Tensor, " n"]:
    """Class ids as positions in `classes`, which must have them all."""
    unknown = labels[~torch.isin(labels, classes)]
    if len(unknown):
        named = ", ".join(map(str, unknown.unique().tolist()[:10]))
        raise ValueError(
            f"Evaluation.data must have the classes of {where} in train too; got class {named} in {len(unknown)} "
            f"images of {where} and in none of train. Add examples to train, or take these images out."
        )
    return torch.searchsorted(classes, labels)


@dataclass(frozen=True)
class Outcome:
    """One view's score on the validation part, what was chosen there, and its predictions on the test part."""

    validation: float
    chosen: dict[str, float]
    predictions: Int[Tensor, " n"]


def top1(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Share of right predictions."""
    return float((predictions == labels).double().mean())


def accuracy(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """`top1`, and `top1_per_class`: averaged over the classes, so that rare ones count as much as frequent ones."""
    counts = labels.bincount()
    present = counts > 0
    shares = labels.bincount((predictions == labels).double())[present] / counts[present]
    return {"top1": top1(predictions, labels), "top1_per_class": float(shares.mean())}


def best_view(outcomes: dict[str, Outcome], labels: Int[Tensor, " n"]) -> dict[str, Any]:
    """The result of a contender; its headline is the view that is best on the validation part."""
    view = max(outcomes, key=lambda name: outcomes[name].validation)
    return {
        **accuracy(outcomes[view].predictions, labels),
        **{f"top1_{name}": top1(outcome.predictions, labels) for name, outcome in outcomes.items()},
        "view": view,
        "chosen": {name: outcome.chosen for name, outcome in outcomes.items()},
        "validation": {name: outcome.validation for name, outcome in outcomes.items()},
    }
