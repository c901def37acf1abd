"""Who may see what in an evaluation: one part to fit, one to choose by, one to report."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pantomim.data.dataset import Dataset
from pantomim.data.layout import divide
from pantomim.data.sources import open_source, splits
from pantomim.evaluate.features import AnyEncoder, FeatureTable, pixel_size


@dataclass(frozen=True)
class Labelled:
    """A source of labelled images, divided.

    Args:
        parts: The splits "train", "test" and perhaps "val".
        classes: The class ids that occur in train, rising.
    """

    parts: dict[str, Dataset]
    classes: Int[Tensor, " classes"]

    def size_for(self, encoder: AnyEncoder) -> tuple[int, int]:
        """Height and width at which an encoder sees the images, where the user leaves it open: its own."""
        return encoder.image_size

    def about(self, encoder: AnyEncoder) -> dict[str, Any]:
        """For the record, of the images as this encoder sees them."""
        return {
            "num_classes": len(self.classes),
            "image_size": list(encoder.image_size),
            "pixels_image_size": list(pixel_size(encoder.image_size, self.parts["train"].channels)),
        }


def open_labelled(spec: str, images: int | None = None, test_images: int | None = None) -> Labelled:
    """The labelled splits of a source, as `part_names` divides them.

    Args:
        spec: As for pre-training.
        images: Use only this many training images: the draw that pre-training with `data.images` makes.
        test_images: The same of the test part.

    Raises:
        ValueError: if labels are missing, there is only one class, or a class of val or test is unknown to train.
    """
    parts = drawn(
        {part: open_source(spec, split) for part, split in part_names(splits(spec)).items()}, images, test_images
    )
    labels = {}
    for part, dataset in parts.items():
        if dataset.labels is None:
            raise ValueError(missing_labels(f"{spec} ({part})"))
        labels[part] = torch.from_numpy(dataset.labels)
    classes = known_classes(labels["train"])
    for part in parts:
        renumber(labels[part], classes, part)
    return Labelled(parts, classes)


def drawn(parts: dict[str, Dataset], images: int | None, test_images: int | None) -> dict[str, Dataset]:
    """Train and test cut down to so many images, by a fixed draw that is balanced over the classes."""
    counts = {"train": images, "test": test_images}
    return {
        part: dataset if (count := counts.get(part)) is None else dataset.drawn(count)
        for part, dataset in parts.items()
    }


@dataclass(frozen=True)
class Parts:
    """The tables of one contender, labels counted from 0 in all.

    Args:
        train: All images that may be learned from.
        fit: Learned from while choosing; a part of `train`.
        validation: All choices (rates, neighbours, kind of feature) are made on these.
        test: Reported, never chosen by.
        num_classes: Classes of `train`.
    """

    train: FeatureTable
    fit: FeatureTable
    validation: FeatureTable
    test: FeatureTable
    num_classes: int

    @property
    def views(self) -> list[str]:
        """Names of the features to choose from."""
        return list(self.train.views)


def make_parts(train: FeatureTable, validation: FeatureTable | None, test: FeatureTable, *, seed: int) -> Parts:
    """Divide and check the tables; without a validation part, a seeded fifth of train is held out for choices.

    Raises:
        ValueError: if labels are missing, there is only one class, or a class is unknown to train.
    """
    for name, table in {"train": train, "val": validation, "test": test}.items():
        if table is not None and table.labels is None:
            raise ValueError(missing_labels(name))
    classes = known_classes(train.known_labels)

    def renumbered(table: FeatureTable, where: str) -> FeatureTable:
        return replace(table, labels=renumber(table.known_labels, classes, where))

    train, test = renumbered(train, "train"), renumbered(test, "test")
    if validation is not None:
        return Parts(train, train, renumbered(validation, "val"), test, len(classes))
    rows = divide(len(train), train.known_labels.numpy(), seed=seed)
    if not len(rows["test"]):
        raise ValueError(
            f"Evaluation.data must have at least two images of some class in train; got {len(train)} images of "
            f"{len(classes)} classes. Add images, or a val part."
        )
    return Parts(train, train.rows(rows["train"]), train.rows(rows["test"]), test, len(classes))


def part_names(own: Collection[str]) -> dict[str, str]:
    """Which split is which part: "train", "test", and "val" if it is a third one.

    Test is the source's test split; without one, its val split; without any splits, the fixed fifth that pre-training
    does not see either.

    Args:
        own: The splits that the source has of its own.
    """
    names = {"train": "train", "test": "val" if "val" in own and "test" not in own else "test"}
    return names | {"val": "val"} if "val" in own and "test" in own else names


def missing_labels(where: str) -> str:
    """What to do when there are no labels."""
    return (
        f"Evaluation.data must have labels; got none for {where}. Sort the images into one folder a class "
        f"(DATA/train/CLASS/*.jpg, DATA/test/CLASS/*.jpg), write them behind the file names in a .txt list, or put an "
        f"array `labels` into the .npz."
    )


def known_classes(labels: Int[Tensor, " n"]) -> Int[Tensor, " classes"]:
    """The class ids that occur in train, rising.

    Raises:
        ValueError: if there are fewer than two.
    """
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError(
            f"Evaluation.data must have at least two classes in train; got {len(classes)}. "
            f"Scores need classes to tell apart: give data with one folder a class."
        )
    return classes


def renumber(labels: Int[Tensor, " n"], classes: Int[Tensor, " classes"], where: str) -> Int[Tensor, " n"]:
    """Class ids as positions in `classes`.

    Raises:
        ValueError: if a label is not among the classes.
    """
    unknown = labels[~torch.isin(labels, classes)]
    if len(unknown):
        named = ", ".join(map(str, unknown.unique().tolist()[:10]))
        raise ValueError(
            f"Evaluation.data must have the classes of {where} in train too; got class {named} in {len(unknown)} "
            f"images of {where} and in none of train. Add examples to train, or take these images out."
        )
    return torch.searchsorted(classes, labels)
