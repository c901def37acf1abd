"""A teacher's features of the patches as the target: it sees the whole image.

    loss = mean over masked patches of distance(prediction, normalise(features))

Paper: Baevski et al. 2022, *data2vec*, arXiv:2202.03555, section 3.3; Fang et al. 2023, *EVA*, arXiv:2211.07636; Liu et
al., *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917.
"""

from dataclasses import field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.nn.tokens import normalise_tokens
from pantomim.nn.vit import Encoder
from pantomim.targets.base import Target
from pantomim.targets.distance import Distance
from pantomim.teachers.base import Teacher
from pantomim.teachers.choice import WAYS, TeacherConfig

FeatureNormalisation = Literal["none", "layernorm", "biased", "unbiased", "l2"]


@frozen
class FeatureTargetConfig:
    """Which features, and what is done with each.

    "layernorm" is a layer norm without weights (eps 1e-5), as data2vec has it; "biased" the same with eps 1e-6;
    "unbiased" with the unbiased variance and eps 1e-6, as dBOT; "l2" gives length 1.
    """

    kind: Literal["features"] = "features"
    # Which network, and which of its outputs; there is no default
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    normalise: FeatureNormalisation = "layernorm"  # How each feature is
    # data2vec and dBOT have smooth_l1 with 2, CLIP's features cosine
    distance: Distance = Distance("smooth_l1", beta=2.0)

    def build(self, encoder: Encoder) -> "FeatureTarget":
        """The target for an encoder's patches."""
        if not self.teacher.source:
            raise ValueError(
                f"FeatureTargetConfig.teacher must be given, as there is no default; got none. Name one, or take "
                f"another target, such as pixels. {WAYS}."
            )
        return FeatureTarget(self, self.teacher.build(encoder), encoder.grid)


class FeatureTarget(Target):
    """The features of each patch, by a teacher on the student's grid; `FeatureTargetConfig` explains the settings."""

    def __init__(self, config: FeatureTargetConfig, teacher: Teacher, grid: tuple[int, int]) -> None:
        super().__init__()
        if teacher.grid != grid:
            raise ValueError(
                f"FeatureTarget.teacher must have a feature for each patch of the student's grid {grid}; got "
                f"{teacher.grid}. Give the teacher images of the size that fits."
            )
        self.teacher, self.normalise, self.distance = teacher, config.normalise, config.distance
        self.dim = teacher.width
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The features of every patch, float32 at least; K is the teacher's width."""
        return normalise_features(self.teacher(images).patches, self.normalise)

    def metrics(
        self, prediction: Float[Tensor, "B M K"], target: Tensor, weight: Float[Tensor, "B M"] | None = None
    ) -> dict[str, Tensor]:
        """See `feature_std`."""
        return super().metrics(prediction, target, weight) | {"target_std": feature_std(target)}


@torch.no_grad()
def feature_std(features: Float[Tensor, "B N K"]) -> Float[Tensor, ""]:
    """Std over patches and images, mean over channels, as a share of the features' size: 0 is collapse."""
    return features.flatten(0, 1).std(dim=0).mean() / features.square().mean().sqrt()


def normalise_features(features: Float[Tensor, "*B K"], how: FeatureNormalisation) -> Float[Tensor, "*B K"]:
    """Features as they are predicted, float32 at least; `FeatureTargetConfig` explains the ways."""
    features = at_least_float32(features)
    if how == "layernorm":
        return normalise_tokens(features, unbiased=False, eps=1e-5)
    if how in ("biased", "unbiased"):
        return normalise_tokens(features, unbiased=how == "unbiased", eps=1e-6)
    return F.normalize(features, dim=-1) if how == "l2" else features
