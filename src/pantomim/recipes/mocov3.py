"""Recipes of MoCo v3: the paper's for ImageNet-1K, ours for small images and for any data.

Paper: Chen, Xie, He 2021, *An Empirical Study of Training Self-Supervised Vision Transformers*, arXiv:2104.02057; the
numbers are those of the authors' code (github.com/facebookresearch/moco-v3, `CONFIG.md` and the defaults of
`main_moco.py`).
"""

from dataclasses import replace
from typing import Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop, View
from pantomim.methods.mae import MAEConfig
from pantomim.methods.mocov3 import MoCoV3Config, moco_encoder
from pantomim.nn.momentum import Momentum
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.mae import (
    choose_batch_size,
    choose_encoder,
    mae_micro_cifar10,
    mae_tiny_cifar10,
    nearest_size,
)
from pantomim.recipes.recipe import Recipe

# main_moco.py: the two kinds of views of BYOL, with weaker colours ("not strengthened").
_COLOURS = Augment(jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8, grayscale=0.2)
_CROP = Crop(scale=(0.08, 1.0), flip=True)  # --crop-min
_FIRST = replace(_COLOURS, blur=1.0, blur_sigma=(0.1, 2.0))
_SECOND = replace(_COLOURS, blur=0.1, blur_sigma=(0.1, 2.0), solarise=0.2)


def _in1k(recipe: str, size: Literal["small", "base"]) -> Pretrain:
    """`CONFIG.md`, "ViT Models", field by field; what it leaves out has the default of `main_moco.py`."""
    return Pretrain(
        recipe=recipe,
        data=DataConfig(crop=_CROP, augment=_FIRST, second=View(_CROP, _SECOND)),
        method=MoCoV3Config(
            encoder=moco_encoder(size),  # vits.py
            hidden=4096,  # --moco-mlp-dim
            dim=256,  # --moco-dim
            temperature=0.2,  # --moco-t
            momentum=Momentum(0.99, 1.0),  # --moco-m, --moco-m-cos
            freeze_patches=True,  # --stop-grad-conv1
        ),
        optim=OptimConfig(
            base_lr=1.5e-4,  # --lr
            min_lr=0.0,  # adjust_learning_rate
            warmup=Duration(epochs=40),  # --warmup-epochs
            weight_decay=0.1,  # --weight-decay
            decay_tokens=True,  # one group of all parameters
            decay_vectors=True,  # the same
            betas=(0.9, 0.999),  # torch's
            clip_norm=None,
        ),
        batch_size=4096,  # --batch-size
        duration=Duration(epochs=300),  # --epochs
    )


def mocov3_vit_small_in1k() -> Pretrain:
    """MoCo v3, ViT-S/16 with twelve heads, ImageNet-1K, 300 epochs.

    pantomim pretrain mocov3_vit_small_in1k --data /path/to/imagenet --out runs/moco_s
    """
    return _in1k("mocov3_vit_small_in1k", "small")


def mocov3_vit_base_in1k() -> Pretrain:
    """MoCo v3, ViT-B/16, ImageNet-1K, 300 epochs.

    pantomim pretrain mocov3_vit_base_in1k --data /path/to/imagenet --out runs/moco_b
    """
    return _in1k("mocov3_vit_base_in1k", "base")


def as_moco(encoder: EncoderConfig) -> EncoderConfig:
    """An encoder of the same sizes with MoCo v3's positions and first values."""
    return replace(encoder, position="sincos_rows_first", initialisation="mocov3")


def small_method(encoder: EncoderConfig) -> MoCoV3Config:
    """The method around an encoder below ViT-S: narrower heads, and a patch projection that is trained (ours)."""
    return MoCoV3Config(encoder=encoder, hidden=512, dim=128, freeze_patches=False)


def mocov3_tiny_cifar10() -> Pretrain:
    """MoCo v3, ViT-Ti/4, CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU.

    pantomim pretrain mocov3_tiny_cifar10 --data cifar10.zip --out runs/moco_tiny
    """
    base = mae_tiny_cifar10()
    assert isinstance(base.method, MAEConfig), "MAE's recipes are MAE"
    return replace(
        base,
        recipe="mocov3_tiny_cifar10",
        data=replace(base.data, augment=_COLOURS, second=View(base.data.crop, _COLOURS)),  # 32 pixels: no blur
        method=small_method(as_moco(base.method.encoder)),
        optim=replace(base.optim, base_lr=3e-4),
    )


def mocov3_micro_cifar10() -> Pretrain:
    """MoCo v3, micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores.

    pantomim pretrain mocov3_micro_cifar10 --data cifar10.zip --out runs/moco_micro
    """
    base = mae_micro_cifar10()
    assert isinstance(base.method, MAEConfig), "MAE's recipes are MAE"
    crop = replace(base.data.crop, scale=(0.2, 1.0))
    return replace(
        base,
        recipe="mocov3_micro_cifar10",
        data=replace(base.data, crop=crop, augment=_COLOURS, second=View(crop, _COLOURS)),
        method=small_method(as_moco(base.method.encoder)),
        optim=OptimConfig(base_lr=1e-3, warmup=Duration(steps=100)),
        batch_size=256,
        duration=Duration(steps=1000),
    )


_SMALL = "untuned; sizes of the encoder and images are those of MAE's recipe of this size"

RECIPES = (
    Recipe(
        mocov3_vit_small_in1k,
        cost="not measured by us",
        expected="73.2 linear (the authors', CONFIG.md)",
        paper=mocov3_vit_small_in1k,
    ),
    Recipe(
        mocov3_vit_base_in1k,
        cost="not measured by us",
        expected="76.7 linear (the authors', CONFIG.md)",
        paper=mocov3_vit_base_in1k,
    ),
    Recipe(
        mocov3_micro_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=mocov3_vit_small_in1k,
        notes=(_SMALL,),
    ),
    Recipe(
        mocov3_tiny_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=mocov3_vit_small_in1k,
        notes=(_SMALL,),
    ),
)


def mocov3(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """MoCo v3 for any images: `--size` and the data decide the rest; the numbers below small are ours, not the paper's.

    pantomim pretrain mocov3 --data my_photos/ --out runs/photos

    Args:
        size: Name of the encoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and deviation.
        start: Encoder to go on from: all but its image size is kept.
    """
    chosen = choose_encoder(size, facts, stats, start)
    encoder = chosen if start is not None else as_moco(chosen)
    paper, large = mocov3_paper(encoder.width), encoder.width >= 384
    crop = Crop(scale=(0.2, 1.0))
    augment = _COLOURS if facts.channels == 3 and facts.dtype in ("uint8", "uint16") else Augment()
    return replace(
        paper,
        recipe="mocov3",
        data=DataConfig(crop=crop, augment=augment, second=View(crop, augment)),
        method=MoCoV3Config(encoder=encoder) if large else small_method(encoder),
        optim=replace(paper.optim, base_lr=paper.optim.base_lr if large else 1e-3, warmup=Duration(epochs=20)),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=300),
    )


def mocov3_paper(width: int) -> Pretrain:
    """The paper's recipe nearest to an encoder's width: what `explain` compares with."""
    small = nearest_size(width) in ("micro", "tiny", "small")
    return mocov3_vit_small_in1k() if small else mocov3_vit_base_in1k()
