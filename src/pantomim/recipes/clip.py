"""Recipes whose target is CLIP's feature of each patch: EVA's way with mask tokens, and MAE's way without.

Paper: Fang et al. 2023, *EVA*, arXiv:2211.07636. The numbers of the first are those of its code
(github.com/baaivision/EVA, `EVA-01/eva`), which is BEiT's, those of the second are open-mmlab/mmpretrain's
(`configs/eva`), which are MAE's; so are all numbers that are not named.
"""

from dataclasses import replace

from pantomim.config import Duration, Pretrain
from pantomim.masking.block import BlockMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes import beit, mae
from pantomim.recipes.colormae import mmengine
from pantomim.recipes.recipe import NOT_MEASURED, Family, with_parts
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig

CLIP_NOTE = "teacher: none by default; clip:FILE, open_clip:NAME or hf:NAME gives CLIP's ViT-"
# Every token after ln_post and projection, as the cosine alone sees it.
TARGET = FeatureTargetConfig(teacher=TeacherConfig(output="projection"), normalise="none", distance=Distance("cosine"))


def mim_in1k(size: str) -> Pretrain:
    """EVA's code, where it says nothing of sizes; block masks and mask tokens."""
    encoder = EncoderConfig(
        position="learned", initialisation="beit", attention_bias="qv", drop_path=0.1, **ENCODER_SIZES[size]
    )
    run = beit.in1k("base")
    optim = replace(run.optim, base_lr=1e-3 * 256 / 4096, warmup=Duration(epochs=2), betas=(0.9, 0.98), eps=1e-6)
    return replace(
        run,
        data=mae.in1k("base").data,  # crops from 0.2 on, no jitter
        method=BEiTConfig(encoder=encoder, masker=BlockMasker(ratio=105 / 256, exact=False), target=TARGET),
        optim=optim,
        batch_size=4096,
        duration=Duration(epochs=150),
    )


def mae_in1k(size: str) -> Pretrain:
    """Port: mmpretrain's `eva-mae-style_vit-base-p16_16xb256-coslr-400e_in1k`."""
    target = replace(TARGET, teacher=replace(TARGET.teacher, statistics="student"))  # ImageNet's for both
    run = with_parts(mae.in1k(size), target=target)
    return replace(run, optim=mmengine(run), duration=Duration(epochs=400))


CLIP_MIM = Family(
    "clip_mim",
    "CLIP's features behind mask tokens as in EVA",
    mim_in1k,
    {"base": (NOT_MEASURED, "not published for ViT-B")},
    notes=(
        CLIP_NOTE + "B/16",
        "loss: 1 - cosine, where EVA's is - cosine: the same gradients",
        "student's mean and std: ImageNet's, where EVA has CLIP's for student and teacher",
        "sizes: EVA's is ViT-g/14 on 30 million images, CLIP's ViT-L/14 its teacher; rates, masks and length are its",
        "positions, biases, initial weights and decay of tokens: not stated, ours",
    ),
)
CLIP_MAE = Family(
    "clip_mae",
    "CLIP's features predicted by MAE's decoder",
    mae_in1k,
    {"base": (NOT_MEASURED, "83.7 fine-tuned, 69.0 linear (mmpretrain's port)")},
    notes=(
        CLIP_NOTE + "B/16",
        "loss: 1 - cosine, where mmpretrain's is 2 - 2 cosine: half the gradients, which AdamW scales away",
    ),
)
