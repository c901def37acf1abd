"""Recipes of MILAN: the authors' for ImageNet-1K, and the method for any images.

Paper: Hou et al. 2022, *MILAN: Masked Image Pretraining on Language Assisted Representation*, arXiv:2208.06049; numbers
are those of the authors' code (github.com/zejiangh/MILAN: its README and, named beside a value, a file).
"""

from dataclasses import replace
from typing import Any

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.transforms import Crop
from pantomim.masking.attention import published
from pantomim.methods.milan import MILANConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import Family
from pantomim.recipes.scale import Scale, scale
from pantomim.teachers.choice import TeacherConfig


def in1k(size: str) -> Pretrain:
    """The README's run; OpenAI's CLIP ViT-B/16 teaches."""
    return Pretrain(
        recipe="milan",
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),  # main_pretrain.py
        method=MILANConfig(
            encoder=EncoderConfig(image_size=(224, 224), patch_size=16, **ENCODER_SIZES[size]),
            decoder=DecoderConfig(width=512, depth=8, heads=16),  # models_milan.py
            masker=published("milan", 0.75),  # --mask_ratio 0.75 --attn_mask
            # 512 channels, after the projection; CLIP gets images that are normalised for the student
            teacher=TeacherConfig(output="projection", statistics="student"),
        ),
        optim=OptimConfig(
            base_lr=1.5e-4,
            min_lr=0.0,
            warmup=Duration(epochs=40),
            weight_decay=0.05,
            decay_tokens=True,  # main_pretrain.py with timm 0.3.2
            betas=(0.9, 0.95),  # main_pretrain.py
            clip_norm=None,
        ),
        batch_size=4096,
        duration=Duration(epochs=400),
    )


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """Any teacher: its last norm's output, and its own mean and std."""
    run = scale(paper, to)
    method: Any = run.method
    return replace(run, method=MILANConfig(encoder=method.encoder, decoder=method.decoder))


MILAN = Family(
    "milan",
    "MILAN",
    in1k,
    {
        "base": (
            "39 h on 8 A100 of 40 GB (the authors' README); not measured by us",
            "85.4 fine-tuned is the paper's score; not measured by us",
        )
    },
    rescale=rescale,
    bare="milan",
    notes=("mixed precision is bfloat16 here, float16 in the authors' code",),
)
