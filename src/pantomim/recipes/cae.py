"""Recipes of CAE: the authors' for ImageNet-1K, with 75 and with 98 hidden patches, ours for small images and any data.

Paper: Chen et al., *Context Autoencoder for Self-Supervised Representation Learning*, arXiv:2202.03026; the numbers are
those of the authors' PyTorch release (`scripts/cae_base_800e.sh`, `scripts/cae_large_1600e.sh`, and where these are
silent `run_pretraining.py`), and for 75 hidden patches of their PaddlePaddle release.
"""

from dataclasses import replace
from typing import Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.methods.cae import CAEConfig, Size, preset
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.mae import (
    choose_batch_size,
    choose_encoder,
    mae_micro_cifar10,
    mae_tiny_cifar10,
    nearest_size,
)
from pantomim.recipes.recipe import Recipe


def _in1k(recipe: str, size: Size, num_masked: Literal[75, 98]) -> Pretrain:
    """The authors' scripts, field by field; `preset` has those of the networks and masks."""
    return Pretrain(
        recipe=recipe,
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True)),  # datasets.py: torchvision's range, no colour jitter
        method=preset(size, num_masked),
        optim=OptimConfig(
            base_lr=1.5e-3 * 256 / 2048,  # 1.5e-3 at 2048
            min_lr=1e-5,
            # 20 of 800 epochs, 40 of 1600; the PaddlePaddle release has 10 of 800
            warmup=Duration(epochs=20 if num_masked == 75 else 40),
            weight_decay=0.05,
            schedule="beit",  # utils.py
            decay_tokens=True,  # the code excludes nothing but vectors; positions are fixed
            betas=(0.9, 0.999),
            clip_norm=3.0,
        ),
        batch_size=2048,  # 64 on each of 32 GPUs
        duration=Duration(epochs=800 if num_masked == 75 else 1600),  # the checkpoints of the README: 300, 800, 1600
    )


def cae_vit_small_in1k() -> Pretrain:
    """CAE, ViT-S/16, 75 hidden patches, ImageNet-1K, 800 epochs.

    pantomim pretrain cae_vit_small_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/cae_s
    """
    return _in1k("cae_vit_small_in1k", "small", 75)


def cae_vit_base_in1k() -> Pretrain:
    """CAE, ViT-B/16, 75 hidden patches, ImageNet-1K, 800 epochs.

    pantomim pretrain cae_vit_base_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/cae_b
    """
    return _in1k("cae_vit_base_in1k", "base", 75)


def cae_vit_large_in1k() -> Pretrain:
    """CAE, ViT-L/16, 75 hidden patches, ImageNet-1K, 800 epochs.

    pantomim pretrain cae_vit_large_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/cae_l
    """
    return _in1k("cae_vit_large_in1k", "large", 75)


def cae_98_vit_small_in1k() -> Pretrain:
    """CAE, ViT-S/16, 98 hidden patches, ImageNet-1K, 1600 epochs.

    pantomim pretrain cae_98_vit_small_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/cae_s
    """
    return _in1k("cae_98_vit_small_in1k", "small", 98)


def cae_98_vit_base_in1k() -> Pretrain:
    """CAE, ViT-B/16, 98 hidden patches as in the published checkpoints, ImageNet-1K, 1600 epochs.

    pantomim pretrain cae_98_vit_base_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/cae_b
    """
    return _in1k("cae_98_vit_base_in1k", "base", 98)


def cae_98_vit_large_in1k() -> Pretrain:
    """CAE, ViT-L/16, 98 hidden patches as in the published checkpoints, ImageNet-1K, 1600 epochs.

    pantomim pretrain cae_98_vit_large_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/cae_l
    """
    return _in1k("cae_98_vit_large_in1k", "large", 98)


def as_cae(encoder: EncoderConfig) -> EncoderConfig:
    """An encoder of the same sizes with CAE's positions, biases, scales and first values; no stochastic depth."""
    large = encoder.depth > 12
    return replace(
        encoder,
        position="sincos_rows_first",
        attention_bias="qv",
        layer_scale=1e-5 if large else 0.1,
        initialisation="beit" if large else "cae",
    )


def _around(encoder: EncoderConfig, depth: int) -> CAEConfig:
    """Regressor and decoder as wide as the encoder and as deep as said, with its scales."""
    return CAEConfig(
        encoder=encoder,
        regressor=RegressorConfig(depth=depth, layer_scale=encoder.layer_scale),
        decoder=LatentDecoderConfig(depth=depth, layer_scale=encoder.layer_scale),
    )


def _beside(base: Pretrain, recipe: str, depth: int) -> Pretrain:
    """CAE with the data, sizes, rates and length of one of MAE's small recipes."""
    assert isinstance(base.method, MAEConfig), "MAE's recipes are MAE"
    return replace(base, recipe=recipe, method=_around(as_cae(base.method.encoder), depth))


def cae_tiny_cifar10() -> Pretrain:
    """CAE, ViT-Ti/4, CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU.

    pantomim pretrain cae_tiny_cifar10 --data cifar10.zip --tokenizer runs/tokenizer --out runs/cae_tiny
    """
    return _beside(mae_tiny_cifar10(), "cae_tiny_cifar10", 4)


def cae_micro_cifar10() -> Pretrain:
    """CAE, micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores.

    pantomim pretrain cae_micro_cifar10 --data cifar10.zip --tokenizer runs/tokenizer --out runs/cae_micro
    """
    return _beside(mae_micro_cifar10(), "cae_micro_cifar10", 1)


_SMALL = "data, sizes of the encoder, rates and length are those of MAE's recipe of this size"
_UNSTATED = "the authors state no recipe of ViT-S: all but its sizes is ViT-B's"
_75 = "warm-up: 20 of 800 epochs as in the authors' PyTorch release; their PaddlePaddle release has 10"
_UNMEASURED = "not measured by us; the authors give none"

RECIPES = (
    Recipe(cae_vit_small_in1k, _UNMEASURED, "not published", cae_vit_small_in1k, (_UNSTATED, _75)),
    Recipe(cae_vit_base_in1k, _UNMEASURED, "not published for 75 hidden patches", cae_vit_base_in1k, (_75,)),
    Recipe(
        cae_vit_large_in1k,
        _UNMEASURED,
        "not published for 75 hidden patches",
        cae_vit_large_in1k,
        (_75,),
    ),
    Recipe(cae_98_vit_small_in1k, _UNMEASURED, "not published", cae_98_vit_small_in1k, (_UNSTATED,)),
    Recipe(
        cae_98_vit_base_in1k,
        cost=_UNMEASURED,
        expected="83.9 fine-tuned, 77.2 attentive, 70.3 linear (the authors' README)",
        paper=cae_98_vit_base_in1k,
    ),
    Recipe(
        cae_98_vit_large_in1k,
        cost=_UNMEASURED,
        expected="86.2 fine-tuned, 81.2 attentive, 77.8 linear (the authors' README)",
        paper=cae_98_vit_large_in1k,
    ),
    Recipe(cae_micro_cifar10, "not measured yet", "not measured yet", cae_vit_base_in1k, (_SMALL,)),
    Recipe(cae_tiny_cifar10, "not measured yet", "not measured yet", cae_vit_base_in1k, (_SMALL,)),
)


def cae(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """CAE for any images: `--size` and the data decide the rest; the numbers below small are ours, not the paper's.

    pantomim pretrain cae --data my_photos/ --tokenizer runs/tokenizer --out runs/photos

    Args:
        size: Name of the encoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and deviation.
        start: Encoder to go on from: all but its image size is kept.
    """
    chosen = choose_encoder(size, facts, stats, start)
    encoder = chosen if start is not None else as_cae(chosen)
    paper = cae_paper(encoder.width)
    return replace(
        paper,
        recipe="cae",
        data=DataConfig(),
        method=_around(encoder, 1 if encoder.depth < 12 else 4),
        optim=replace(
            paper.optim,
            base_lr=paper.optim.base_lr if encoder.width >= 768 else 6e-4,
            warmup=Duration(epochs=20),
        ),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=400),
    )


def cae_paper(width: int) -> Pretrain:
    """The recipe nearest to an encoder's width, with 75 hidden patches: what `explain` compares with."""
    name = nearest_size(width)
    if name in ("large", "huge"):
        return cae_vit_large_in1k()
    return cae_vit_base_in1k() if name == "base" else cae_vit_small_in1k()
