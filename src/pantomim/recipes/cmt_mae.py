"""Recipes of CMT-MAE: a starting point for ImageNet-1K out of what is known, ours for small images and any data.

Paper: Mo 2025, *The Dynamic Duo of Collaborative Masking and Target for Advanced Masked Autoencoder Learning*,
arXiv:2412.17566. Only its abstract, the opening of its introduction and short public digests were at hand: the
method's idea, ViT-B, ImageNet-1K and the score. There is no public code. `ORIGINS` says where each value comes from.
"""

from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.masking.attention import AttentionMasker
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.momentum import Momentum
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.mae import (
    DECODER_SIZES,
    choose_batch_size,
    choose_encoder,
    mae_micro_cifar10,
    mae_tiny_cifar10,
    nearest_size,
)
from pantomim.recipes.recipe import Recipe
from pantomim.targets.distance import Distance
from pantomim.targets.pair import Weighted
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing

# Where each setting of the starting point for ViT-B comes from, by the beginning of its name.
ORIGINS = {
    "data": "ours",
    "data.crop": "precedent: MILAN's README, MAE's PRETRAIN.md",
    "method.encoder": "precedent: MAE",
    "method.encoder.width": "stated: ViT-B (abstract)",
    "method.encoder.depth": "stated: ViT-B (abstract)",
    "method.encoder.heads": "stated: ViT-B (abstract)",
    "method.decoder": "precedent: MAE; that it predicts features is stated (abstract)",
    "method.masker": "ours",
    "method.masker.kind": "stated: the mixed attention decides (abstract)",
    "method.masker.rule": "said by a digest: the most informative patches are masked; that no draw decides is ours",
    "method.masker.ratio": "precedent: MAE, MILAN",
    "method.teacher": "ours: features after the final norm, before the projection; MILAN has those after it",
    "method.teacher.source": "stated: CLIP, as the example; by digests it is frozen; ViT-B/16 is MILAN's",
    "method.mixing": "ours, with the linear mix itself stated (abstract) and two stages said by a digest",
    "method.scores": "ours",
    "method.scores.teacher_query": "precedent: MILAN, AttMask",
    "method.scores.student_query": "precedent: MILAN, AttMask",
    "method.target": "ours",
    "method.target.kind": "stated: both features are targets (abstract), weighted as a digest says",
    "method.target.distance": "precedent: the square of the difference, as in MAE",
    "method.student_output": "ours",
    "method.feature_weight": "stated: features are the target (abstract)",
    "method.pixel": "ours: none; a summary has them alone",
    "method.momentum": "precedent: momentum encoders; that there is a momentum copy is said by digests",
    "method.half_life": "ours",
    "method.guide_precision": "ours",
    "optim": "precedent: MILAN's README, MAE's PRETRAIN.md",
    "batch_size": "precedent: MILAN, MAE",
    "duration": "precedent: MILAN",
}


def cmt_mae_vit_base_in1k() -> Pretrain:
    """CMT-MAE, ViT-B/16, ImageNet-1K, 400 epochs: a starting point, as the paper's own settings are not known to us.

    pantomim pretrain cmt_mae_vit_base_in1k --teacher open_clip:ViT-B-16:openai --data IMAGENET --out runs/cmt_b
    """
    return Pretrain(
        recipe="cmt_mae_vit_base_in1k",
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),  # precedent: MILAN, MAE
        method=CMTMAEConfig(
            encoder=EncoderConfig(image_size=(224, 224), patch_size=16, **ENCODER_SIZES["base"]),  # stated: ViT-B
            decoder=DECODER_SIZES["base"],  # precedent: MAE
            masker=AttentionMasker(rule="topk_masked", ratio=0.75),  # rule: a digest; ratio: precedent, MAE and MILAN
            teacher=TeacherConfig(output="norm"),  # ours; MILAN has projection
            mixing=Mixing(teacher_weight=0.5, warmup_share=0.1),  # ours
            target=Weighted(normalise="biased", distance=Distance("l2")),  # ours; the distance: precedent, MAE
            momentum=Momentum(0.996, 1.0),  # precedent: momentum encoders
        ),
        optim=OptimConfig(  # precedent: MILAN's README, MAE's PRETRAIN.md
            base_lr=1.5e-4,
            min_lr=0.0,
            warmup=Duration(epochs=40),
            weight_decay=0.05,
            decay_tokens=True,
            betas=(0.9, 0.95),
            clip_norm=None,
        ),
        batch_size=4096,  # precedent: MILAN, MAE
        duration=Duration(epochs=400),  # precedent: MILAN
    )


def _beside(base: Pretrain, recipe: str) -> Pretrain:
    """A CMT-MAE with the data, sizes, rates and length of one of MAE's small recipes."""
    assert isinstance(base.method, MAEConfig), "MAE's recipes are MAE"
    method = CMTMAEConfig(encoder=base.method.encoder, decoder=base.method.decoder, half_life=0.02)
    return replace(base, recipe=recipe, method=method)


def cmt_mae_tiny_cifar10() -> Pretrain:
    """CMT-MAE, ViT-Ti/4, CIFAR-10's 50,000 images of 32x32, 400 epochs; the teacher is a run of yours; for one GPU.

    pantomim pretrain cmt_mae_tiny_cifar10 --teacher runs/moco_tiny --data cifar10.zip --out runs/cmt_tiny
    """
    return _beside(mae_tiny_cifar10(), "cmt_mae_tiny_cifar10")


def cmt_mae_micro_cifar10() -> Pretrain:
    """CMT-MAE, micro with patches of 4x4, on 10,000 images of CIFAR-10; a run of yours teaches; for two CPU cores.

    pantomim pretrain cmt_mae_micro_cifar10 --teacher runs/moco_micro --data cifar10.zip --out runs/cmt_micro
    """
    return _beside(mae_micro_cifar10(), "cmt_mae_micro_cifar10")


_SMALL = "data, sizes, rates and length are those of MAE's recipe of this size; nothing is tuned for CMT-MAE"

RECIPES = (
    Recipe(
        cmt_mae_vit_base_in1k,
        cost="not measured by us",
        expected="85.7 fine-tuned is the paper's score; whether these settings reach it is not known",
        paper=cmt_mae_vit_base_in1k,
        origins=ORIGINS,
    ),
    Recipe(
        cmt_mae_micro_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=cmt_mae_vit_base_in1k,
        notes=(_SMALL,),
        origins=ORIGINS,
    ),
    Recipe(
        cmt_mae_tiny_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=cmt_mae_vit_base_in1k,
        notes=(_SMALL,),
        origins=ORIGINS,
    ),
)


def cmt_mae(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """A CMT-MAE for any images: `--size` and the data decide the rest; the paper's own numbers are not known to us.

    pantomim pretrain cmt_mae --data my_photos/ --teacher runs/moco --out runs/photos

    Args:
        size: Name of the encoder's and decoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and std.
        start: Encoder to continue from: all but its image size is kept.
    """
    encoder = choose_encoder(size, facts, stats, start)
    large = encoder.width >= 768
    paper = cmt_mae_vit_base_in1k()
    decoder = DECODER_SIZES[nearest_size(encoder.width)]
    return replace(
        paper,
        recipe="cmt_mae",
        data=DataConfig(),
        method=CMTMAEConfig(encoder=encoder, decoder=decoder, half_life=None if large else 0.02),
        optim=replace(paper.optim, base_lr=paper.optim.base_lr if large else 6e-4, warmup=Duration(epochs=20)),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=400),
    )


def cmt_mae_paper(width: int) -> Pretrain:
    """What `explain` compares with: the starting point for ViT-B, whatever the width."""
    return cmt_mae_vit_base_in1k()
