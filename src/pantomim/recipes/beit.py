"""Recipes of BEiT: the paper's for ImageNet-1K, ours for small images and for any data.

Paper: Bao et al. 2022, *BEiT: BERT Pre-Training of Image Transformers*, arXiv:2106.08254; the numbers are those of
Table 12 and, where it is silent, of the authors' code (github.com/microsoft/unilm, `beit/`).
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
from pantomim.methods.mae import MAEConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.mae import (
    choose_batch_size,
    choose_encoder,
    mae_micro_cifar10,
    mae_tiny_cifar10,
    nearest_size,
)
from pantomim.recipes.recipe import Recipe
from pantomim.targets.tokens import TokenTargetConfig

# datasets.py: brightness, contrast and saturation; section 2.5 says "color jittering" without the strength.
JITTER = Augment(jitter=(0.4, 0.4, 0.4, 0.0))


def _in1k(recipe: str, size: Literal["base", "large"]) -> Pretrain:
    """Table 12 and the code, field by field."""
    return Pretrain(
        recipe=recipe,
        data=DataConfig(
            crop=Crop(scale=(0.08, 1.0), flip=True),  # datasets.py: torchvision's range; flip
            augment=JITTER,
        ),
        method=BEiTConfig(
            encoder=beit_encoder(size, drop_path=0.1),  # Table 12
            masker=BlockMasker(ratio=75 / 196, exact=False),  # section 2.5: at most 75; min_area 16 in the code
            target=TokenTargetConfig(),  # section 2.5: DALL-E's 8192 ids; a tokenizer of one's own may have others
        ),
        optim=OptimConfig(
            base_lr=1.5e-3 * 256 / 2048,  # Table 12: 1.5e-3 at 2048
            min_lr=1e-5,  # Table 12
            warmup=Duration(epochs=10),  # the code's README
            weight_decay=0.05,  # Table 12
            schedule="beit",  # utils.py
            decay_tokens=False,  # optim_factory.py: no class token, no positions, ...
            decay_mask_token=True,  # ... but the mask token
            betas=(0.9, 0.999),  # Table 12
            clip_norm=1.0 if size == "large" else 3.0,  # Table 12
        ),
        batch_size=2048,  # Table 12
        duration=Duration(epochs=800),  # section 2.5
    )


def beit_vit_base_in1k() -> Pretrain:
    """BEiT, ViT-B/16, ImageNet-1K, 800 epochs.

    pantomim pretrain beit_vit_base_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/beit_b
    """
    return _in1k("beit_vit_base_in1k", "base")


def beit_vit_large_in1k() -> Pretrain:
    """BEiT, ViT-L/16, ImageNet-1K, 800 epochs.

    pantomim pretrain beit_vit_large_in1k --data /path/to/imagenet --tokenizer dalle:encoder.pkl --out runs/beit_l
    """
    return _in1k("beit_vit_large_in1k", "large")


def as_beit(encoder: EncoderConfig) -> EncoderConfig:
    """An encoder of the same sizes with BEiT's positions, biases, scales and first values; no stochastic depth."""
    return replace(
        encoder,
        position="none",
        relative_position="shared",
        attention_bias="qv",
        layer_scale=1e-5 if encoder.depth > 12 else 0.1,  # ViT-L: 1e-5
        initialisation="beit",
    )


def _beside(base: Pretrain, recipe: str) -> Pretrain:
    """BEiT with the data, sizes, rates and length of one of MAE's small recipes."""
    assert isinstance(base.method, MAEConfig), "MAE's recipes are MAE"
    method = BEiTConfig(encoder=as_beit(base.method.encoder))
    return replace(base, recipe=recipe, data=replace(base.data, augment=JITTER), method=method)


def beit_tiny_cifar10() -> Pretrain:
    """BEiT, ViT-Ti/4, CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU.

    pantomim pretrain beit_tiny_cifar10 --data cifar10.zip --tokenizer runs/tokenizer --out runs/beit_tiny
    """
    return _beside(mae_tiny_cifar10(), "beit_tiny_cifar10")


def beit_micro_cifar10() -> Pretrain:
    """BEiT, micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores.

    pantomim pretrain beit_micro_cifar10 --data cifar10.zip --tokenizer runs/tokenizer --out runs/beit_micro
    """
    return _beside(mae_micro_cifar10(), "beit_micro_cifar10")


_SMALL = "data, sizes of the encoder, rates and length are those of MAE's recipe of this size"
_NOTES = ("colour jitter: after the crop, where the authors' comes before; contrast turns about the mean of the part",)

RECIPES = (
    Recipe(
        beit_vit_base_in1k,
        cost="5 days on 16 V100 of 32 GB (the paper's, section 2.5)",
        expected="83.2 fine-tuned, 56.7 linear from a middle layer (the paper's, Tables 1 and 9)",
        paper=beit_vit_base_in1k,
        notes=_NOTES,
    ),
    Recipe(
        beit_vit_large_in1k,
        cost="not measured by us; the paper gives ViT-B's only",
        expected="85.2 fine-tuned, 73.5 linear from a middle layer (the paper's, Tables 1 and 9)",
        paper=beit_vit_large_in1k,
        notes=_NOTES,
    ),
    Recipe(
        beit_micro_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=beit_vit_base_in1k,
        notes=(*_NOTES, _SMALL),
    ),
    Recipe(
        beit_tiny_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=beit_vit_base_in1k,
        notes=(*_NOTES, _SMALL),
    ),
)


def beit(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """BEiT for any images: `--size` and the data decide the rest; the numbers below base are ours, not the paper's.

    pantomim pretrain beit --data my_photos/ --tokenizer runs/tokenizer --out runs/photos

    Args:
        size: Name of the encoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and deviation.
        start: Encoder to go on from: all but its image size is kept.
    """
    chosen = choose_encoder(size, facts, stats, start)
    encoder = chosen if start is not None else as_beit(chosen)
    paper = beit_paper(encoder.width)
    return replace(
        paper,
        recipe="beit",
        data=DataConfig(augment=JITTER if facts.channels == 3 and facts.dtype in ("uint8", "uint16") else Augment()),
        method=BEiTConfig(encoder=encoder),
        optim=replace(
            paper.optim,
            base_lr=paper.optim.base_lr if encoder.width >= 768 else 6e-4,
            warmup=Duration(epochs=20),
        ),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=400),
    )


def beit_paper(width: int) -> Pretrain:
    """The paper's recipe nearest to an encoder's width: what `explain` compares with."""
    return beit_vit_large_in1k() if nearest_size(width) in ("large", "huge") else beit_vit_base_in1k()
