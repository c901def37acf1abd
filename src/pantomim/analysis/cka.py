"""How alike two representations of the same images are, whatever their width and their axes: linear CKA."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

FEWEST = 4  # images, below which the estimate is not defined


def gram(features: Float[Tensor, "n D"]) -> Float[Tensor, "n n"]:
    """Products of the images with each other, centred for accuracy; float64. The diagonal is set to 0."""
    centred = features.double()
    centred = centred - centred.mean(dim=0)
    products = centred @ centred.mT
    return products.fill_diagonal_(0.0)


def hsic(first: Float[Tensor, "n n"], second: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """How much two Gram matrices have in common: unbiased, so 0 on average where they have nothing.

    Args:
        first: From `gram`, its diagonal 0.
        second: Of the same images.

    Raises:
        ValueError: for fewer than four images.

    Paper: Song et al. 2012, Feature Selection via Dependence Maximization, JMLR 13 (HSIC_1).
    """
    count = len(first)
    if count < FEWEST:
        raise ValueError(
            f"hsic.first must be of at least {FEWEST} images; got {count}. Give more images, or larger batches."
        )
    trace = (first * second.mT).sum()
    means = first.sum() * second.sum() / ((count - 1) * (count - 2))
    crossed = 2 * (first.sum(dim=0) @ second.sum(dim=1)) / (count - 2)
    return (trace + means - crossed) / (count * (count - 3))


class LayerCKA:
    """Linear CKA of every layer of some encoders with every other, batch by batch.

    Paper: Kornblith et al. 2019, arXiv:1905.00414 (CKA); Nguyen et al. 2021, arXiv:2010.15327 (unbiased estimates
        of batches, averaged before the ratio is taken).
    Deviation: none known. Batches of one size are meant: each weighs the same.
    """

    def __init__(self) -> None:
        self.sums: Float[Tensor, "L L"] | None = None
        self.num_batches = 0

    def see(self, layers: list[Float[Tensor, "n _"]]) -> None:
        """The same images in all layers of all encoders, each flattened to one row an image; widths may differ."""
        grams = torch.stack([gram(layer).cpu() for layer in layers])
        found = torch.tensor([[hsic(first, second) for second in grams] for first in grams], dtype=torch.float64)
        self.sums = found if self.sums is None else self.sums + found
        self.num_batches += 1

    def matrix(self) -> Float[Tensor, "L L"]:
        """1 where two layers say the same up to rotation and scale, about 0 where they have nothing in common.

        NaN for a layer that says the same of every image.

        Raises:
            ValueError: if no batch has been seen.
        """
        if self.sums is None:
            raise ValueError("LayerCKA.see must be called with a batch first; got none. Give images.")
        own = self.sums.diagonal()
        own = torch.where(own > 0, own, math.nan)
        return self.sums / (own[:, None] * own).sqrt()
