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


def normalise_features(features: Float[Tensor, "*B K"], how: FeatureNormalisation) -> Float[Tensor, "*B K"]:
    """Features as they are predicted, float32 at least; see `FeatureTarget` for the ways."""
    features = at_least_float32(features)
    if how == "layernorm":
        return normalise_tokens(features, unbiased=False, eps=1e-5)
    if how in ("biased", "unbiased"):
        return normalise_tokens(features, unbiased=how == "unbiased", eps=1e-6)
    return F.normalize(features, dim=-1) if how == "l2" else features


class FeatureTarget(Target):
    """A teacher's features of the patches.

    Args:
        teacher: On the student's grid.
        normalise: What is done with each feature: "none"; "layernorm": a layer norm without weights (eps 1e-5), as
            data2vec; "biased": the same with eps 1e-6; "unbiased": with the unbiased variance and eps 1e-6, as dBOT;
            "l2": length 1.
        distance: Of a prediction.

    Raises:
        ValueError: if the teacher's grid is another one than the student's.
    """

    def __init__(
        self,
        teacher: Teacher,
        grid: tuple[int, int],
        normalise: FeatureNormalisation = "layernorm",
        distance: Distance | None = None,
    ) -> None:
        super().__init__()
        if teacher.grid != grid:
            raise ValueError(
                f"FeatureTarget.teacher must have a feature for each patch of the student's grid {grid}; got "
                f"{teacher.grid}. Give the teacher images of the size that fits."
            )
        self.teacher, self.normalise = teacher, normalise
        self.distance = distance or Distance("smooth_l1", beta=2.0)
        self.dim = teacher.width
        self.requires_grad_(False)
        self.train()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The features of every patch, float32 at least; K is the teacher's width."""
        return normalise_features(self.teacher(images).patches, self.normalise)

    def metrics(
        self,
        prediction: Float[Tensor, "B M K"],
        target: Float[Tensor, "B M K"],
        weight: Float[Tensor, "B M"] | None = None,
    ) -> dict[str, Tensor]:
        """The std of a channel of the target over the patches of the batch, mean over the channels.

        It goes to zero where a teacher that is an EMA of its student has collapsed.
        """
        return {"target_std": target.flatten(0, 1).std(dim=0).mean()}


@frozen
class FeatureTargetConfig:
    """Which features; `FeatureTarget` explains the settings.

    Args:
        teacher: Which network, and which of its outputs; there is no default.
        normalise: As of `FeatureTarget`.
        distance: data2vec and dBOT have smooth_l1 with 2, CLIP's features cosine.
    """

    kind: Literal["features"] = "features"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    normalise: FeatureNormalisation = "layernorm"
    distance: Distance = Distance("smooth_l1", beta=2.0)

    def build(self, encoder: Encoder) -> FeatureTarget:
        """The target for an encoder's patches.

        Raises:
            ValueError: if there is no such teacher, or it does not go with the encoder.
        """
        if not self.teacher.source:
            raise ValueError(
                f"FeatureTargetConfig.teacher must be given, as there is no default; got none. Name one, or take "
                f"another target, such as pixels. {WAYS}."
            )
        return FeatureTarget(self.teacher.build(encoder), encoder.grid, self.normalise, self.distance)
