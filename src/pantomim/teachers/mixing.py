"""Two networks that guide together: how much the teacher counts at each step, and its attention as scores.

weight a(step)     1 in the first `warmup_share` of the steps, then constant, or on its way from `start`
scores             attention to the power of 1/temperature, over its sum over the patches
mixed scores       a * scores of the teacher + (1 - a) * scores of the student's moving average
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import Positive, Share
from pantomim.core.schedule import half_cosine
from pantomim.teachers.base import Query

Network = Literal["teacher", "student"]
NETWORKS: tuple[Network, ...] = ("teacher", "student")


@frozen
class Mixing:
    """The teacher's weight over a run: 1 is the teacher alone, 0 the student's moving average alone.

    Paper: that there is such a weight is stated; not its value, nor whether mask and target share it, nor a schedule.
        A digest says "two stages": phases of training, or the two halves of a step, is not stated.
    """

    teacher_weight: Share = 0.5  # At the end of the schedule; in the mask, and in the target unless that has its own
    warmup_share: Share = 0.1  # Share of the run's steps in which the teacher is alone at first
    # After that: constant, or from `start` to `teacher_weight` in the last step
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    start: Share | None = None  # Where a schedule begins; None for a constant weight

    def __post_init__(self) -> None:
        if (self.start is None) != (self.schedule == "constant"):
            raise ValueError(
                f"Mixing.start goes with a schedule that is linear or cosine; got {self.start} and {self.schedule}. "
                f"Give both, or none."
            )

    def at(self, step: int, total: int | None, last: float | None = None) -> float:
        """The weight at a step (from 0) of a run of `total`, without which a weight that changes is a ValueError.

        `last`: where the weight ends, in place of `teacher_weight`.
        """
        last = self.teacher_weight if last is None else last
        if self.start is None and (self.warmup_share == 0 or last == 1):
            return last
        if not total:
            raise ValueError(
                f"Mixing.at must be given the length of the run, of which stages and schedules are shares; got {total}."
            )
        warmup = math.ceil(self.warmup_share * total - 1e-9)  # 0.1 of 30 steps is 3, though 0.1 * 30 > 3 in floats
        if step < warmup:
            return 1.0
        if self.start is None:
            return last
        share = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)
        if self.schedule == "cosine":
            return half_cosine(self.start, last, share)
        return self.start + (last - self.start) * share

    def in_words(self, last: float | None = None) -> str:
        """The weight and how it changes; `last` as in `at`."""
        words = [f"{self.teacher_weight if last is None else last:g}"]
        if self.start is not None:
            words.append(f"{self.schedule} from {self.start:g}")
        if self.warmup_share > 0 and "student" in self.networks(last):
            words.append(f"1 in the first {100 * self.warmup_share:g} % of the steps")
        return ", ".join(words)

    def networks(self, last: float | None = None) -> tuple[Network, ...]:
        """Those that count at some step of the run; `last` as in `at`."""
        reached = [self.teacher_weight if last is None else last]
        reached += [1.0] * (self.warmup_share > 0) + ([] if self.start is None else [self.start])
        counts = {"teacher": max(reached) > 0, "student": min(reached) < 1}
        return tuple(network for network in NETWORKS if counts[network])


@frozen
class Scores:
    """From a network's attention to a score of each patch.

    Paper: none of this is stated. MILAN and AttMask have the class token's attention in the last block, the mean over
        its heads.
    """

    teacher_query: Query = "class"  # Whose attention: the class token's, or the mean over all patches'
    # The same of the student's average: a class token that no loss reads may attend evenly
    student_query: Query = "class"
    renormalise: bool = True  # Divide by the sum over the patches, as networks differ in what stays on the class token
    temperature: Positive = 1.0  # Attention is raised to the power of one over it first; below 1 it is more peaked

    def __call__(self, attention: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """Scores, float32 at least."""
        scores = at_least_float32(attention)
        if self.temperature != 1:
            scores = (scores / scores.amax(dim=1, keepdim=True)).pow(1 / self.temperature)  # largest 1: none overflows
        return scores / scores.sum(dim=1, keepdim=True) if self.renormalise else scores

    def query(self, network: Network) -> Query:
        """Whose attention a network is asked for."""
        return self.teacher_query if network == "teacher" else self.student_query

    def maps(
        self, attention: Mapping[Network, Float[Tensor, "B N"] | None], weight: float
    ) -> dict[str, Float[Tensor, "B N"]]:
        """Scores by each network that was asked for attention, and mixed ("mask"), the teacher's with `weight`."""
        maps: dict[Any, Tensor] = {network: self(each) for network, each in attention.items() if each is not None}
        mixed = [weight_of(network, weight) * scores for network, scores in maps.items()]
        return {**maps, "mask": torch.stack(mixed).sum(dim=0)} if mixed else {}


def weight_of(network: Network, teacher_weight: float) -> float:
    """A network's own weight."""
    return teacher_weight if network == "teacher" else 1 - teacher_weight


def evenness(scores: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Entropy of the scores as a share of its largest value, mean over the images: 1, where all patches score alike."""
    share = scores / scores.sum(dim=1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(dim=1).mean() / math.log(scores.shape[1])


def spread(features: Float[Tensor, "B N K"]) -> Float[Tensor, ""]:
    """Std of a patch's features from image to image, over their size: towards 0 the features ignore the image."""
    features = at_least_float32(features)
    if len(features) < 2:
        return features.new_tensor(math.nan)  # a single image cannot tell
    return features.std(dim=0).mean() / features.square().mean().sqrt()
