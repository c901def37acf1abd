"""A trained segmenter on images with masks: the mean IoU of their pixels, each class, and how sure that is.

Images are tested whole, by windows, and scored at the size of their masks in the files, by mmsegmentation's counts.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.batch import IGNORE
from pantomim.core.frozen import frozen
from pantomim.core.scores import class_accuracy, count_pixels, intersection_over_union, means
from pantomim.data.dataset import Contents, Dataset
from pantomim.data.masks import Masks, Survey, read_masked
from pantomim.data.stream import whole_images
from pantomim.evaluate.base import Scores
from pantomim.evaluate.features import check_images
from pantomim.evaluate.segmentation import resampled_miou, standard_error
from pantomim.evaluate.trained import TaskEvaluation, Trained, find_head
from pantomim.formats.native import SEGMENTER, load_segmenter, read_description
from pantomim.nn.segmenter import Segmenter, segmented

ENDS = (0.025, 0.975)  # of a 95 % interval


@dataclass(frozen=True)
class TrainedSegmenter(Trained):
    """The segmenter of a run, in evaluation mode."""

    module: Segmenter

    kind = SEGMENTER
    load = staticmethod(load_segmenter)
    by_class: ClassVar = {"classes": "names", "class_ids": "ids"}
    told = ("test_size", "stride")
    more = ("no_class",)

    @property
    def base(self) -> tuple[int, int]:
        """Longest and shortest side of an image in a test."""
        long_side, short_side = self.about["test_size"]
        return long_side, short_side

    def predicted(self, image: Float[Tensor, "1 C h w"], size: tuple[int, ...]) -> Int[Tensor, "1 H W"]:
        """The class number of every pixel of an image of `base`, at its own size."""
        return segmented(self.module, image.to(self.device), size, self.about["stride"])

    def stored(self, numbers: Int[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
        """Class numbers as the ids that the masks of the training have in their files; `no_class` for `IGNORE`."""
        ids = self.about["class_ids"]
        return np.array([*ids, *[self.about["no_class"]] * (IGNORE + 1 - len(ids))])[numbers]

    def counts(self, dataset: Dataset, masks: Masks) -> tuple[Int[Tensor, "n 3 classes"], Survey]:
        """The `count_pixels` of every readable image, in order, classes matched by name; and what their masks hold."""
        check_images(self.module.encoder, dataset)
        survey, where = masks.survey(dataset), f"{masks.name} of {dataset.spec} ({dataset.split})"
        if not survey.ids:
            raise ValueError(f"Segmenter.masks must have pixels with a class; got none in {where}. Check ignore.")
        masks = masks.listed(survey.ids)
        places = self.places([masks.names[class_id] for class_id in survey.ids], where)
        table = torch.full((IGNORE + 1,), IGNORE)
        ours = [places.get(masks.names[class_id], IGNORE) for class_id in masks.class_ids()]
        table[: len(ours)] = torch.tensor(ours)
        found = []
        for image, numbers, _ in whole_images(dataset, masks, self.base, self.device):
            guesses = self.predicted(image, numbers.shape)
            labels = table.to(self.device)[numbers[None]]
            found.append(count_pixels(guesses, labels, len(self.classes), ignore=IGNORE))
        return torch.cat(found), survey


@frozen
class SegmenterEvaluation(TaskEvaluation):
    """A trained segmenter on images with masks: mean IoU of pixels with its standard error, and each class."""

    # The folder of a fine-tuned run, or the weights in it
    run: Annotated[str, tyro.conf.arg(name=SEGMENTER)]
    masks: str | None = None  # Which masks: a folder beside the images, or an array of the .npz; None: the only one
    ignore: int | None = None  # The value in masks of pixels that have no class; None: that of the training
    reduce_zero: bool | None = None  # Whether 0 is no class either, and the others count from 1; None: as in training
    against: str | None = None  # Another run that was scored on the same images: is the difference to it chance?
    protocol: tyro.conf.Suppress[Literal["segmenter"]] = "segmenter"

    network = TrainedSegmenter
    stem = "segment"

    @cached_property
    def source(self) -> tuple[Contents, Masks]:
        """What the data hold."""
        folder = find_head(self.run, (SEGMENTER,))[0]
        about = read_description(folder, SEGMENTER)
        ignore = about.get("ignore", about.get("no_class") or IGNORE) if self.ignore is None else self.ignore
        reduce_zero = about.get("reduce_zero") if self.reduce_zero is None else self.reduce_zero
        return read_masked(self.data, self.masks, ignore=ignore, reduce_zero=reduce_zero)

    def score(self, trained: TrainedSegmenter, dataset: Dataset, theirs: Scores | None) -> dict[str, Any]:
        """The scores of `pixel_scores`, those of one class everywhere, and how the mean IoU differs."""
        counts, survey = trained.counts(dataset, self.source[1])
        classes = trained.classes
        scores = {"trained": pixel_scores(counts, classes), "most_frequent": most_frequent(counts, classes)}
        scores["ignored"] = survey.ignored
        if theirs is None:
            return scores
        difference = paired_difference(counts, unpacked(theirs["counts"]))
        return scores | {"against": {"miou": theirs["miou"], **difference}}

    def words(self, result: Mapping[str, Any]) -> list[str]:
        """Mean IoU, how sure that is, and the baseline's."""
        scores, one, percent = result["trained"], result["most_frequent"], "{:.1f}".format
        return [
            f"mean IoU {percent(100 * scores['miou'])} ± {percent(100 * scores['miou_error'])} %",
            f"{one['class']} everywhere {percent(100 * one['miou'])} %",
            f"pixel accuracy {percent(100 * scores['pixel_accuracy'])} %",
        ]


def pixel_scores(counts: Int[Tensor, "n 3 K"], classes: Sequence[str]) -> Scores:
    """All that a segmenter's counts tell, as shares; of the `classes` those that are labelled or predicted.

    `miou_error` is the standard error of `miou` over draws of the images; `iou`, `accuracy` and `labelled`, the share
    of all pixels, are by class; `counts` are those of each image (see `packed`).
    """
    whole = counts.sum(dim=0)
    iou = intersection_over_union(whole)
    labelled = torch.where(iou.isnan(), iou, whole[2].double() / whole[2].sum())

    def named(values: Float[Tensor, " K"]) -> dict[str, float]:
        return {label: value for label, value in zip(classes, values.tolist(), strict=True) if value == value}

    by_class = {"iou": named(iou), "accuracy": named(class_accuracy(whole)), "labelled": named(labelled)}
    return {**means(whole), "miou_error": standard_error(counts, 0), **by_class, "counts": packed(counts)}


def most_frequent(counts: Int[Tensor, "n 3 K"], classes: Sequence[str]) -> Scores:
    """What the class that is most frequent in the masks scores if every pixel is given it."""
    labelled = counts.sum(dim=0)[2]
    place = int(labelled.argmax())
    predicted = torch.zeros_like(labelled)
    predicted[place] = labelled.sum()
    return {"class": classes[place], **means(torch.stack([predicted.minimum(labelled), predicted, labelled]))}


def paired_difference(ours: Int[Tensor, "n 3 K"], theirs: Int[Tensor, "n 3 _"]) -> dict[str, Any]:
    """Mean IoU of one run minus another's on the same images, with a 95 % interval over draws of these images."""
    if len(ours) != len(theirs):
        raise ValueError(f"paired_difference must get the same images twice; got {len(ours)} and {len(theirs)}.")
    difference = means(ours.sum(dim=0))["miou"] - means(theirs.sum(dim=0))["miou"]
    drawn = resampled_miou(ours, 0) - resampled_miou(theirs, 0)  # the same draws
    return {"difference": difference, "interval": drawn.quantile(torch.tensor(ENDS, dtype=drawn.dtype)).tolist()}


def packed(counts: Int[Tensor, "n 3 K"]) -> dict[str, Any]:
    """Counts for a JSON file: their shape, and their numbers as 32-bit integers, compressed."""
    numbers = np.ascontiguousarray(counts.numpy().astype("<i4"))
    return {"shape": list(counts.shape), "zlib": base64.b64encode(zlib.compress(numbers.tobytes(), 9)).decode()}


def unpacked(found: Mapping[str, Any]) -> Int[Tensor, "n 3 K"]:
    """What `packed` gave."""
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(found["zlib"])), dtype="<i4")
    return torch.from_numpy(numbers.astype(np.int64)).view(*found["shape"])
