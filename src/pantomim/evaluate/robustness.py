"""A fine-tuned classifier on images unlike those of its training: corrupted ones, and ImageNet's shifted test sets.

It is tested as it is. Corruptions of our own (noise, blur, contrast, JPEG) are made on any test split while it is read;
they are not ImageNet-C, and their numbers compare only with each other.

Papers: Hendrycks & Dietterich 2019, arXiv:1903.12261 (ImageNet-C); Hendrycks et al., arXiv:1907.07174 (-A) and
    arXiv:2006.16241 (-R); Wang et al. 2019, arXiv:1905.13549 (-Sketch).
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.data.colours import blurred
from pantomim.data.dataset import Dataset
from pantomim.data.decoding import open_picture
from pantomim.data.sources import browse, open_source
from pantomim.evaluate.base import Scores
from pantomim.evaluate.classification import ClassifierEvaluation, TrainedClassifier
from pantomim.evaluate.parts import top1

SEVERITIES = 5
# Of AlexNet, by the fifteen types of ImageNet-C in their order. Source: google-research/augmix, imagenet.py.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
    "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
    "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
# Ours. Strengths are those that ImageNet-C's code has for 224 pixels; the blur's are in pixels of such an image.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # std
    "blur": (1, 2, 3, 4, 6),  # sigma
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # share of the distance from the mean that is left
    "jpeg": (25, 18, 15, 10, 7),  # quality
}


@frozen
class Robustness(ClassifierEvaluation):
    """A fine-tuned classifier on corrupted and on shifted images: by how much does its error grow?"""

    # Its folder, with CORRUPTION/SEVERITY/SYNSET/*.JPEG as distributed. Images of the classifier's own size are taken
    # as they are
    imagenet_c: str | None = None
    imagenet_a: str | None = None  # Its folder, with SYNSET/*.jpg. The answer is the likeliest of the set's 200 classes
    imagenet_r: str | None = None  # The same of ImageNet-R
    imagenet_sketch: str | None = None  # Its folder, with SYNSET/*.JPEG
    seed: int = 0  # Of the noise
    protocol: tyro.conf.Suppress[Literal["robustness"]] = "robustness"

    stem = "robustness"

    def score(self, trained: TrainedClassifier, dataset: Dataset, theirs: Scores | None) -> dict[str, Any]:
        """Clean top-1, corruptions of our own, and the sets that are given."""
        scores, shifted = self._own(trained, dataset), dict[str, float]()
        if self.imagenet_c is not None:
            found = scores["imagenet_c"] = self._imagenet_c(trained, self.imagenet_c)
            shifted |= {} if found["mce"] is None else {"ImageNet-C mCE": found["mce"]}
        for kind in ("imagenet_a", "imagenet_r", "imagenet_sketch"):
            if (spec := getattr(self, kind)) is not None:
                scores[kind] = self._shifted(trained, kind, spec)
                shifted[f"ImageNet-{kind[9:].capitalize()} top-1"] = scores[kind]["top1"]
        return {"trained": {**scores, "shifted": shifted}}

    def words(self, result: Mapping[str, Any]) -> list[str]:
        """Clean top-1 and what the corruptions make of it."""
        scores = result["trained"]
        words = [f"clean top-1 {100 * scores['top1']:.1f} %"]
        if (increase := scores["relative_error_increase"]) is not None:
            words += [f"relative error increase by corruptions of our own {100 * increase:+.0f} %"]
        words += [f"{name} {100 * share:.1f} %" for name, share in scores["shifted"].items()]
        if missing := scores.get("imagenet_c", {}).get("missing"):
            words += [f"no ImageNet-C mCE, as there is no {', '.join(missing)}"]
        return words

    def _own(self, trained: TrainedClassifier, dataset: Dataset) -> dict[str, Any]:
        if dataset.facts.dtype not in ("uint8", "uint16"):
            raise ValueError(
                f"Robustness.data must have values with a known range, 8-bit or unsigned 16-bit; got "
                f"{dataset.facts.dtype} in {self.data}: how strong a corruption is cannot be told. Convert them."
            )
        labels, rng = trained.positions(dataset), np.random.default_rng(np.random.SeedSequence([self.seed, 41]))
        wrong, count = dict.fromkeys([("clean", 0), *itertools.product(STRENGTHS, range(SEVERITIES))], 0), 0
        for images, indices in trained.crops(dataset, self.chunk):
            noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images.device)
            count += len(indices)
            for kind, severity in wrong:
                made = images if kind == "clean" else corrupted(images, kind, severity, noise)
                with torch.inference_mode():
                    guesses = trained.module(made).argmax(dim=1).cpu()
                wrong[kind, severity] += int((guesses != labels[indices]).sum())
        errors = {k: [wrong[k, severity] / count for severity in range(SEVERITIES)] for k in STRENGTHS}
        clean = wrong["clean", 0] / count
        increases = {kind: float(np.mean(of_kind)) / clean - 1 if clean else None for kind, of_kind in errors.items()}
        return {
            "top1": 1 - clean,
            "relative_error_increase": float(np.mean(list(increases.values()))) if clean else None,
            "own_corruptions": {k: {"relative_error_increase": increases[k], "errors": errors[k]} for k in errors},
        }

    def _imagenet_c(self, trained: TrainedClassifier, spec: str) -> dict[str, Any]:
        there = [name for name in ALEXNET_ERRORS if (browse(spec) / name).is_dir()]
        if not there:
            raise ValueError(
                f"Robustness.imagenet_c must hold folders such as gaussian_noise/1; got none in {spec}. Give the "
                f"folder into which the archives were unpacked."
            )
        errors: dict[str, list[float]] = {name: [] for name in there}
        num_broken = 0
        for name, severity in itertools.product(there, range(1, SEVERITIES + 1)):
            dataset = open_source(f"{spec}/{name}/{severity}", "all", self.scale).labelled()
            logits, labels, _ = trained.labelled(dataset, self.chunk, 1.0)
            errors[name].append(1 - top1(logits.argmax(dim=1), labels))
            num_broken += len(dataset.broken)
        missing, relative = [name for name in ALEXNET_ERRORS if name not in there], corruption_errors(errors)
        mce = None if missing else float(np.mean(list(relative.values())))
        found = {"mce": mce, "missing": missing, "corruption_error": relative, "errors": errors}
        return found | {"num_broken": num_broken}

    def _shifted(self, trained: TrainedClassifier, name: str, spec: str) -> dict[str, Any]:
        dataset = open_source(spec, "all", self.scale).labelled()
        subset = torch.arange(len(trained.classes)) if name == "imagenet_sketch" else _subset(trained, name)
        logits, labels, _ = trained.labelled(dataset, self.chunk)
        if (outside := labels[~torch.isin(labels, subset)]).numel():
            raise ValueError(
                f"Robustness.{name} must have the classes of that set alone; got {trained.classes[outside[0]]} in "
                f"{spec}. Name the folder of the set."
            )
        share = subset_top1(logits, subset, torch.searchsorted(subset, labels))
        return {"top1": share, "num_test": len(labels), "num_broken": len(dataset.broken)}


def corruption_errors(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each type of ImageNet-C the mean error over severities, over AlexNet's; their mean is the mCE."""
    return {name: float(np.mean(found)) / ALEXNET_ERRORS[name] for name, found in errors.items()}


def subset_top1(logits: Float[Tensor, "n classes"], subset: Int[Tensor, " K"], labels: Int[Tensor, " n"]) -> float:
    """Share of images whose largest logit among those of the subset is right; labels are positions in it."""
    return top1(logits[:, subset].argmax(dim=1), labels)


def corrupted(
    images: Float[Tensor, "B C H W"], kind: str, severity: int, noise: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """Images (values in [0, 1]) with a corruption of ours, `severity` from 0 to 4; the noise is standard normal."""
    strength = STRENGTHS[kind][severity]
    if kind == "noise":
        made = images + strength * noise
    elif kind == "blur":
        made = blurred(images, images.new_full((len(images),), strength * min(images.shape[2:]) / 224))
    elif kind == "contrast":
        mean = images.mean(dim=(2, 3), keepdim=True)
        made = mean + strength * (images - mean)
    else:
        made = _jpeg(images, int(strength))
    return made.clamp(0, 1)


def _jpeg(images: Tensor, quality: int) -> Tensor:
    """Colour images as such, any other number of channels each for itself."""
    pictures = (images * 255).round().byte().cpu()
    together = pictures.shape[1] == 3
    flat = pictures.permute(0, 2, 3, 1) if together else pictures.flatten(0, 1)
    made = []
    for picture in flat.numpy():
        Image.fromarray(picture).save(buffer := io.BytesIO(), "JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(open_picture(buffer))))
    decoded = torch.stack(made)
    decoded = decoded.permute(0, 3, 1, 2) if together else decoded.view(pictures.shape)
    return decoded.to(images) / 255


def _subset(trained: TrainedClassifier, name: str) -> Int[Tensor, " K"]:
    """Where the 200 classes of ImageNet-A or -R are among a classifier's, in their rising order."""
    synsets = (files("timm.data") / "_info" / f"{name}_synsets.txt").read_text().split()
    places = {synset: place for place, synset in enumerate(trained.classes)}
    if missing := [synset for synset in synsets if synset not in places]:
        raise ValueError(
            f"Classifier.classes must be ImageNet's, named by their synsets, for {name}; got none for {missing[0]} and "
            f"{len(missing) - 1} others. Fine-tune on ImageNet-1K."
        )
    return torch.tensor(sorted(places[synset] for synset in synsets))
