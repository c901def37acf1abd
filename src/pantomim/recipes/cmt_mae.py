"""Recipes of CMT-MAE: a starting point for ImageNet-1K out of what is known, ours for small images and any data.

Paper: Mo 2025, *The Dynamic Duo of Collaborative Masking and Target for Advanced Masked Autoencoder Learning*,
arXiv:2412.17566. Only its abstract, the opening of its introduction and short public digests were at hand: the
method's idea, ViT-B, ImageNet-1K and the score. There is no public code. `ORIGINS` says where each value comes from.
"""

from dataclasses import replace
from typing import Any

from pantomim.config import Duration, Pretrain
from pantomim.masking.attention import AttentionMasker
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.nn.momentum import Momentum
from pantomim.recipes import mae
from pantomim.recipes.recipe import BASE_WIDTH, NOT_MEASURED, ON_CIFAR10, Family, Scale, scale
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


def in1k(size: str) -> Pretrain:
    """A starting point, as the paper's own settings are not known to us; `ORIGINS` says where each comes from."""
    run: Any = mae.in1k(size)  # crops, optimiser and batch: MAE's, and MILAN's
    method = CMTMAEConfig(
        encoder=run.method.encoder,
        decoder=run.method.decoder,
        masker=AttentionMasker(rule="topk_masked", ratio=0.75),
        teacher=TeacherConfig(output="norm"),
        mixing=Mixing(teacher_weight=0.5, warmup_share=0.1),
        target=Weighted(normalise="biased", distance=Distance("l2")),
        momentum=Momentum(0.996, 1.0),
    )
    return replace(run, method=method, duration=Duration(epochs=400))


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """Below ViT-B the copy that is asked for attention follows the student sooner."""
    run = scale(paper, to)
    method: Any = run.method
    half_life = None if method.encoder.width >= BASE_WIDTH else 0.02
    return replace(run, method=CMTMAEConfig(encoder=method.encoder, decoder=method.decoder, half_life=half_life))


CMT_MAE = Family(
    "cmt_mae",
    "CMT-MAE",
    in1k,
    {"base": (NOT_MEASURED, "85.7 fine-tuned is the paper's; whether these settings reach it is not known")},
    small=ON_CIFAR10,
    rescale=rescale,
    bare="cmt_mae",
    idea="features of a teacher and of the student's moving average, which choose the masks too",
    origins=ORIGINS,
)
