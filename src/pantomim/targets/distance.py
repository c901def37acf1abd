"""How far a prediction is from a target: one number a patch, and their mean over the patches that count."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen


@frozen
class Distance:
    """A distance of vectors, computed in float32 at least.

    Args:
        form: "l2" the square of the difference, "l1" its absolute value, "smooth_l1" the square over twice `beta` below
            `beta` and `beta` / 2 less than the absolute value above it: means over the numbers of a vector; "cosine":
            1 - the cosine of the angle; "unit_l2" the squared distance of the two at length 1, which is twice that
            (MILAN's).
        beta: Of smooth_l1, and of it alone.

    Raises:
        ValueError: if smooth_l1 has no beta, or another form has one.
    """

    form: Literal["l2", "l1", "smooth_l1", "cosine", "unit_l2"] = "l2"
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.form == "smooth_l1" and not 0 < (self.beta or 0.0) < math.inf:
            raise ValueError(f"Distance.beta must be above 0 for smooth_l1; got {self.beta}. dBOT and data2vec have 2.")
        if self.form != "smooth_l1" and self.beta is not None:
            raise ValueError(
                f"Distance.beta must be left out for {self.form}, as smooth_l1 alone has one; got {self.beta}."
            )

    def __call__(
        self,
        prediction: Float[Tensor, "B M K"],
        target: Float[Tensor, "B M K"],
        weight: Float[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean over all patches of the batch together; one whose weight is 0 does not count.

        Args:
            prediction: Of any precision.
            target: What it should be.
            weight: 0 for padding, else 1; None: nothing is padded.
        """
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        target = target.to(torch.promote_types(target.dtype, torch.float32))
        if weight is None and self.form == "l2":
            return F.mse_loss(prediction, target)  # one mean over everything, as MAE has it
        each = self.each(prediction, target)
        if weight is None:
            return each.mean()
        return (each * weight).sum() / weight.sum()

    def each(self, prediction: Float[Tensor, "*B K"], target: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
        """The distance of each vector."""
        if self.form == "cosine":
            return 1 - F.cosine_similarity(prediction, target, dim=-1)
        if self.form == "unit_l2":
            return 2 - 2 * F.cosine_similarity(prediction, target, dim=-1)
        if self.form == "l2":
            return (prediction - target).square().mean(dim=-1)
        if self.form == "l1":
            return (prediction - target).abs().mean(dim=-1)
        assert self.beta is not None
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=self.beta).mean(dim=-1)
