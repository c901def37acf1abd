"""What two networks give for a patch as one target: a weighted sum of distances, a blend, or both side by side.

With features t of the teacher and s of the student's average, each token normalised, the teacher's weight a,
predictions p and a distance d (a mean over features and patches):

    Weighted    loss = a d(p_t, t) + (1 - a) d(p_s, s)        a head for each
    Blend       loss = d(p, a t + (1 - a) s)                  one head
    Concat      loss = d(p, [t; s])                           one head, no weight

Where one of the two never counts (a is 0 or 1 throughout), the first two are d(p, t) or d(p, s).

Paper: Mo 2025, arXiv:2412.17566: both features are the target (abstract), in two terms weighted by one number (a digest
writes so), which is `Weighted`. The other two, and how features are normalised, are readings of ours.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.frozen import KIND, frozen
from pantomim.core.ranges import Share
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureNormalisation
from pantomim.teachers.mixing import NETWORKS, Mixing, Network

FeaturesOf = Mapping[Network, Float[Tensor, "B M _"]]  # normalised, of those that are predicted, the teacher first


@frozen
class _Mixed:
    """What `Weighted` and `Blend` share."""

    kind: str
    teacher_weight: Share | None = None  # In the target; None: `Mixing.teacher_weight`, in mask and target alike
    normalise: FeatureNormalisation = "biased"  # As of `FeatureTargetConfig`; "biased" is a layer norm without weights
    distance: Distance = Distance("l2")  # Between prediction and target

    def networks(self, mixing: Mixing) -> tuple[Network, ...]:
        """Whose features are predicted at some step of the run."""
        return mixing.networks(self.teacher_weight)

    def weight(self, mixing: Mixing, step: int, total: int | None) -> float:
        """The teacher's, at a step of a run of `total`."""
        return mixing.at(step, total, self.teacher_weight)


@frozen
class Weighted(_Mixed):
    """A head for each network, and the weighted sum of both distances."""

    kind: Literal["weighted"] = "weighted"

    def heads(self, widths: Mapping[Network, int]) -> list[int]:
        """Widths of the predictions, one after the other, of features of these widths."""
        return list(widths.values())

    def loss(
        self, prediction: Float[Tensor, "B M K"], features: FeaturesOf, weight: Float[Tensor, ""]
    ) -> dict[str, Tensor]:
        """The loss, and the distance from each of two networks, NaN where it has no weight now."""
        heads = prediction.split([each.shape[-1] for each in features.values()], dim=-1)
        weights = {"teacher": weight, "student": 1 - weight}
        losses = {name: self.distance(head, features[name]) for name, head in zip(features, heads, strict=True)}
        loss = torch.stack([weights[name] * each for name, each in losses.items()]).sum()
        baselines = [weights[name] * self.distance.baseline(each) for name, each in features.items()]
        parts = {f"loss_{name}": each.detach().where(weights[name] > 0, math.nan) for name, each in losses.items()}
        found = {"loss": loss, "baseline": torch.stack(baselines).sum(), "target_teacher_weight": weight}
        return found | (parts if len(parts) > 1 else {})


@frozen
class Blend(_Mixed):
    """One head, whose target is the weighted mean of both features."""

    kind: Literal["blend"] = "blend"

    def heads(self, widths: Mapping[Network, int]) -> list[int]:
        """One, for features of one width."""
        if len(set(widths.values())) > 1:
            raise ValueError(
                f"CMTMAEConfig.target must be weighted or concat for a teacher of another width than the student; got "
                f"blend for {' and '.join(map(str, widths.values()))}. Change it, or choose another teacher."
            )
        return list(widths.values())[:1]

    def loss(
        self, prediction: Float[Tensor, "B M K"], features: FeaturesOf, weight: Float[Tensor, ""]
    ) -> dict[str, Tensor]:
        """The distance from the weighted mean."""
        target, *others = features.values()
        for student in others:
            target = weight * target + (1 - weight) * student
        loss, baseline = self.distance(prediction, target), self.distance.baseline(target)
        return {"loss": loss, "baseline": baseline, "target_teacher_weight": weight}


@frozen
class Concat:
    """One head for both features side by side, which count alike from the first step on, whatever the mask's mixing."""

    kind: Literal["concat"] = "concat"
    normalise: FeatureNormalisation = "biased"  # As of `Weighted`
    distance: Distance = Distance("l2")  # As of `Weighted`

    def networks(self, mixing: Mixing) -> tuple[Network, ...]:
        """Both."""
        return NETWORKS

    def weight(self, mixing: Mixing, step: int, total: int | None) -> float:
        """A half, so that both are asked at every step; the loss does not read it."""
        return 0.5

    def heads(self, widths: Mapping[Network, int]) -> list[int]:
        """One, as wide as both."""
        return [sum(widths.values())]

    def loss(
        self, prediction: Float[Tensor, "B M K"], features: FeaturesOf, weight: Float[Tensor, ""]
    ) -> dict[str, Tensor]:
        """The distance from both."""
        target = torch.cat([*features.values()], dim=-1)
        return {"loss": self.distance(prediction, target), "baseline": self.distance.baseline(target)}


PairConfig = Annotated[Weighted | Blend | Concat, KIND]
