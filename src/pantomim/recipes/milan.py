"""Recipes of MILAN: the authors' for ImageNet-1K, and the method for any images.

Paper: Hou et al. 2022, *MILAN: Masked Image Pretraining on Language Assisted Representation*, arXiv:2208.06049; numbers
are those of the authors' code (github.com/zejiangh/MILAN: its README and, named beside a value, a file).
"""

from dataclasses import replace
from typing import Any

from pantomim.config import Duration, Pretrain
from pantomim.masking.attention import published
from pantomim.methods.milan import MILANConfig
from pantomim.recipes import mae
from pantomim.recipes.recipe import Family, Scale, scale
from pantomim.teachers.choice import TeacherConfig


def in1k(size: str) -> Pretrain:
    """The README's run; OpenAI's CLIP ViT-B/16 teaches."""
    run: Any = mae.in1k(size)  # the code is MAE's, and its numbers
    method = MILANConfig(
        encoder=run.method.encoder,
        decoder=run.method.decoder,
        masker=published("milan", 0.75),  # --mask_ratio 0.75 --attn_mask
        # 512 channels, after the projection; CLIP gets images that are normalised for the student
        teacher=TeacherConfig(output="projection", statistics="student"),
    )
    return replace(run, method=method, duration=Duration(epochs=400))


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """Any teacher: its last norm's output, and its own mean and std."""
    run = scale(paper, to)
    method: Any = run.method
    return replace(run, method=MILANConfig(encoder=method.encoder, decoder=method.decoder))


MILAN = Family(
    "milan",
    "MILAN",
    in1k,
    {"base": ("39 h on 8 A100 of 40 GB (the authors' README)", "85.4 fine-tuned (the paper's)")},
    rescale=rescale,
    bare="milan",
    idea="a teacher's features of all patches, from those that its attention draws",
    notes=("mixed precision is bfloat16 here, float16 in the authors' code",),
)
