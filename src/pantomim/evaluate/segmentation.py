"""Segmentation by a linear classifier on the patches of a frozen encoder: what do they know of where things are?

Each patch's features are standardised, and a linear softmax classifier learns the shares of the classes among the
pixels of the patch: for logits that are constant in a patch, this is the cross-entropy of its pixels. Pixels without a
class are left out, and a patch counts by the share of those that have one. Many learning rates are trained at once, as
in `linear`; the best by the mean IoU of patch-wise predictions on the validation part is taken.

The score is taken at pixels, at the size that the encoder sees: logits are upsampled bilinearly, and the pixels of all
test images are counted together. The mean IoU is over the classes that occur in the masks of the test part.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.data.layout import divide
from pantomim.evaluate.base import Bench, Evaluation, Memo, Scores
from pantomim.evaluate.features import AnyEncoder
from pantomim.evaluate.linear import Probes, check_rates, train_probes
from pantomim.evaluate.patches import (
    MaskedParts,
    PatchExtractor,
    PatchTable,
    Pictures,
    open_masked_parts,
    patch_table,
    pixel_patches,
)

NUM_RESAMPLES = 1000
_PURPOSE = 13  # keeps these draws apart from others of the same seed


@frozen
class Segmentation(Evaluation):
    """A linear classifier on the patches of a frozen encoder, scored by the mean IoU of pixels.

    Args:
        masks: Which masks: a folder beside the images, or an array of the .npz; None: the only one.
        ignore: The value in masks of pixels that have no class.
        lrs: Learning rates to choose from.
        steps: At least so many, in whole passes over the patches.
        batch_size: Patches a step.
    """

    protocol: tyro.conf.Suppress[Literal["segmentation"]] = "segmentation"
    masks: str | None = None
    ignore: int = 255
    lrs: tuple[Positive, ...] = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    steps: AtLeastOne = 1000
    batch_size: AtLeastOne = 1024

    metric: ClassVar[tuple[str, str]] = ("miou", "mean IoU")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("Segmentation", self.lrs)

    def open(self, memo: Memo) -> MaskedParts:
        """Images with masks."""
        asked = (self.data, self.masks, self.ignore, self.images, self.test_images)
        return memo.once(asked, lambda: open_masked_parts(*asked))

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Scores by name: `miou`, its standard error, `pixel_accuracy`, and `iou` by the name of the class.

        Raises:
            ValueError: if an encoder does not tell where its patches lie.
        """
        grid = bench.reference.grid
        if grid[0] == 1 < grid[1]:
            raise ValueError(
                f"Evaluation.encoder must have patches in rows and columns; got {self.encoder}, whose {grid[1]} tokens "
                f"have no known places. Choose a plain vision transformer or a convolutional network."
            )
        # As many images at once as have the patches of `chunk` ones at the encoder's own size.
        batch_size = max(1, self.chunk * math.prod(bench.own_grid) // math.prod(grid))
        pictures = Pictures(self.open(bench.memo), bench.reference.image_size, grid, batch_size, bench.device)
        extractors: dict[str, PatchExtractor] = {
            name: partial(_patches, encoder) for name, encoder in bench.encoders.items()
        }
        if bench.pixels:
            extractors["pixels"] = partial(pixel_patches, grid=grid)
        return self.score(extractors, pictures)

    def score(self, extractors: dict[str, PatchExtractor], pictures: Pictures) -> dict[str, Scores]:
        """All contenders see the same patches. The test part is never chosen by."""
        tables = {
            part: patch_table(extractors, pictures, part, seed=self.seed)
            for part in pictures.source.parts
            if part != "test"
        }
        probes, chosen, validation = {}, {}, {}
        for name in extractors:
            probes[name], chosen[name], validation[name] = self.learn(tables, name, pictures.device)
        names = [pictures.source.name_of(class_id) for class_id in pictures.source.ids]
        scores = {}
        for name, tally in _score(extractors, probes, pictures).items():
            iou = tally.iou
            scores[name] = {
                "miou": float(iou.nanmean()),
                "miou_error": tally.standard_error(self.seed),
                "pixel_accuracy": int(tally.hits.sum()) / int(tally.true.sum()),
                "iou": {label: float(value) for label, value in zip(names, iou, strict=True) if not value.isnan()},
                "chosen": {"lr": chosen[name]},
                "validation": {"miou": validation[name]},
            }
        return scores

    def learn(self, tables: dict[str, PatchTable], name: str, device: torch.device) -> tuple[Probes, float, float]:
        """The classifier of one contender, its learning rate, and the mean IoU by which that was chosen."""
        features, shares = tables["train"].features[name], tables["train"].shares

        def train(rows: Tensor | slice, lrs: tuple[float, ...]) -> Probes:
            inputs, targets = features[rows].flatten(0, 1), shares[rows].flatten(0, 1)
            epochs = math.ceil(self.steps / max(1, len(inputs) // self.batch_size))
            return train_probes(
                inputs.to(device),
                targets,
                shares.shape[2],
                lrs,
                epochs=epochs,
                batch_size=self.batch_size,
                seed=self.seed,
            )

        if "val" in tables:
            candidates = train(slice(None), self.lrs)
            held_out, truth = tables["val"].features[name], tables["val"].shares
        else:
            rows = {
                part: torch.from_numpy(found) for part, found in divide(len(features), None, seed=self.seed).items()
            }
            candidates = train(rows["train"], self.lrs)
            held_out, truth = features[rows["test"]], shares[rows["test"]]
        guesses = candidates(held_out.flatten(0, 1).to(device)).argmax(dim=-1).cpu()
        scores = [_patch_miou(guess, truth.flatten(0, 1)) for guess in guesses]
        best = max(range(len(scores)), key=lambda index: scores[index])  # the smallest rate of the best ones
        final = candidates.one(best) if "val" in tables else train(slice(None), (self.lrs[best],))
        return final, self.lrs[best], scores[best]


@dataclass(frozen=True)
class Tally:
    """Pixels by image and class: rightly predicted, predicted, and of that class in the mask."""

    hits: Int[Tensor, "n K"]
    guessed: Int[Tensor, "n K"]
    true: Int[Tensor, "n K"]

    @property
    def iou(self) -> Float[Tensor, " K"]:
        """Intersection over union of each class, over all images; NaN for classes that no mask has."""
        return intersection_over_union(*(counts.sum(dim=0) for counts in (self.hits, self.guessed, self.true)))

    def standard_error(self, seed: int) -> float:
        """Std of the mean IoU over test parts drawn from this one with replacement."""
        num_images = len(self.hits)
        rng = np.random.default_rng(np.random.SeedSequence([seed, _PURPOSE, num_images]))
        drawn = rng.multinomial(num_images, np.full(num_images, 1 / num_images), NUM_RESAMPLES)
        times = torch.from_numpy(drawn).double()
        iou = intersection_over_union(*(times @ counts.double() for counts in (self.hits, self.guessed, self.true)))
        return float(iou.nanmean(dim=1).std())


def intersection_over_union(
    hits: Float[Tensor, "*any K"], guessed: Float[Tensor, "*any K"], true: Float[Tensor, "*any K"]
) -> Float[Tensor, "*any K"]:
    """By class, from its pixels rightly predicted, predicted, and in the mask; NaN where the mask has none."""
    union = guessed + true - hits
    return torch.where(true > 0, hits.double() / union.clamp(min=1e-12), torch.nan)


def tally(guesses: Int[Tensor, "B H W"], classes: Int[Tensor, "B H W"], num_classes: int) -> Tally:
    """Count the pixels of a batch; those of class -1 are left out."""
    image = torch.arange(len(classes), device=classes.device)[:, None, None].expand_as(classes)
    counted = classes >= 0

    def count(values: Tensor, where: Tensor) -> Tensor:
        places = (image * num_classes + values)[where]
        return places.bincount(minlength=len(classes) * num_classes).view(len(classes), num_classes).cpu()

    return Tally(count(classes, counted & (guesses == classes)), count(guesses, counted), count(classes, counted))


def _patches(encoder: AnyEncoder, images: Tensor) -> Tensor:
    return encoder(images).patches


def _patch_miou(guess: Int[Tensor, " n"], shares: Float[Tensor, "n K"]) -> float:
    """Mean IoU of the pixels if all of a patch are given its class."""
    confusion = shares.new_zeros(shares.shape[1], shares.shape[1], dtype=torch.float64)
    confusion.index_add_(0, guess, shares.double())
    return float(intersection_over_union(confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)).nanmean())


def _score(extractors: dict[str, PatchExtractor], probes: dict[str, Probes], pictures: Pictures) -> dict[str, Tally]:
    tallies: dict[str, list[Tally]] = {name: [] for name in extractors}
    for images, classes in pictures.batches("test"):
        for name, extractor in extractors.items():
            with torch.inference_mode():
                dense = extractor(images).float()
                logits = probes[name](dense.flatten(0, 1))[0].unflatten(0, (len(images), *pictures.grid))
                upsampled = F.interpolate(logits.permute(0, 3, 1, 2), pictures.image_size, mode="bilinear")
            tallies[name].append(tally(upsampled.argmax(dim=1), classes, pictures.num_classes))
    return {
        name: Tally(*(torch.cat([getattr(part, field) for part in parts]) for field in ("hits", "guessed", "true")))
        for name, parts in tallies.items()
    }
