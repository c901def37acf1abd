"""Recipes of the supervised baseline, DeiT's without distillation.

Paper: Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*,
arXiv:2012.12877; the numbers are those of Table 9 and, where it is silent, of the authors' code
(github.com/facebookresearch/deit, `main.py`).
"""

from dataclasses import replace
from typing import Any, Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.transforms import Crop
from pantomim.methods.supervised import SupervisedConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import ON_CIFAR10, Family, Scale, scale, with_parts

# Table 9: RandAugment 9/0.5, erasing 0.25; main.py: rand-m9-mstd0.5-inc1, two operations as timm has it, mode pixel.
AUGMENT = Augment(rand_augment=2, rand_magnitude=9.0, rand_std=0.5, erasing=0.25)


def in1k(size: Literal["small", "base"]) -> Pretrain:
    """Table 9 and the code, field by field."""
    return Pretrain(
        recipe="supervised",
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True), augment=AUGMENT),  # datasets.py: timm's range; flip
        method=SupervisedConfig(
            encoder=EncoderConfig(position="learned", drop_path=0.1, **ENCODER_SIZES[size]),  # models.py; Table 9
            num_classes=1000,
            pool="class",  # models.py
            head_init="deit",  # models.py
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
        ),
        batch_size=1024,  # Table 9
        duration=Duration(epochs=300),  # Table 9
    )


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """The data decide the classes and what is done to colours; positions are MAE's, so that encoders compare."""
    if to.facts.num_classes is None:
        raise ValueError(
            "supervised must have labels to learn from; got images without them. Put the images of each class into a "
            "folder, give labels in an .npz or a list, or train without labels: pantomim pretrain mae."
        )
    method: Any = paper.method
    encoder = replace(method.encoder, position="sincos")
    pool = "class" if to.encoder.class_token else "normed_mean"
    run = scale(with_parts(paper, encoder=encoder, num_classes=to.facts.num_classes, pool=pool), to)
    augment = replace(AUGMENT, rand_augment=2 if to.in_colour else 0, mean=to.encoder.mean, std=to.encoder.std)
    return replace(run, data=replace(run.data, augment=augment))


_SCORE = "top-1 of the classifier (the authors' README)"

SUPERVISED = Family(
    "supervised",
    "Supervised (DeiT)",
    in1k,
    {
        "small": ("under 3 days on 4 GPUs (the paper's, on training time)", f"79.9 {_SCORE}"),
        "base": ("37 h on two nodes, or 53 h on one of 8 V100 (the paper's, on training time)", f"81.8 {_SCORE}"),
    },
    small=ON_CIFAR10,
    rescale=rescale,
    bare="supervised",
    idea="nothing is masked: classes, from labels; a baseline",
    notes=(
        "repeated augmentation: none; the authors show three crops of an image, and a third of the images an epoch",
        "rate: rises from 0 and changes with every step; the authors' rises from 1e-6 and changes with every epoch",
        "initial weights: Xavier-uniform matrices (MAE's), where the authors' are normal with std 0.02; the head's are",
        "EMA of the weights: none, where the authors' code keeps one beside them (0.99996)",
    ),
)
