"""Segmentation by a linear classifier on the patches of a frozen encoder: what do they know of where things are?

For logits that are constant in a patch, cross-entropy with the shares of the classes among its pixels is that of its
pixels; a patch counts by the share that has a class. The best of many rates is taken by the mean IoU of patch-wise
predictions; the score is taken at pixels. What the user may give, and how images are cut: `docs/data.md`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.core.scores import count_pixels, intersection_over_union, pixel_accuracy
from pantomim.data.layout import divide
from pantomim.data.masks import open_masked
from pantomim.data.stream import evaluation_batches
from pantomim.data.transforms import Interpolation
from pantomim.evaluate.base import Bench, Evaluation, Memo, Scores
from pantomim.evaluate.features import AnyEncoder, check_finite, pixel_patches
from pantomim.evaluate.linear import Probes, check_rates, train_probes
from pantomim.evaluate.parts import MaskedParts
from pantomim.formats.transform import Transform
from pantomim.nn.tokens import enlarge, take

MAX_VALUES = 2**25  # features and targets held of one contender, as numbers (128 MiB); beyond, patches are drawn
NUM_RESAMPLES = 1000
RESAMPLING, PATCHES = 13, 12  # keep these draws apart from others of the same seed

PatchExtractor = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B N D"]]


@frozen
class Segmentation(Evaluation):
    """A linear classifier on the patches of a frozen encoder, scored by the mean IoU of pixels."""

    protocol: tyro.conf.Suppress[Literal["segmentation"]] = "segmentation"
    masks: str | None = None  # Which masks: a folder beside the images, or an array of the .npz; None: the only one
    ignore: int = 255  # The value in masks of pixels that have no class
    lrs: tuple[Positive, ...] = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)  # Learning rates to choose from
    steps: AtLeastOne = 1000  # At least so many, in whole passes over the patches
    batch_size: AtLeastOne = 1024  # Patches a step

    metric: ClassVar[tuple[str, str]] = ("miou", "mean IoU")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("Segmentation", self.lrs)

    def open(self, memo: Memo) -> MaskedParts:
        """Images with masks."""
        asked = (self.data, self.masks, self.ignore, self.images, self.test_images)
        return memo.once((*asked, self.scale), lambda: MaskedParts(**vars(open_masked(*asked, scale=self.scale))))

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Scores by name: `miou`, its standard error, `pixel_accuracy`, and `iou` by the name of the class."""
        grid = bench.reference.grid
        if grid[0] == 1 < grid[1]:
            raise ValueError(
                f"Evaluation.encoder must have patches in rows and columns; got {self.encoder}, whose {grid[1]} tokens "
                f"have no known places. Choose a plain vision transformer or a convolutional network."
            )
        # As many images at once as have the patches of `chunk` ones at the encoder's own size.
        batch_size = max(1, self.chunk * math.prod(bench.own_grid) // math.prod(grid))
        shown, source = Transform.of(bench.reference), self.open(bench.memo)
        pictures = Pictures(source, shown.image_size, grid, batch_size, bench.device, shown.interpolation)
        extractors = {name: partial(_patches, encoder) for name, encoder in bench.encoders.items()}
        if bench.pixels:
            extractors["pixels"] = partial(pixel_patches, grid=grid)
        return self.score(extractors, pictures)

    def score(self, extractors: Mapping[str, PatchExtractor], pictures: "Pictures") -> dict[str, Scores]:
        """All contenders see the same patches. The test part is never chosen by."""
        learn_from = [part for part in pictures.source.parts if part != "test"]
        tables = {part: patch_table(extractors, pictures, part, seed=self.seed) for part in learn_from}
        learned = {name: self.learn(tables, name, pictures.device) for name in extractors}
        tallies: dict[str, list[Tensor]] = {name: [] for name in extractors}
        labels = [pictures.source.name_of(class_id) for class_id in pictures.source.ids]
        for images, classes in pictures.batches("test"):
            for name, extractor in extractors.items():
                with torch.inference_mode():
                    dense = extractor(images).float()
                    logits = learned[name][0](dense.flatten(0, 1))[0].unflatten(0, (len(images), *pictures.grid))
                    upsampled = enlarge(logits.permute(0, 3, 1, 2), pictures.image_size)
                tallies[name].append(count_pixels(upsampled.argmax(dim=1), classes, len(labels), ignore=-1))
        scores = {}
        for name, (_, lr, validation) in learned.items():
            counts = torch.cat(tallies[name])
            whole = counts.sum(dim=0)
            iou = intersection_over_union(whole)
            scores[name] = {
                "miou": float(iou.nanmean()),
                "miou_error": standard_error(counts, self.seed),
                "pixel_accuracy": float(pixel_accuracy(whole)),
                "iou": {label: float(value) for label, value in zip(labels, iou, strict=True) if not value.isnan()},
                "chosen": {"lr": lr},
                "validation": {"miou": validation},
            }
        return scores

    def learn(self, tables: dict[str, "PatchTable"], name: str, device: torch.device) -> tuple[Probes, float, float]:
        """The classifier of one contender, its rate, and the mean IoU of held-out patches by which that is chosen."""
        features, shares = tables["train"].features[name], tables["train"].shares

        def train(rows: Tensor | slice, lrs: tuple[float, ...]) -> Probes:
            inputs, targets = features[rows].flatten(0, 1).to(device), shares[rows].flatten(0, 1)
            epochs = math.ceil(self.steps / max(1, len(inputs) // self.batch_size))
            length = {"epochs": epochs, "batch_size": self.batch_size, "seed": self.seed}
            return train_probes(inputs, targets, shares.shape[2], lrs, **length)

        if "val" in tables:
            candidates = train(slice(None), self.lrs)
            held_out, truth = tables["val"].features[name], tables["val"].shares
        else:
            rows = divide(len(features), None, seed=self.seed)
            candidates = train(torch.from_numpy(rows["train"]), self.lrs)
            held_out, truth = features[rows["test"]], shares[rows["test"]]
        guesses = candidates(held_out.flatten(0, 1).to(device)).argmax(dim=-1).cpu()
        scores = [_patch_miou(guess, truth.flatten(0, 1)) for guess in guesses]
        best = max(range(len(scores)), key=lambda index: scores[index])  # the smallest rate of the best ones
        final = candidates.one(best) if "val" in tables else train(slice(None), (self.lrs[best],))
        return final, self.lrs[best], scores[best]


@dataclass(frozen=True)
class Pictures:
    """The images and masks of one evaluation, as its encoder sees them."""

    source: MaskedParts
    image_size: tuple[int, int]
    grid: tuple[int, int]
    batch_size: int
    device: torch.device
    interpolation: Interpolation = "bicubic"

    def batches(self, part: str) -> Iterator[tuple[Float[Tensor, "B C H W"], Int[Tensor, "B H W"]]]:
        """Images, and their masks as positions in `source.ids` (-1: no class); on the device."""
        dataset, masks, ids = self.source.parts[part], self.source.masks, torch.tensor(self.source.ids)
        how: Any = {"interpolation": self.interpolation}
        for images, indices in evaluation_batches(dataset, self.image_size, self.batch_size, self.device, **how):
            stored = masks.resized(dataset, indices, self.image_size)
            classes = torch.searchsorted(ids, stored).masked_fill(stored == masks.ignore, -1)
            yield images, classes.to(self.device)


@dataclass(frozen=True)
class PatchTable:
    """Patches of n images, the same number S of each; on the CPU."""

    features: dict[str, Float[Tensor, "n S D"]]  # by contender
    shares: Float[Tensor, "n S K"]  # of the classes in each patch; less than one together where pixels have no class


def patch_table(extractors: Mapping[str, PatchExtractor], pictures: Pictures, part: str, *, seed: int) -> PatchTable:
    """Features of the patches to learn from: all of them, or a draw of each image where they are too many to hold."""
    num_images = sum(len(dataset) for name, dataset in pictures.source.parts.items() if name != "test")
    num_patches, num_classes = math.prod(pictures.grid), len(pictures.source.ids)
    rng = np.random.default_rng(np.random.SeedSequence([seed, PATCHES, list(pictures.source.parts).index(part)]))
    features: dict[str, list[Tensor]] = {name: [] for name in extractors}
    shares = []
    num_kept: int | None = None
    for images, classes in pictures.batches(part):
        with torch.inference_mode():
            dense = {name: check_finite(extractor(images).float(), name) for name, extractor in extractors.items()}
        if num_kept is None:
            width = max(values.shape[2] for values in dense.values()) + num_classes
            num_kept = min(num_patches, max(1, MAX_VALUES // (num_images * width)))
        places = rng.random((len(images), num_patches)).argsort(axis=1)[:, :num_kept]
        kept = torch.from_numpy(np.sort(places, axis=1)).to(images.device)
        for name, values in dense.items():
            features[name].append(take(values, kept).cpu())
        shares.append(take(class_shares(classes, pictures.grid, num_classes), kept).cpu())
    return PatchTable({name: torch.cat(values) for name, values in features.items()}, torch.cat(shares))


def class_shares(classes: Int[Tensor, "B H W"], grid: tuple[int, int], num_classes: int) -> Float[Tensor, "B N K"]:
    """Shares of the classes among the pixels of each patch; pixels of class -1 count in none."""
    batch, *size = classes.shape
    rows, columns = (
        torch.arange(side, device=classes.device) * count // side for side, count in zip(size, grid, strict=True)
    )
    image = torch.arange(batch, device=classes.device)[:, None, None]
    patch = image * math.prod(grid) + rows[:, None] * grid[1] + columns
    places = patch * (num_classes + 1) + classes + 1
    counts = places.flatten().bincount(minlength=batch * math.prod(grid) * (num_classes + 1))
    counts = counts.view(batch, -1, num_classes + 1).float()
    return counts[:, :, 1:] / counts.sum(dim=2, keepdim=True)


def standard_error(counts: Int[Tensor, "n 3 K"], seed: int) -> float:
    """Std of the mean IoU over test parts drawn from this one with replacement."""
    return float(resampled_miou(counts, seed).std())


def resampled_miou(counts: Int[Tensor, "n 3 K"], seed: int) -> Float[Tensor, " draws"]:
    """The mean IoU of test parts drawn from this one with replacement: the same draws for as many images."""
    num_images = len(counts)
    rng = np.random.default_rng(np.random.SeedSequence([seed, RESAMPLING, num_images]))
    times = torch.from_numpy(rng.multinomial(num_images, np.full(num_images, 1 / num_images), NUM_RESAMPLES))
    drawn = (times.double() @ counts.flatten(1).double()).unflatten(1, counts.shape[1:])
    return intersection_over_union(drawn).nanmean(dim=1)


def _patches(encoder: AnyEncoder, images: Tensor) -> Tensor:
    return encoder(images).patches


def _patch_miou(guess: Int[Tensor, " n"], shares: Float[Tensor, "n K"]) -> float:
    """Mean IoU of the pixels if all of a patch are given its class."""
    confusion = shares.new_zeros(shares.shape[1], shares.shape[1], dtype=torch.float64)
    confusion.index_add_(0, guess, shares.double())
    counts = torch.stack([confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)])
    return float(intersection_over_union(counts).nanmean())
