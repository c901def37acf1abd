"""Recipes of SimMIM: the pixels of coarse hidden cells, predicted by one linear layer.

Paper: Xie et al. 2022, *SimMIM: a Simple Framework for Masked Image Modeling*, arXiv:2111.09886; the numbers are those
of the authors' code (github.com/microsoft/SimMIM, `configs/vit_base__800ep`, `config.py`).
"""

from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.masking.grid import GridMasker
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.beit import as_beit
from pantomim.recipes.mae import choose_batch_size, choose_encoder
from pantomim.recipes.recipe import Recipe
from pantomim.targets.distance import Distance
from pantomim.targets.pixels import PixelTargetConfig


def _around(encoder: EncoderConfig) -> BEiTConfig:
    """SimMIM is BEiT with other masks, another target and a head that begins as torch's layers do."""
    return BEiTConfig(
        encoder=encoder,
        masker=GridMasker(ratio=0.6, cell=2),  # data_simmim.py: cells of 32 pixels
        target=PixelTargetConfig(normalise="none", distance=Distance("l1")),  # simmim.py
        initialise_head=False,  # simmim.py
    )


def simmim_vit_base_in1k() -> Pretrain:
    """SimMIM, ViT-B/16, ImageNet-1K, 800 epochs.

    pantomim pretrain simmim_vit_base_in1k --data /path/to/imagenet --out runs/simmim_b
    """
    return Pretrain(
        recipe="simmim_vit_base_in1k",
        data=DataConfig(crop=Crop(scale=(0.67, 1.0), flip=True)),  # data_simmim.py
        method=_around(beit_encoder("base", drop_path=0.1)),
        optim=OptimConfig(
            base_lr=1e-4 / 2,  # config.py: 1e-4 per 512 images
            min_lr=4e-5,  # a tenth of 4e-4
            start_lr=5e-7 * 4,  # 5e-7 per 512 images
            warmup=Duration(epochs=10),
            weight_decay=0.05,
            schedule="drop",  # a tenth from epoch 700 on
            lagging=True,  # main_simmim.py: the schedule moves on after the step
            decay_tokens=False,  # optimizer.py: no class token, no positions ...
            decay_mask_token=True,  # ... but the mask token
            betas=(0.9, 0.999),
            clip_norm=5.0,
        ),
        batch_size=2048,  # not stated for ViT; the Swin example's
        duration=Duration(epochs=800),
    )


RECIPES = (
    Recipe(
        simmim_vit_base_in1k,
        cost="not measured by us; the authors give none",
        expected="83.8 fine-tuned (the authors' README)",
        paper=simmim_vit_base_in1k,
        notes=(
            "batch size: not stated for ViT; 2048 is that of the authors' Swin example",
            "resizing: bicubic, where the authors leave torchvision's default, bilinear",
        ),
    ),
)


def simmim(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """SimMIM for any images: `--size` and the data decide the rest; the numbers below base are ours.

    pantomim pretrain simmim --data my_photos/ --out runs/photos

    Args:
        size: Name of the encoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and deviation.
        start: Encoder to go on from: all but its image size is kept.
    """
    chosen = choose_encoder(size, facts, stats, start)
    encoder = chosen if start is not None else as_beit(chosen)
    paper, batch_size = simmim_vit_base_in1k(), choose_batch_size(facts)
    base_lr = paper.optim.base_lr if encoder.width >= 768 else 6e-4
    return replace(
        paper,
        recipe="simmim",
        data=DataConfig(),
        method=_around(encoder),
        optim=replace(
            paper.optim,
            base_lr=base_lr,
            min_lr=base_lr * batch_size / 256 / 10,  # a tenth
            start_lr=0.0,
            warmup=Duration(epochs=20),
        ),
        batch_size=batch_size,
        duration=Duration(epochs=400),
    )


def simmim_paper(width: int) -> Pretrain:
    """The recipe that `explain` compares with, whatever the encoder's width."""
    return simmim_vit_base_in1k()
