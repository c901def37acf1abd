"""Recipes of the supervised baseline: DeiT's for ImageNet-1K, ours for small images and for any labelled data.

Paper: Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*,
    arXiv:2012.12877; the numbers are those of Table 9 and, where it is silent, of the authors' code
    (github.com/facebookresearch/deit, `main.py`). Without distillation.
"""

from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.methods.mae import MAEConfig
from pantomim.methods.supervised import SupervisedConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.mae import choose_batch_size, choose_encoder, mae_micro_cifar10, mae_tiny_cifar10
from pantomim.recipes.recipe import Recipe

# Table 9: RandAugment 9/0.5, erasing 0.25; main.py: rand-m9-mstd0.5-inc1, two operations as timm has it, mode pixel.
AUGMENT = Augment(rand_augment=2, rand_magnitude=9.0, rand_std=0.5, erasing=0.25)


def _in1k(recipe: str, size: str) -> Pretrain:
    """Table 9 and the code, field by field."""
    return Pretrain(
        recipe=recipe,
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True), augment=AUGMENT),  # datasets.py: timm's range; flip
        method=SupervisedConfig(
            encoder=EncoderConfig(
                position="learned",  # models.py
                drop_path=0.1,  # Table 9: stochastic depth
                **ENCODER_SIZES[size],
            ),
            num_classes=1000,
            pool="class",  # models.py
            label_smoothing=0.1,  # Table 9
            mixup=0.8,  # Table 9
            cutmix=1.0,  # Table 9
        ),
        optim=OptimConfig(
            base_lr=5e-4 * 256 / 512,  # Table 9: 5e-4 per 512 images
            min_lr=1e-5,  # main.py
            warmup=Duration(epochs=5),  # Table 9
            weight_decay=0.05,  # Table 9
            decay_tokens=False,  # models.py: neither tokens nor positions
            betas=(0.9, 0.999),  # main.py: AdamW's own
            clip_norm=None,  # Table 9
        ),
        batch_size=1024,  # Table 9
        duration=Duration(epochs=300),  # Table 9
    )


def supervised_vit_small_in1k() -> Pretrain:
    """Supervised (DeiT-S), ViT-S/16, ImageNet-1K, 300 epochs.

    pantomim pretrain supervised_vit_small_in1k --data /path/to/imagenet --out runs/supervised_s
    """
    return _in1k("supervised_vit_small_in1k", "small")


def supervised_vit_base_in1k() -> Pretrain:
    """Supervised (DeiT-B), ViT-B/16, ImageNet-1K, 300 epochs.

    pantomim pretrain supervised_vit_base_in1k --data /path/to/imagenet --out runs/supervised_b
    """
    return _in1k("supervised_vit_base_in1k", "base")


def _beside(base: Pretrain, recipe: str) -> Pretrain:
    """The baseline with the data, encoder, rates and length of one of MAE's small recipes; ours, not tuned."""
    assert isinstance(base.method, MAEConfig), "MAE's recipes are MAE"
    encoder = base.method.encoder
    augment = replace(AUGMENT, mean=encoder.mean, std=encoder.std)
    return replace(
        base,
        recipe=recipe,
        data=replace(base.data, augment=augment),
        method=SupervisedConfig(encoder=encoder, num_classes=10),
    )


def supervised_tiny_cifar10() -> Pretrain:
    """Supervised, ViT-Ti/4, CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU.

    pantomim pretrain supervised_tiny_cifar10 --data cifar10.zip --out runs/supervised_tiny
    """
    return _beside(mae_tiny_cifar10(), "supervised_tiny_cifar10")


def supervised_micro_cifar10() -> Pretrain:
    """Supervised, micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores.

    pantomim pretrain supervised_micro_cifar10 --data cifar10.zip --out runs/supervised_micro
    """
    return _beside(mae_micro_cifar10(), "supervised_micro_cifar10")


_NOTES = (
    "repeated augmentation: none, where the authors show three crops of an image, and a third of the images an epoch",
    "rate: rises from 0 and changes with every step, where the authors' rises from 1e-6 and changes with every epoch",
    "first values: Xavier-uniform matrices (MAE's), where the authors' are normal with deviation 0.02; the head's are",
    "moving average of the weights: none, where the authors' code keeps one beside them (0.99996)",
)
_SMALL = "data, encoder, rates and length are those of MAE's recipe of this size; not tuned for labels"

RECIPES = (
    Recipe(
        supervised_vit_small_in1k,
        cost="under 3 days on 4 GPUs (the paper's, on training time)",
        expected="79.9 top-1 of the classifier (the authors' README)",
        paper=supervised_vit_small_in1k,
        notes=_NOTES,
    ),
    Recipe(
        supervised_vit_base_in1k,
        cost="37 h on two nodes, or 53 h on one of 8 V100 (the paper's, on training time)",
        expected="81.8 top-1 of the classifier (the authors' README)",
        paper=supervised_vit_base_in1k,
        notes=_NOTES,
    ),
    Recipe(
        supervised_micro_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=supervised_vit_base_in1k,
        notes=(*_NOTES, _SMALL),
    ),
    Recipe(
        supervised_tiny_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=supervised_vit_base_in1k,
        notes=(*_NOTES, _SMALL),
    ),
)


def supervised(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """Supervised for any labelled images: `--size` and the data decide the rest; the numbers below base are ours.

    pantomim pretrain supervised --data my_photos/ --out runs/photos

    Args:
        size: Name of the encoder's sizes.
        facts: Size, channels, number and classes of the images.
        stats: Their mean and deviation.
        start: Encoder to go on from: all but its image size is kept.

    Raises:
        ValueError: if the images have no labels.
    """
    if facts.num_classes is None:
        raise ValueError(
            "supervised learns from labels; got images without them. Put the images of each class into a folder of "
            "their own, give labels in an .npz or a list, or train without labels: pantomim pretrain mae."
        )
    encoder = choose_encoder(size, facts, stats, start)
    paper = supervised_vit_base_in1k()
    in_colour = facts.channels == 3 and facts.dtype in ("uint8", "uint16")
    return replace(
        paper,
        recipe="supervised",
        data=DataConfig(
            augment=replace(AUGMENT, rand_augment=2 if in_colour else 0, mean=encoder.mean, std=encoder.std)
        ),
        method=SupervisedConfig(
            encoder=encoder, num_classes=facts.num_classes, pool="class" if encoder.class_token else "mean"
        ),
        optim=replace(
            paper.optim, base_lr=paper.optim.base_lr if encoder.width >= 768 else 6e-4, warmup=Duration(epochs=20)
        ),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=400),
    )


def supervised_paper(width: int) -> Pretrain:
    """The paper's recipe nearest to an encoder's width: what `explain` compares with."""
    return supervised_vit_small_in1k() if width <= 384 else supervised_vit_base_in1k()
