"""dBOT: MAE whose target is a frozen teacher's features of the whole image, in stages.

    loss = mean over the class token and the masked patches of smooth_l1(prediction, normalise(features), beta = 2)

The teacher does not change within a stage; the next stage has the student as its teacher, and a new student. The
symmetric variant, in which the encoder sees mask tokens and a CLIP model teaches, is BEiT with a feature target.

Paper: Liu et al. 2024, *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.masking import MaskerConfig
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Method, Requirements, check_masker
from pantomim.methods.guides import ask, draw_mask
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureNormalisation, normalise_features
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import TeacherConfig


@frozen
class DBOTConfig:
    """The parts of dBOT, with the values of the authors' ViT-B.

    Args:
        encoder: The student's; stochastic depth of 0.2 (ViT-H: 0.3).
        decoder: MAE's, with the encoder's stochastic depth; it predicts vectors of the teacher's width.
        masker: The same number of patches in every image; an `AttentionMasker` gets the teacher's attention.
        guide_query: Whose attention that is: the class token's, or the mean over all patches'.
        teacher: Which network, and which of its outputs: its last block's before the final norm ("block"), or after it
            ("norm"). Of a random one `depth` blocks: all for ViT-B, none in the authors' ViT-L and ViT-H. "ema" instead
            moves with the student at every step, which the authors compare with.
        normalise: "unbiased" standardises each token of the teacher over its channels, without weights, by the unbiased
            variance; "none" takes it as it comes; see `FeatureTarget` for others.
        distance: Between prediction and target.
        predict_class: The class token is predicted too and counts like a masked patch, as in the authors' code; None:
            where student and teacher have one, which each stage of a chain decides by its own teacher.

    Raises:
        ValueError: if the masker does not go with the encoder's grid, or masks another number of patches in each image,
            or there is no class token to predict.

    Source: the authors' `models_mae.py` and `PRETRAIN.md` (github.com/liuxingbin/dbot).
    """

    kind: Literal["dbot"] = "dbot"
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(drop_path=0.2))
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(drop_path=0.2))
    masker: MaskerConfig = field(default_factory=RandomMasker)
    guide_query: Query = "class"
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(source="random"))
    normalise: FeatureNormalisation = "unbiased"
    distance: Distance = field(default_factory=lambda: Distance("smooth_l1", beta=2.0))
    predict_class: bool | None = True

    def __post_init__(self) -> None:
        check_masker("DBOTConfig", self.masker, self.encoder)
        if self.predict_class and not self.encoder.class_token:
            raise ValueError(
                "DBOTConfig.predict_class must be False or None for an encoder without a class token; got True. Set "
                "it, or give the encoder a class token."
            )

    def build(self, steps: int | None = None, teacher: Teacher | None = None) -> "DBOT":
        """The method, initialised from torch's global generator; `teacher` in place of the config's, if given."""
        return DBOT(self, teacher)

    def predicts_class(self, teacher: Teacher) -> bool:
        """Whether the class token is predicted with this teacher.

        Raises:
            ValueError: if it must be, and the teacher has none.
        """
        if self.predict_class is None:
            return self.encoder.class_token and teacher.num_prefix > 0
        if self.predict_class and not teacher.num_prefix:
            raise ValueError(
                "DBOTConfig.predict_class must be None or False for a teacher without a class token; got True. Set "
                "method.predict_class to None (predicted in those stages whose teacher has one), or choose another "
                "teacher."
            )
        return self.predict_class


@dataclass(frozen=True)
class DBOTDraws:
    """All that is random in a step of dBOT.

    Args:
        mask: What is masked.
        guidance: The teacher's features, where its attention was needed for the mask; None: `forward` asks for them.
    """

    mask: Mask
    guidance: Guidance | None = None


class DBOT(Method):
    """An encoder and a decoder around a mask, and a teacher without one; `DBOTConfig` explains the settings."""

    def __init__(self, config: DBOTConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.encoder = config.encoder.build()
        self.teacher = teacher or config.teacher.build(self.encoder)
        grid, num_prefix = self.encoder.grid, self.encoder.num_prefix
        self.decoder = config.decoder.build(self.encoder.width, num_prefix, grid, self.teacher.width)
        self.masker, self.guide_query = config.masker, config.guide_query if config.masker.guided else None
        self.teacher.check_query(self.guide_query)
        self.normalise, self.distance = config.normalise, config.distance
        self.predict_class = config.predicts_class(self.teacher)
        self.requirements = Requirements.of(config.encoder)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> DBOTDraws:
        """One mask an image, of the global batch cut to this batch's rows; by the teacher's attention, if need be."""
        if self.guide_query is None:
            return DBOTDraws(draw_mask(self.masker, batch, self.encoder.grid, generator))
        guidance = ask(self.teacher, batch.images, self.guide_query)
        return DBOTDraws(draw_mask(self.masker, batch, self.encoder.grid, generator, guidance.attention), guidance)

    def forward(self, batch: Batch, draws: DBOTDraws) -> dict[str, Tensor]:
        """The distance to the teacher's features of the class token and the masked patches, over all of them alike."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        prediction = self.decoder(latent, mask, with_class=self.predict_class)  # (B, 1 + M, K)
        target = self.target(draws.guidance or self.teacher(batch.images), mask.ids_mask)  # (B, 1 + M, K)
        return {"loss": self.distance(prediction, target)}

    @torch.no_grad()
    def target(self, features: Guidance, ids: Int[Tensor, "B M"]) -> Float[Tensor, "B T K"]:
        """The teacher's features of the class token and the patches `ids`, normalised token by token."""
        tokens = take(features.patches, ids)
        if self.predict_class:
            tokens = torch.cat([features.prefix[:, :1], tokens], dim=1)
        return normalise_features(tokens, self.normalise)

    def exports(self) -> dict[str, Any]:
        """The student's encoder, and its decoder for continuing to train."""
        return {"encoder": self.encoder, "decoder": self.decoder}
