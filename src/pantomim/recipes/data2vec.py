"""Recipes of data2vec: an EMA teacher's features of the whole image, from its upper blocks.

Paper: Baevski et al. 2022, *data2vec*, arXiv:2202.03555; the numbers are those of the authors' code
(github.com/facebookresearch/data2vec_vision, folder `beit`, as launched in its README).
"""

from dataclasses import replace
from typing import Any, Literal

from pantomim.config import Duration, Pretrain
from pantomim.masking.block import BlockMasker
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.nn.momentum import momentum_of_half_life
from pantomim.recipes import beit
from pantomim.recipes.recipe import NOT_MEASURED, Family, Scale, scale, with_parts
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig


def in1k(size: Literal["base", "large"]) -> Pretrain:
    """The code as launched: BEiT's, with larger blocks, and an EMA teacher in place of a tokenizer."""
    large, run = size == "large", beit.in1k(size)
    encoder = beit_encoder(size, drop_path=0.2 if large else 0.25)
    method = BEiTConfig(
        encoder=replace(encoder, layer_scale=1e-5 if large else 1e-4),
        masker=BlockMasker(ratio=120 / 196, exact=False),  # 120 of 196, blocks of 16 patches at least
        target=FeatureTargetConfig(
            # The mean over the upper half of the blocks of ViT-B, a quarter of ViT-L's; momentum without a ramp. The
            # teacher is called outside of autocast (engine_for_cyclical.py).
            teacher=TeacherConfig(source="ema", blocks=6, momentum=0.9998, precision="float32"),
            normalise="layernorm",  # post_target_layer_norm
            distance=Distance("smooth_l1", beta=2.0),
        ),
    )
    batch_size, lr = (4096, 1e-3) if large else (2048, 2e-3)
    warmup = Duration(epochs=80 if large else 10)
    optim = replace(run.optim, base_lr=lr * 256 / batch_size, warmup=warmup, clip_norm=3.0)  # the rest: not stated
    return replace(run, method=method, optim=optim, batch_size=batch_size)


def momentum_for(steps: float) -> float:
    """The momentum of an EMA teacher that forgets half of itself in a fiftieth of a run; ours."""
    return round(momentum_of_half_life(max(steps / 50, 1.0)), 6)


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """BEiT's layer scale; at most all blocks teach, with a momentum that follows the length of the run."""
    method: Any = paper.method
    if to.encoder.depth <= 12:
        paper = with_parts(paper, encoder=replace(method.encoder, layer_scale=0.1))
    run = scale(paper, to)
    assert run.duration.epochs is not None, "the length of a bare method is in epochs"
    momentum = momentum_for(run.duration.epochs * to.facts.num_images / run.batch_size)
    teacher = replace(method.target.teacher, blocks=min(6, to.encoder.depth), momentum=momentum)
    return with_parts(run, target=replace(method.target, teacher=teacher))


_UNKNOWN = (NOT_MEASURED, "not stated in the authors' repository")
_SECOND_RUN = "a second run of 800 epochs follows, which starts from the first's weights, with momentum 0.9999"

DATA2VEC = Family(
    "data2vec",
    "data2vec",
    in1k,
    {"base": _UNKNOWN, "large": (*_UNKNOWN, _SECOND_RUN)},
    rescale=rescale,
    bare="data2vec",
    idea="features of the whole image, by a moving average of the encoder itself",
    notes=(
        "attention dropout: none, where the authors have 0.05 (ViT-L: 0.15)",
        "betas and final rate: not stated for the launch; those of BEiT, whose code it is",
        beit.JITTER_NOTE,
    ),
)
