"""The distance of a prediction from a target: a number a patch, and their mean over the patches that count."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import Positive


@frozen
class Distance:
    """A distance of vectors, computed in float32 at least.

    "l2" is the square of the difference, "l1" its absolute value, "smooth_l1" the square over twice `beta` below `beta`
    and the absolute value less `beta` / 2 above it: means over the channels. "cosine" is 1 - the cosine of the angle,
    "unit_l2" the squared distance of the two at length 1, which is twice that (MILAN's).
    """

    form: Literal["l2", "l1", "smooth_l1", "cosine", "unit_l2"] = "l2"  # Which
    beta: Positive | None = None  # Of smooth_l1, and of it alone

    def __post_init__(self) -> None:
        if (self.beta is not None) != (self.form == "smooth_l1"):
            raise ValueError(
                f"Distance.beta must be given with smooth_l1, and with it alone; got {self.beta} and {self.form}. dBOT "
                f"and data2vec have 2."
            )

    def __call__(
        self,
        prediction: Float[Tensor, "B M K"],
        target: Float[Tensor, "B M K"],
        weight: Float[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean over all patches of the batch together; one whose weight is 0 does not count."""
        prediction, target = at_least_float32(prediction), at_least_float32(target)
        if weight is None and self.form == "l2":
            return F.mse_loss(prediction, target)  # one mean over everything, as MAE has it
        return weighted_mean(self.each(prediction, target), weight)

    def baseline(self, target: Float[Tensor, "B M K"], weight: Float[Tensor, "B M"] | None = None) -> Float[Tensor, ""]:
        """The distance of a prediction that knows nothing of the image: the mean target of the batch for every patch.

        With "l2" it is the variance of the target, about 1 of patches that are standardised one by one.
        """
        target = at_least_float32(target)
        counts = target.new_ones(target.shape[:-1]) if weight is None else weight.to(target.dtype)
        mean = (target * counts[..., None]).flatten(0, -2).sum(dim=0) / counts.sum()
        return self(mean.expand_as(target), target, weight)

    def each(self, prediction: Float[Tensor, "*B K"], target: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
        """The distance of each vector."""
        if self.form == "cosine":
            return 1 - F.cosine_similarity(prediction, target, dim=-1)
        if self.form == "unit_l2":
            return 2 - 2 * F.cosine_similarity(prediction, target, dim=-1)
        if self.form == "l2":
            return (prediction - target).square().mean(dim=-1)
        if self.beta is None:  # l1
            return (prediction - target).abs().mean(dim=-1)
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=self.beta).mean(dim=-1)


def weighted_mean(values: Float[Tensor, "B M"], weight: Float[Tensor, "B M"] | None) -> Float[Tensor, ""]:
    """The mean over a batch, or only over those values whose weight is 1 and not 0."""
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    return (values * weight).sum() / weight.sum()
