"""How alike two representations of the same images are, whatever their width and their axes: linear CKA."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.analysis.block_facts import BlockFacts
from pantomim.analysis.blocks import block_features
from pantomim.analysis.inspection import Arrays, Images, LayerAnalysis
from pantomim.core.frozen import frozen
from pantomim.evaluate.features import AnyEncoder

FEWEST = 4  # images, below which the estimate is not defined
BATCH = 64  # images in one estimate


@frozen
class CKA(LayerAnalysis):
    """Which layers are alike: linear CKA of all layers of all encoders, on whole batches of 64 images."""

    name: ClassVar[str] = "cka"
    title: ClassVar[str] = "Which layers are alike"
    chart: ClassVar[str] = "map"
    explained: ClassVar[str] = (
        "Linear CKA of the patch tokens after each block: 1 (yellow) where two layers tell images apart in the same "
        "way up to rotation and scale, about 0 (violet) where they have nothing in common. Mean over whole batches of "
        "{batch_size}, {images}"
    )

    def measure(self, encoders: Sequence[AnyEncoder], images: Images) -> tuple[Arrays, dict[str, Any]]:
        """The patches of an image in a row, as in Raghu et al. 2021, arXiv:2108.08810; prefix tokens are left out."""
        size = min(BATCH, len(images.indices))
        mixed = np.random.default_rng(self.seed).permutation(images.indices)  # each batch has images of all classes
        used = mixed[: len(mixed) // size * size]  # in whole batches: each weighs the same

        def layers(chunk: np.ndarray) -> list[Tensor]:
            shown = replace(images, indices=chunk)
            seen = ((encoder, torch.cat(list(shown.batches(encoder)))) for encoder in encoders)
            return [block.patches.flatten(1) for pair in seen for block in block_features(*pair)]

        found = {"cka": layer_cka(map(layers, used.reshape(-1, size))).numpy()}
        seen = replace(images, indices=used).healthy
        return found, {"images": seen, "batch_size": size, "left_out": images.healthy - seen}

    @classmethod
    def caption(cls, about: dict[str, Any], images: str) -> str:
        """Also how many images fill no batch."""
        rest = about.get("left_out", 0)
        return super().caption(about, images) + (f" {rest:,} more fill no batch and are left out." if rest else "")

    @staticmethod
    def panels(found: BlockFacts) -> list[tuple[str, tuple[Any, ...]]]:
        """A matrix for each two encoders and each one with itself, and what its rows and columns are."""
        numbers = range(len(found.names))
        pairs = [*itertools.combinations(numbers, 2), *((number, number) for number in numbers)]
        named = [(found.names[a], found.names[b], found.between(a, b)) for a, b in pairs]
        return [(a if a == b else f"{a} and {b}", (values, a, b)) for a, b, values in named]

    @staticmethod
    def finding(found: BlockFacts) -> str:
        """How alike the last layers of each two encoders are; of one alone, its first layer and its last."""
        pairs = list(itertools.combinations(range(len(found.names)), 2))
        if not pairs:
            return f"The first and the last block of {found.names[0]} have a CKA of {found.between(0, 0)[0, -1]:.2f}."
        return " ".join(
            f"The last blocks of {found.names[a]} and {found.names[b]} have a CKA of {found.between(a, b)[-1, -1]:.2f}."
            for a, b in pairs
        )

    @staticmethod
    def table(found: BlockFacts) -> tuple[list[str], list[list[str]]]:
        """The most alike layer of the second encoder; of one alone its other layers."""
        first, second = 0, min(1, len(found.names) - 1)
        values = found.between(first, second).copy()
        if first == second:
            np.fill_diagonal(values, -np.inf)
        best = np.nan_to_num(values, nan=-np.inf).argmax(axis=1)
        rows = [
            [f"{found.names[first]}, {layer + 1}", f"{found.names[second]}, {other + 1}", f"{values[layer, other]:.3f}"]
            for layer, other in enumerate(best)
        ]
        return ["block", "most alike", "CKA"], rows


def gram(features: Float[Tensor, "n D"]) -> Float[Tensor, "n n"]:
    """Products of the images with each other, centred for accuracy; float64. The diagonal is set to 0."""
    centred = features.double()
    centred = centred - centred.mean(dim=0)
    products = centred @ centred.mT
    return products.fill_diagonal_(0.0)


def hsic(first: Float[Tensor, "n n"], second: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """What two matrices of `gram` have in common, unbiased; HSIC_1 of Song et al. 2012, JMLR 13."""
    count = len(first)
    if count < FEWEST:
        raise ValueError(f"CKA.count must be at least {FEWEST}; got {count} images. Give more.")
    trace = (first * second.mT).sum()
    means = first.sum() * second.sum() / ((count - 1) * (count - 2))
    crossed = 2 * (first.sum(dim=0) @ second.sum(dim=1)) / (count - 2)
    return (trace + means - crossed) / (count * (count - 3))


def layer_cka(batches: Iterable[Sequence[Float[Tensor, "n _"]]]) -> Float[Tensor, "L L"]:
    """Linear CKA of every layer of some encoders with every other, on batches of one size.

    1 where two layers agree up to rotation and scale, about 0 where they have nothing in common, NaN for a layer whose
    output is the same for every image. A batch has all layers of the same images, each flattened to one row an image.

    Paper: Kornblith et al. 2019, arXiv:1905.00414 (CKA); Nguyen et al. 2021, arXiv:2010.15327 (unbiased estimates
        of batches, averaged before the ratio is formed).
    """
    sums: Any = 0
    for layers in batches:
        grams = [gram(layer) for layer in layers]
        sums += torch.tensor([[hsic(first, second) for second in grams] for first in grams], dtype=torch.float64)
    own = sums.diagonal()
    own = torch.where(own > 0, own, math.nan)
    return sums / (own[:, None] * own).sqrt()
