"""Networks that guide a method: where its config names a teacher, and whose attention decides what is masked."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen, in_words
from pantomim.core.mask import Mask
from pantomim.core.ranges import Share
from pantomim.masking.base import Masker
from pantomim.nn.vit import Encoder
from pantomim.teachers.base import Query, Teacher
from pantomim.teachers.choice import OF_STUDENT, TeacherConfig


def teacher_of(method: Any) -> TeacherConfig | None:
    """The teacher of a method's config, or of its target's; None where there is none."""
    return getattr(method if hasattr(method, "teacher") else getattr(method, "target", None), "teacher", None)


def with_teacher(method: Any, teacher: TeacherConfig) -> Any:
    """The same config with another teacher."""
    if hasattr(method, "teacher"):
        return replace(method, teacher=teacher)
    return replace(method, target=replace(method.target, teacher=teacher))


@frozen
class GuideConfig:
    """The network whose attention an `AttentionMasker` gets, in methods that need it for nothing else.

    Source: MILAN (CLIP ViT-B/16) and AttMask (an EMA of the student) take the class token's.
    """

    source: str = ""  # As `TeacherConfig.source`; empty: there is none
    query: Query = "class"  # Whose attention in its last block: the class token's, or the mean over all patches'
    momentum: Share | None = None  # Of ema alone, as `TeacherConfig.momentum`
    statistics: Literal["own", "student"] | None = None  # As `TeacherConfig.statistics`

    def check_kept(self, run: Path) -> None:
        """Raise a ValueError if a finished run's guide was a copy of the student, which a run does not export."""
        if self.source in OF_STUDENT:
            raise ValueError(
                f"{run} must have a guide that is still there to draw masks as in training; got {self.source}, which "
                f"the run does not export."
            )

    def build(self, student: Encoder, masker: Masker) -> "MaskGuide":
        """The guide of a student's masks; one without a network, where the masker asks for no attention."""
        if not masker.guided:
            if self != GuideConfig():
                raise ValueError(
                    f"GuideConfig must be left out for a masker that asks for no attention; got {in_words(self)}. "
                    f"Leave it out, or set method.masker.kind to attention."
                )
            return MaskGuide(None, self.query)
        if not self.source:
            raise ValueError(
                "GuideConfig.source must be given for a masker that attention decides; got none. Name the network in "
                "method.guide.source: RUN, open_clip:..., ema; or take another masker, or cmt_mae."
            )
        teacher = TeacherConfig(source=self.source, momentum=self.momentum, statistics=self.statistics)
        return MaskGuide(teacher.build(student), self.query)


class MaskGuide(nn.Module):
    """A network of which the attention is used and nothing else; None: masks need no attention."""

    def __init__(self, teacher: Teacher | None, query: Query) -> None:
        super().__init__()
        if teacher is not None:
            teacher.check_query(query)
        self.teacher, self.query = teacher, query

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N"] | None:
        """How much each patch of whole images is attended to."""
        return None if self.teacher is None else self.teacher(images, self.query).attention


def draw_mask(
    masker: Masker,
    batch: Batch,
    grid: tuple[int, int],
    generator: torch.Generator,
    attention: Float[Tensor, "B N"] | None = None,
) -> Mask:
    """Masks of the global batch, cut to this batch's rows; the attention of others is not here and does not matter."""
    if attention is not None and len(batch) < batch.total:
        rows = attention.new_zeros(batch.total, attention.shape[1])
        rows[batch.start : batch.start + len(batch)] = attention
        attention = rows
    return masker(batch.total, grid, generator, attention).rows(batch.start, len(batch))
