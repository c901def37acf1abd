"""Scores of segmentation: pixels are counted over a whole set of images, and classes are averaged last.

IoU of a class = hits / (predicted + labelled - hits);  the mean is over classes that are labelled or predicted.

Source: mmsegmentation's `IoUMetric`. The mean of each image's IoU is another number.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def count_pixels(
    guesses: Int[Tensor, "B H W"], labels: Int[Tensor, "B H W"], num_classes: int, *, ignore: int = 255
) -> Int[Tensor, "B 3 K"]:
    """Pixels by image and class, on the CPU: rightly predicted, predicted, labelled; without those to `ignore`."""
    image = torch.arange(len(labels), device=labels.device)[:, None, None].expand_as(labels)
    known = labels != ignore
    for name, values in (("guesses", guesses), ("labels", labels)):
        if wrong := values[known & ((values < 0) | (values >= num_classes))].unique().tolist():
            raise ValueError(
                f"count_pixels.{name} must be classes from 0 to {num_classes - 1}, or `ignore`; got {wrong[:10]}. "
                f"Check the masks, the number of classes and the id of pixels that have none."
            )

    def count(values: Tensor, where: Tensor) -> Tensor:
        places = (image * num_classes + values)[where]
        return places.bincount(minlength=len(labels) * num_classes).view(len(labels), num_classes).cpu()

    counts = count(labels, known & (guesses == labels)), count(guesses, known), count(labels, known)
    return torch.stack(counts, dim=1)


def intersection_over_union(counts: Shaped[Tensor, "*any 3 K"]) -> Float[Tensor, "*any K"]:
    """By class: 0 where it is only predicted, NaN where it is neither labelled nor predicted, for `nanmean`."""
    hits, predicted, labelled = counts.double().unbind(dim=-2)
    return hits / (predicted + labelled - hits)


def class_accuracy(counts: Shaped[Tensor, "*any 3 K"]) -> Float[Tensor, "*any K"]:
    """Share of each class's pixels that are rightly predicted: NaN where it is not labelled, for `nanmean`."""
    hits, _, labelled = counts.double().unbind(dim=-2)
    return hits / labelled


def pixel_accuracy(counts: Shaped[Tensor, "*any 3 K"]) -> Float[Tensor, "*any"]:
    """Share of all labelled pixels that are rightly predicted."""
    hits, _, labelled = counts.double().sum(dim=-1).unbind(dim=-1)
    return hits / labelled


def means(counts: Shaped[Tensor, "3 K"]) -> dict[str, float]:
    """`miou`, `mean_accuracy` over the labelled classes, and `pixel_accuracy`."""
    iou, accuracy = intersection_over_union(counts).nanmean(), class_accuracy(counts).nanmean()
    return {"miou": float(iou), "mean_accuracy": float(accuracy), "pixel_accuracy": float(pixel_accuracy(counts))}
