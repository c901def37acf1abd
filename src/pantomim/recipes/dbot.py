"""Recipes of dBOT: the authors' for ImageNet-1K, ours for small images and any data.

Paper: Liu et al. 2024, *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917; the numbers are
those of the authors' code (github.com/liuxingbin/dbot, `PRETRAIN.md`, and where it is silent `main_pretrain.py`), the
scores those of its README.
"""

from dataclasses import replace
from typing import Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.masking.block import BlockMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.mae import (
    DECODER_SIZES,
    choose_batch_size,
    choose_encoder,
    mae_micro_cifar10,
    mae_tiny_cifar10,
    nearest_size,
)
from pantomim.recipes.recipe import Recipe
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.teachers.choice import TeacherConfig

Size = Literal["base", "large", "huge"]
STAGES = 2  # PRETRAIN.md: 0 800 1600; the reviews of the paper have 3 for detection and segmentation


def _in1k(recipe: str, size: Size) -> Pretrain:
    """`PRETRAIN.md`, field by field; one stage of two."""
    drop_path = 0.3 if size == "huge" else 0.2  # of the encoder and of the decoder
    return Pretrain(
        recipe=recipe,
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),  # main_pretrain.py
        method=DBOTConfig(
            encoder=EncoderConfig(
                image_size=(224, 224),
                patch_size=14 if size == "huge" else 16,
                drop_path=drop_path,
                **ENCODER_SIZES[size],
            ),
            decoder=replace(DECODER_SIZES[size], drop_path=drop_path),  # models_mae.py: 512 wide, 8 deep
            masker=RandomMasker(ratio=0.75),
            # --init_teacher_encoder_depth: 12 of ViT-B; of ViT-L and ViT-H 0, projected patches with their positions
            teacher=TeacherConfig(source="random", depth=None if size == "base" else 0),
        ),
        optim=OptimConfig(
            base_lr=1.5e-4,
            min_lr=0.0,
            warmup=Duration(epochs=40),  # in every stage
            weight_decay=0.05,
            decay_tokens=True,  # main_pretrain.py: all but vectors and biases
            betas=(0.9, 0.95),
            clip_norm=3.0 if size == "base" else None,
        ),
        batch_size=4096,  # 128 on each of 32 GPUs
        duration=Duration(epochs=800),  # of a stage
    )


def dbot_vit_base_in1k() -> Pretrain:
    """dBOT, ViT-B/16, ImageNet-1K, two stages of 800 epochs; the first teacher is random.

    pantomim pretrain dbot_vit_base_in1k --data /path/to/imagenet --out runs/dbot_b
    """
    return _in1k("dbot_vit_base_in1k", "base")


def dbot_vit_large_in1k() -> Pretrain:
    """dBOT, ViT-L/16, ImageNet-1K, two stages of 800 epochs; the first teacher is a random projection.

    pantomim pretrain dbot_vit_large_in1k --data /path/to/imagenet --out runs/dbot_l
    """
    return _in1k("dbot_vit_large_in1k", "large")


def dbot_vit_huge_in1k() -> Pretrain:
    """dBOT, ViT-H/14, ImageNet-1K, two stages of 800 epochs; the first teacher is a random projection.

    pantomim pretrain dbot_vit_huge_in1k --data /path/to/imagenet --out runs/dbot_h
    """
    return _in1k("dbot_vit_huge_in1k", "huge")


def _clip_in1k(recipe: str, size: Size) -> Pretrain:
    """The authors' branch beit (`PRETRAIN.md`, `run.sh`), field by field: one stage, symmetric, CLIP teaches."""
    patch_size = 14 if size == "huge" else 16
    encoder = EncoderConfig(
        image_size=(224, 224),
        patch_size=patch_size,
        position="none",
        relative_position="shared",
        attention_bias="qv",
        layer_scale=0.1,
        initialisation="beit",
        drop_path=0.1,
        **ENCODER_SIZES[size],
    )
    num_patches = encoder.grid[0] * encoder.grid[1]
    return Pretrain(
        recipe=recipe,
        data=DataConfig(crop=Crop(scale=(0.4, 1.0), flip=True), augment=Augment(jitter=(0.4, 0.4, 0.4, 0.0))),
        method=BEiTConfig(
            encoder=encoder,
            masker=BlockMasker(ratio=78 / num_patches, exact=False),  # 78 patches whatever the grid; min_area 16
            target=FeatureTargetConfig(
                teacher=TeacherConfig(output="projection"), normalise="none", distance=Distance("cosine")
            ),
        ),
        optim=OptimConfig(
            base_lr=3e-3 * 256 / 4096,  # 3e-3 at 4096
            min_lr=1e-5,
            warmup=Duration(epochs=10),
            weight_decay=0.05,
            schedule="beit",  # BEiT's utils.py
            decay_tokens=False,  # BEiT's optim_factory.py: no class token, ...
            decay_mask_token=True,  # ... but the mask token
            betas=(0.9, 0.98),
            eps=1e-6,
            clip_norm=3.0,
        ),
        batch_size=4096,
        duration=Duration(epochs=1600),
    )


def dbot_clip_vit_base_in1k() -> Pretrain:
    """dBOT, symmetric, ViT-B/16 with CLIP's B/16 as its teacher, ImageNet-1K, 1600 epochs in one stage.

    pantomim pretrain dbot_clip_vit_base_in1k --data /path/to/imagenet --teacher clip:ViT-B-16.pt --out runs/b
    """
    return _clip_in1k("dbot_clip_vit_base_in1k", "base")


def dbot_clip_vit_large_in1k() -> Pretrain:
    """dBOT, symmetric, ViT-L/16 with CLIP's L/14 as its teacher, ImageNet-1K, 1600 epochs in one stage.

    pantomim pretrain dbot_clip_vit_large_in1k --data /path/to/imagenet --teacher clip:ViT-L-14.pt --out runs/l
    """
    return _clip_in1k("dbot_clip_vit_large_in1k", "large")


def dbot_clip_vit_huge_in1k() -> Pretrain:
    """dBOT, symmetric, ViT-H/14 with CLIP's L/14 as its teacher, ImageNet-1K, 1600 epochs in one stage.

    pantomim pretrain dbot_clip_vit_huge_in1k --data /path/to/imagenet --teacher clip:ViT-L-14.pt --out runs/h
    """
    return _clip_in1k("dbot_clip_vit_huge_in1k", "huge")


def _beside(base: Pretrain, recipe: str) -> Pretrain:
    """A dBOT with the data, sizes, rates and length of one of MAE's small recipes, which is that of a stage."""
    assert isinstance(base.method, MAEConfig), "MAE's recipes are MAE"
    method = DBOTConfig(encoder=base.method.encoder, decoder=base.method.decoder)
    return replace(base, recipe=recipe, method=method, optim=replace(base.optim, clip_norm=3.0))


def dbot_tiny_cifar10() -> Pretrain:
    """dBOT, ViT-Ti/4, CIFAR-10's 50,000 images of 32x32, two stages of 400 epochs; for one GPU.

    pantomim pretrain dbot_tiny_cifar10 --data cifar10.zip --out runs/dbot_tiny
    """
    return _beside(mae_tiny_cifar10(), "dbot_tiny_cifar10")


def dbot_micro_cifar10() -> Pretrain:
    """dBOT, micro with patches of 4x4, on 10,000 images of CIFAR-10, two stages; for two CPU cores.

    pantomim pretrain dbot_micro_cifar10 --data cifar10.zip --out runs/dbot_micro
    """
    return _beside(mae_micro_cifar10(), "dbot_micro_cifar10")


_JITTER = "colour jitter: after the crop, where the authors' comes before; contrast turns about the mean of the part"
_CLIP_B = (_JITTER, "teacher: none by default; --teacher clip:FILE, open_clip:NAME or hf:NAME gives CLIP's ViT-B/16")
_CLIP_L = (_JITTER, "teacher: none by default; --teacher clip:FILE, open_clip:NAME or hf:NAME gives CLIP's ViT-L/14")
_UNMEASURED = "not measured by us; the authors give none"
_SMALL = (
    "data, sizes, rates and length of a stage are those of MAE's recipe of this size, without stochastic depth; "
    "nothing is tuned for dBOT",
)

RECIPES = (
    Recipe(
        dbot_vit_base_in1k,
        cost=_UNMEASURED,
        expected="84.5 fine-tuned (the authors' README)",
        paper=dbot_vit_base_in1k,
        stages=STAGES,
    ),
    Recipe(
        dbot_vit_large_in1k,
        cost=_UNMEASURED,
        expected="86.6 fine-tuned (the authors' README)",
        paper=dbot_vit_large_in1k,
        stages=STAGES,
    ),
    Recipe(
        dbot_vit_huge_in1k,
        cost=_UNMEASURED,
        expected="87.4 fine-tuned, 88.0 at 448 (the authors' README)",
        paper=dbot_vit_huge_in1k,
        stages=STAGES,
    ),
    Recipe(
        dbot_clip_vit_base_in1k,
        cost=_UNMEASURED,
        expected="85.7 fine-tuned (the authors' README)",
        paper=dbot_clip_vit_base_in1k,
        notes=_CLIP_B,
    ),
    Recipe(
        dbot_clip_vit_large_in1k,
        cost=_UNMEASURED,
        expected="87.8 fine-tuned (the authors' README)",
        paper=dbot_clip_vit_large_in1k,
        notes=_CLIP_L,
    ),
    Recipe(
        dbot_clip_vit_huge_in1k,
        cost=_UNMEASURED,
        expected="88.5 fine-tuned, 89.1 at 448 (the authors' README)",
        paper=dbot_clip_vit_huge_in1k,
        notes=_CLIP_L,
    ),
    Recipe(dbot_micro_cifar10, "not measured yet", "not measured yet", dbot_vit_base_in1k, notes=_SMALL, stages=STAGES),
    Recipe(dbot_tiny_cifar10, "not measured yet", "not measured yet", dbot_vit_base_in1k, notes=_SMALL, stages=STAGES),
)


def dbot(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """A dBOT for any images: `--size` and the data decide the rest; numbers below base are ours, not the authors'.

    pantomim pretrain dbot --data my_photos/ --stages 2 --out runs/photos

    Args:
        size: Name of the encoder's and decoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and deviation.
        start: Encoder that the first stage's student goes on from: all but its image size is kept.
    """
    chosen = choose_encoder(size, facts, stats, start)
    large = chosen.width >= 768
    paper = dbot_paper(chosen.width)
    assert isinstance(paper.method, DBOTConfig), "dBOT's recipes are dBOT"
    drop_path = paper.method.decoder.drop_path if large else 0.0
    encoder = chosen if start is not None else replace(chosen, drop_path=drop_path)
    decoder = replace(DECODER_SIZES[nearest_size(chosen.width)], drop_path=drop_path)
    return replace(
        paper,
        recipe="dbot",
        data=DataConfig(),
        method=DBOTConfig(encoder=encoder, decoder=decoder),
        optim=replace(
            paper.optim, base_lr=paper.optim.base_lr if large else 6e-4, warmup=Duration(epochs=20), clip_norm=3.0
        ),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=400),
    )


def dbot_paper(width: int) -> Pretrain:
    """The authors' recipe nearest to an encoder's width: what `explain` compares with."""
    return {"large": dbot_vit_large_in1k, "huge": dbot_vit_huge_in1k}.get(nearest_size(width), dbot_vit_base_in1k)()
