"""MILAN: CLIP's attention draws the visible patches, its features are predicted, by a decoder of masked tokens alone.

With the teacher's features t of the class token and all N patches of the whole image, and predictions g:

    visible    drawn without replacement, each patch in proportion to the attention that the class token pays it
    decoder    masked tokens read all tokens; visible ones stay as the encoder gives them ("prompting decoder")
    loss       mean over the class token and all patches, visible ones too, of |g / |g| - t / |t||^2

Paper: Hou et al. 2022, *MILAN: Masked Image Pretraining on Language Assisted Representation*, arXiv:2208.06049; code:
github.com/zejiangh/MILAN (`models_milan.py`).
"""

from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.masking import MaskerConfig
from pantomim.masking.attention import published
from pantomim.methods.base import Draws, Method, Requirements, check_masker
from pantomim.methods.guides import draw_mask
from pantomim.nn.decoder import DecoderConfig, PromptingDecoder
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.teachers.base import Query, Teacher
from pantomim.teachers.choice import TeacherConfig

DISTANCE = Distance("unit_l2")  # forward_loss: 2 - 2 cos


@frozen
class MILANConfig:
    """The parts of MILAN."""

    kind: Literal["milan"] = "milan"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # The student's, which sees the visible patches
    decoder: DecoderConfig = field(default_factory=DecoderConfig)  # Sizes of the prompting decoder
    # What is masked; an `AttentionMasker` gets the teacher's attention, its preset "milan" samples by it
    masker: MaskerConfig = field(default_factory=lambda: published("milan"))
    # The frozen network, with a class token; the authors have CLIP's ViT-B/16, output "projection"
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(output="norm"))

    def __post_init__(self) -> None:
        check_masker("MILANConfig", self.masker, self.encoder)

    def build(self, steps: int | None = None, teacher: Teacher | None = None) -> "MILAN":
        """The method, initialised from torch's global generator; `teacher` in place of the config's, if given."""
        return MILAN(self, teacher)


class MILAN(Method):
    """Encoder and prompting decoder around a mask, a teacher on whole images."""

    def __init__(self, config: MILANConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.masker = config.masker
        self.encoder = encoder = config.encoder.build()
        self.teacher = teacher = teacher or config.teacher.build(encoder)
        self.decoder = PromptingDecoder(config.decoder, encoder.width, encoder.num_prefix, encoder.grid, teacher.width)
        if not (config.encoder.class_token and teacher.num_prefix):
            raise ValueError("MILAN's encoder and teacher must have a class token, which is predicted too; got none.")
        self.requirements = Requirements.of(config.encoder)
        self.query: Query | None = "class" if config.masker.guided else None
        teacher.check_query(self.query)

    @property
    def asked(self) -> tuple[nn.Module, ...]:
        """The teacher."""
        return (self.teacher,)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Draws:
        """The teacher's attention decides the mask; its features are the target."""
        guidance = self.teacher(batch.images, self.query)
        return Draws(draw_mask(self.masker, batch, self.encoder.grid, generator, guidance.attention), guidance)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The loss over all tokens, those of visible patches too."""
        mask, guidance = draws.mask, draws.guidance or self.teacher(batch.images)
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        prediction = self.decoder(latent, mask, everywhere=True, with_class=True)  # (B, 1 + N, K)
        target = torch.cat([guidance.prefix[:, :1], guidance.patches], dim=1)  # (B, 1 + N, K), no gradient
        return {"loss": DISTANCE(prediction, target), "baseline": DISTANCE.baseline(target)}
