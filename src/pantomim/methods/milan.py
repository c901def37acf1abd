"""MILAN: CLIP's attention draws the visible patches, its features are predicted, by a decoder of masked tokens alone.

With the teacher's features t of the class token and all N patches of the whole image, and predictions g:

    visible    drawn without replacement, each patch in proportion to the attention that the class token pays it
    decoder    masked tokens read all tokens; visible ones stay as the encoder gives them ("prompting decoder")
    loss       mean over the class token and all patches, visible ones too, of |g / |g| - t / |t||^2

Paper: Hou et al. 2022, *MILAN: Masked Image Pretraining on Language Assisted Representation*, arXiv:2208.06049; code:
github.com/zejiangh/MILAN (`models_milan.py`).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.masking import MaskerConfig
from pantomim.masking.attention import published
from pantomim.methods.base import Method, Requirements, check_masker
from pantomim.methods.guides import ask, draw_mask
from pantomim.nn.decoder import DecoderConfig, PromptingDecoder
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.teachers.base import Query, Teacher
from pantomim.teachers.choice import TeacherConfig

DISTANCE = Distance("unit_l2")  # forward_loss: 2 - 2 cos


@frozen
class MILANConfig:
    """The parts of MILAN.

    Args:
        encoder: The student's, which sees the visible patches.
        decoder: Sizes of the prompting decoder.
        masker: What is masked; an `AttentionMasker` gets the teacher's attention, its preset "milan" samples by it.
        teacher: The frozen network, with a class token; the authors have CLIP's ViT-B/16, output "projection".
    """

    kind: Literal["milan"] = "milan"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    masker: MaskerConfig = field(default_factory=lambda: published("milan"))
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(output="norm"))

    def __post_init__(self) -> None:
        check_masker("MILANConfig", self.masker, self.encoder)
        if not self.encoder.class_token:
            raise ValueError("MILANConfig.encoder must have a class token, which is predicted too; got none. Set it.")

    def build(self, steps: int | None = None, teacher: Teacher | None = None) -> "MILAN":
        """The method, initialised from torch's global generator; `teacher` in place of the config's, if given."""
        return MILAN(self, teacher)


@dataclass(frozen=True)
class MILANDraws:
    """All that is random in a step, and the teacher's features of the class token and all patches, asked once."""

    mask: Mask
    target: Float[Tensor, "B T K"]


class MILAN(Method):
    """Encoder and prompting decoder around a mask, a teacher on whole images."""

    def __init__(self, config: MILANConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.masker = config.masker
        self.encoder = encoder = config.encoder.build()
        self.teacher = teacher = teacher or config.teacher.build(encoder)
        self.decoder = PromptingDecoder(config.decoder, encoder.width, encoder.num_prefix, encoder.grid, teacher.width)
        if not teacher.num_prefix:
            raise ValueError("MILAN.teacher must have a class token, which is predicted too; got none. Choose another.")
        self.requirements = Requirements.of(config.encoder)
        self.query: Query | None = "class" if config.masker.guided else None
        teacher.check_query(self.query)

    @torch.no_grad()
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> MILANDraws:
        """The teacher's attention decides the mask; its features are the target."""
        answer = ask(self.teacher, batch.images, self.query)
        mask = draw_mask(self.masker, batch, self.encoder.grid, generator, answer.attention)
        return MILANDraws(mask, torch.cat([answer.prefix[:, :1], answer.patches], dim=1))

    def forward(self, batch: Batch, draws: MILANDraws) -> dict[str, Tensor]:
        """The loss over all tokens, those of visible patches too."""
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)  # visible patches only
        prediction = self.decoder(latent, mask, everywhere=True, with_class=True)  # (B, 1 + N, K)
        return {"loss": DISTANCE(prediction, draws.target)}
