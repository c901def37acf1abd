"""dBOT: MAE whose target is a frozen teacher's features of the whole image, in stages.

    loss = mean over the class token and the masked patches of smooth_l1(prediction, normalise(features), beta = 2)

The teacher does not change within a stage; the next stage has the student as its teacher, and a new student. The
symmetric variant, in which the encoder sees mask tokens and a CLIP model teaches, is BEiT with a feature target.

Paper: Liu et al. 2024, *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917.
"""

from dataclasses import field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.masking import MaskerConfig
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws, Method, Requirements, check_masker
from pantomim.methods.guides import draw_mask
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureNormalisation, feature_std, normalise_features
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import TeacherConfig


@frozen
class DBOTConfig:
    """The parts of dBOT, with the values of the authors' ViT-B.

    The random teacher has all blocks for ViT-B, and `depth` 0 in the authors' ViT-L and ViT-H; "ema" moves with the
    student at every step, which the authors compare with. The class token counts like a masked patch.

    Source: the authors' `models_mae.py` and `PRETRAIN.md` (github.com/liuxingbin/dbot).
    """

    kind: Literal["dbot"] = "dbot"
    # The student's; stochastic depth of 0.2 (ViT-H: 0.3)
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(drop_path=0.2))
    # MAE's, with the encoder's stochastic depth; it predicts vectors of the teacher's width
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(drop_path=0.2))
    # The same number of patches in every image; an `AttentionMasker` gets the teacher's attention
    masker: MaskerConfig = field(default_factory=RandomMasker)
    guide_query: Query = "class"  # Whose attention that is: the class token's, or the mean over all patches'
    # Which network, and which of its outputs
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(source="random"))
    # As of `FeatureTargetConfig`: each token of the teacher over its channels
    normalise: FeatureNormalisation = "unbiased"
    distance: Distance = field(default_factory=lambda: Distance("smooth_l1", beta=2.0))  # Between prediction and target
    # The class token is predicted too; None: where student and each stage's teacher have one
    predict_class: bool | None = True

    def __post_init__(self) -> None:
        check_masker("DBOTConfig", self.masker, self.encoder)

    def build(self, steps: int | None = None, teacher: Teacher | None = None) -> "DBOT":
        """The method, initialised from torch's global generator; `teacher` in place of the config's, if given."""
        return DBOT(self, teacher)


class DBOT(Method):
    """An encoder and a decoder around a mask, and a teacher without one."""

    exports_decoder = True

    def __init__(self, config: DBOTConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.encoder = config.encoder.build()
        self.teacher = teacher or config.teacher.build(self.encoder)
        width, num_prefix = self.encoder.width, self.encoder.num_prefix
        self.decoder = config.decoder.build(width, num_prefix, self.encoder.grid, self.teacher.width)
        self.masker, self.guide_query = config.masker, config.guide_query if config.masker.guided else None
        self.teacher.check_query(self.guide_query)
        self.normalise, self.distance = config.normalise, config.distance
        both = config.encoder.class_token and self.teacher.num_prefix > 0
        if config.predict_class and not both:
            raise ValueError(
                "DBOTConfig.predict_class must be None or False where student or teacher has no class token; got True. "
                "Set it to None (predicted in those stages where both have one), or choose another teacher."
            )
        self.predict_class = both and config.predict_class is not False
        self.requirements = Requirements.of(config.encoder)

    @property
    def asked(self) -> tuple[nn.Module, ...]:
        """The teacher, where its attention decides what is masked."""
        return () if self.guide_query is None else (self.teacher,)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Draws:
        """One mask an image; by the teacher's attention, where the masker asks for it."""
        guidance = None if self.guide_query is None else self.teacher(batch.images, self.guide_query)
        attention = None if guidance is None else guidance.attention
        return Draws(draw_mask(self.masker, batch, self.encoder.grid, generator, attention), guidance)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The distance of the class token and the masked patches, which all count alike."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        prediction = self.decoder(latent, mask, with_class=self.predict_class)  # (B, 1 + M, K)
        target = self.target(draws.guidance or self.teacher(batch.images), mask.ids_mask)  # (B, 1 + M, K)
        loss, baseline = self.distance(prediction, target), self.distance.baseline(target)
        return {"loss": loss, "baseline": baseline, "target_std": feature_std(target)}

    @torch.no_grad()
    def target(self, features: Guidance, ids: Int[Tensor, "B M"]) -> Float[Tensor, "B T K"]:
        """The teacher's features of the class token and the patches `ids`, normalised token by token."""
        tokens = take(features.patches, ids)
        if self.predict_class:
            tokens = torch.cat([features.prefix[:, :1], tokens], dim=1)
        return normalise_features(tokens, self.normalise)
