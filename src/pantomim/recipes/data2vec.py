"""Recipes of data2vec: what a moving average of the student says of the whole image, in its upper blocks.

Paper: Baevski et al. 2022, *data2vec*, arXiv:2202.03555; the numbers are those of the authors' code
(github.com/facebookresearch/data2vec_vision, folder `beit`, as launched in its README).
"""

from dataclasses import replace
from typing import Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.masking.block import BlockMasker
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.nn.momentum import momentum_of_half_life
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.beit import JITTER, as_beit
from pantomim.recipes.mae import choose_batch_size, choose_encoder, nearest_size
from pantomim.recipes.recipe import Recipe
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig


def _around(encoder: EncoderConfig, momentum: float) -> BEiTConfig:
    """BEiT with larger blocks, and a moving average of the student in the place of a tokenizer."""
    return BEiTConfig(
        encoder=encoder,
        masker=BlockMasker(ratio=120 / 196, exact=False),  # 120 of 196, blocks of 16 patches at least
        target=FeatureTargetConfig(
            # the mean over the upper half of the blocks of ViT-B, a quarter of ViT-L's
            teacher=TeacherConfig(source="ema", blocks=min(6, encoder.depth), momentum=momentum),
            normalise="layernorm",  # post_target_layer_norm
            distance=Distance("smooth_l1", beta=2.0),
        ),
    )


def _in1k(recipe: str, size: Literal["base", "large"]) -> Pretrain:
    """The code as launched, field by field."""
    large = size == "large"
    encoder = replace(beit_encoder(size, drop_path=0.2 if large else 0.25), layer_scale=1e-5 if large else 1e-4)
    return Pretrain(
        recipe=recipe,
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True), augment=JITTER),  # BEiT's
        method=_around(encoder, 0.9998),  # without a ramp
        optim=OptimConfig(
            base_lr=1e-3 * 256 / 4096 if large else 2e-3 * 256 / 2048,
            min_lr=1e-5,  # BEiT's, whose code it is
            warmup=Duration(epochs=80 if large else 10),
            weight_decay=0.05,
            schedule="beit",
            decay_tokens=False,
            decay_mask_token=True,
            betas=(0.9, 0.999),  # not stated for the launch: BEiT's
            clip_norm=3.0,
        ),
        batch_size=4096 if large else 2048,
        duration=Duration(epochs=800),
    )


def data2vec_vit_base_in1k() -> Pretrain:
    """data2vec, ViT-B/16, ImageNet-1K, 800 epochs.

    pantomim pretrain data2vec_vit_base_in1k --data /path/to/imagenet --out runs/data2vec_b
    """
    return _in1k("data2vec_vit_base_in1k", "base")


def data2vec_vit_large_in1k() -> Pretrain:
    """data2vec, ViT-L/16, ImageNet-1K, the first 800 of 1600 epochs.

    pantomim pretrain data2vec_vit_large_in1k --data /path/to/imagenet --out runs/data2vec_l
    """
    return _in1k("data2vec_vit_large_in1k", "large")


_NOTES = (
    "attention dropout: none, where the authors have 0.05 (ViT-L: 0.15)",
    "betas and final rate: not stated for the launch; those of BEiT, whose code it is",
    "colour jitter: after the crop, where the authors' comes before; contrast turns about the mean of the part",
)

RECIPES = (
    Recipe(
        data2vec_vit_base_in1k,
        cost="not measured by us; the authors give none",
        expected="not stated in the authors' repository",
        paper=data2vec_vit_base_in1k,
        notes=_NOTES,
    ),
    Recipe(
        data2vec_vit_large_in1k,
        cost="not measured by us; the authors give none",
        expected="not stated in the authors' repository",
        paper=data2vec_vit_large_in1k,
        notes=(*_NOTES, "a second run of 800 epochs follows, --init of the first, with momentum 0.9999"),
    ),
)


def data2vec(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """data2vec for any images: `--size` and the data decide the rest; the numbers below base are ours.

    The teacher forgets half of itself in a fiftieth of 400 epochs, or of what `--steps` and `--epochs` say; where
    `--duration.steps` says it, give `--method.target.teacher.momentum` too.

    pantomim pretrain data2vec --data my_photos/ --out runs/photos

    Args:
        size: Name of the encoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and deviation.
        start: Encoder to go on from: all but its image size is kept.
    """
    chosen = choose_encoder(size, facts, stats, start)
    encoder = chosen if start is not None else as_beit(chosen)
    paper, batch_size, epochs = data2vec_paper(encoder.width), choose_batch_size(facts), 400
    half_life = max(epochs * facts.num_images / batch_size / 50, 1.0)
    return replace(
        paper,
        recipe="data2vec",
        data=DataConfig(augment=JITTER if facts.channels == 3 and facts.dtype in ("uint8", "uint16") else Augment()),
        method=_around(encoder, round(momentum_of_half_life(half_life), 6)),
        optim=replace(
            paper.optim,
            base_lr=paper.optim.base_lr if encoder.width >= 768 else 6e-4,
            warmup=Duration(epochs=20),
        ),
        batch_size=batch_size,
        duration=Duration(epochs=epochs),
    )


def data2vec_paper(width: int) -> Pretrain:
    """The paper's recipe nearest to an encoder's width: what `explain` compares with."""
    return data2vec_vit_large_in1k() if nearest_size(width) in ("large", "huge") else data2vec_vit_base_in1k()
