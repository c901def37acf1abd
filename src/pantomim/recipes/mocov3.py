"""Recipes of MoCo v3.

Paper: Chen, Xie, He 2021, *An Empirical Study of Training Self-Supervised Vision Transformers*, arXiv:2104.02057; the
numbers are those of the authors' code (github.com/facebookresearch/moco-v3, `CONFIG.md` and the defaults of
`main_moco.py`).
"""

import math
from dataclasses import replace
from typing import Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.transforms import Crop, View
from pantomim.methods.mocov3 import MoCoV3Config, moco_encoder
from pantomim.nn.momentum import Momentum
from pantomim.nn.vit import ENCODER_SIZES
from pantomim.recipes import mae, recipe

SMALL_LR = 3.5e-4  # as `recipe.SMALL_LR`: 1e-3 at a batch of 256, the rate of `mocov3_micro_cifar10`
# main_moco.py: the two kinds of views of BYOL, with weaker colours ("not strengthened").
_COLOURS = Augment(jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8, grayscale=0.2)
_FIRST = replace(_COLOURS, blur=1.0, blur_sigma=(0.1, 2.0))
_SECOND = replace(_COLOURS, blur=0.1, blur_sigma=(0.1, 2.0), solarise=0.2)


def in1k(size: Literal["small", "base"]) -> Pretrain:
    """`CONFIG.md`, "ViT Models"; what it leaves out has the default of `main_moco.py`."""
    run = mae.in1k("base")  # --lr 1.5e-4, --warmup-epochs 40, --batch-size 4096, a last rate of 0: as MAE
    crop = Crop(scale=(0.08, 1.0), flip=True, interpolation="bilinear")  # --crop-min; torchvision's default
    method = MoCoV3Config(
        encoder=moco_encoder(size),  # vits.py
        hidden=4096,  # --moco-mlp-dim
        dim=256,  # --moco-dim
        temperature=0.2,  # --moco-t
        momentum=Momentum(0.99, 1.0),  # --moco-m, --moco-m-cos
        freeze_patches=True,  # --stop-grad-conv1
    )
    optim = replace(
        run.optim,
        weight_decay=0.1,  # --weight-decay
        decay_vectors=True,  # one group of all parameters
        betas=(0.9, 0.999),  # torch's
    )
    data = DataConfig(crop=crop, augment=_FIRST, second=View(crop, _SECOND))
    return replace(run, data=data, method=method, optim=optim, duration=Duration(epochs=300))  # --epochs


def rescale(paper: Pretrain, to: recipe.Scale) -> Pretrain:
    """Two views of one kind, without blur; below ViT-S narrower heads and a trained patch projection (ours)."""
    run = recipe.scale(paper, to)
    small = to.encoder.width < ENCODER_SIZES["small"]["width"]
    if small:
        run = recipe.with_parts(run, hidden=512, dim=128, freeze_patches=False)
    if to == recipe.CIFAR10["micro"]:  # large batches, as views are compared within them, and a sixth of MAE's steps
        data = replace(run.data, crop=replace(run.data.crop, scale=(0.2, 1.0)))
        optim = OptimConfig(base_lr=1e-3, warmup=Duration(steps=100))
        run = replace(run, data=data, optim=optim, batch_size=256, duration=Duration(steps=1000))
    elif to.optim is None:
        twice = 2 * run.batch_size  # views are compared within a batch
        if to.micro and twice <= min(max(to.facts.num_images, 8), recipe.MICRO_PATCHES // math.prod(to.encoder.grid)):
            run = replace(run, batch_size=twice)
        base_lr = recipe.small_lr(to.encoder.width, run.batch_size, SMALL_LR) if small else paper.optim.base_lr
        run = replace(run, optim=replace(run.optim, base_lr=base_lr), duration=paper.duration)
    augment = _COLOURS if to.in_colour else Augment()
    return replace(run, data=replace(run.data, augment=augment, second=View(run.data.crop, augment)))


MOCO_V3 = recipe.Family(
    "mocov3",
    "MoCo v3",
    in1k,
    {
        "small": (recipe.NOT_MEASURED, "73.2 linear (the authors', CONFIG.md)"),
        "base": (recipe.NOT_MEASURED, "76.7 linear (the authors', CONFIG.md)"),
    },
    small=recipe.ON_CIFAR10,
    rescale=rescale,
    bare="mocov3",
    idea="nothing is masked: two views of an image alike, and unlike those of others",
)
