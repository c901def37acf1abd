"""Recipes whose target is CLIP's feature of each patch: EVA's way with mask tokens, and MAE's way without.

Paper: Fang et al. 2023, *EVA*, arXiv:2211.07636. The numbers of the first are those of its code
(github.com/baaivision/EVA, `EVA-01/eva`), those of the second are open-mmlab/mmpretrain's (`configs/eva`).
"""

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.transforms import Crop
from pantomim.masking.block import BlockMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import Family
from pantomim.recipes.scale import DECODER_SIZES
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig


def mim_in1k(size: str) -> Pretrain:
    """EVA's code, field by field, where it says nothing of sizes; block masks and mask tokens."""
    return Pretrain(
        recipe="clip_mim",
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),
        method=BEiTConfig(
            encoder=EncoderConfig(
                position="learned", initialisation="beit", attention_bias="qv", drop_path=0.1, **ENCODER_SIZES[size]
            ),
            masker=BlockMasker(ratio=105 / 256, exact=False),  # 105 of EVA's 256
            target=FeatureTargetConfig(  # every token after ln_post and projection, as the cosine alone sees it
                teacher=TeacherConfig(output="projection"), normalise="none", distance=Distance("cosine")
            ),
        ),
        optim=OptimConfig(
            base_lr=1e-3 * 256 / 4096,
            min_lr=1e-5,
            warmup=Duration(epochs=2),
            weight_decay=0.05,
            schedule="beit",
            decay_tokens=False,
            decay_mask_token=True,
            betas=(0.9, 0.98),
            eps=1e-6,
            clip_norm=3.0,
        ),
        batch_size=4096,
        duration=Duration(epochs=150),
    )


def mae_in1k(size: str) -> Pretrain:
    """Port: mmpretrain's `eva-mae-style_vit-base-p16_16xb256-coslr-400e_in1k`, field by field."""
    return Pretrain(
        recipe="clip_mae",
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),
        method=MAEConfig(
            encoder=EncoderConfig(**ENCODER_SIZES[size]),
            decoder=DECODER_SIZES[size],
            masker=RandomMasker(ratio=0.75),
            target=FeatureTargetConfig(
                teacher=TeacherConfig(output="projection", statistics="student"),  # ImageNet's for both
                normalise="none",
                distance=Distance("cosine"),
            ),
        ),
        optim=OptimConfig(
            base_lr=2.4e-3 * 256 / 4096,
            start_lr=2.4e-7,  # LinearLR: start_factor=1e-4
            warmup=Duration(epochs=40),
            weight_decay=0.05,
            schedule="beit",  # mmengine's LinearLR has the peak in the warm-up's last step
            decay_tokens=False,  # decay_mult 0 of class and mask token
            betas=(0.9, 0.95),
        ),
        batch_size=4096,
        duration=Duration(epochs=400),
    )


_TEACHER = "teacher: none by default; clip:FILE, open_clip:NAME or hf:NAME gives CLIP's ViT-B/16"

CLIP_MIM = Family(
    "clip_mim",
    "CLIP's features behind mask tokens as in EVA",
    mim_in1k,
    {"base": ("not measured by us; the authors have no ViT-B", "not published for ViT-B")},
    notes=(
        _TEACHER,
        "loss: 1 - cosine, where EVA's is - cosine: the same gradients",
        "student's mean and std: ImageNet's, where EVA has CLIP's for student and teacher",
        "sizes: EVA's is ViT-g/14 on 30 million images, with CLIP's ViT-L/14 as teacher; rates, masks and length are "
        "its",
        "positions, biases, initial weights and decay of tokens: not stated, ours",
    ),
)
CLIP_MAE = Family(
    "clip_mae",
    "CLIP's features predicted by MAE's decoder",
    mae_in1k,
    {"base": ("not measured by us; mmpretrain gives none", "83.7 fine-tuned, 69.0 linear (mmpretrain's port)")},
    notes=(
        _TEACHER,
        "loss: 1 - cosine, where mmpretrain's is 2 - 2 cosine: half the gradients, which AdamW scales away",
    ),
)
