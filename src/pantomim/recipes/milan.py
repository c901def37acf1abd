"""Recipes of MILAN: the authors' for ImageNet-1K, and the method for any images.

Paper: Hou et al. 2022, *MILAN: Masked Image Pretraining on Language Assisted Representation*, arXiv:2208.06049; numbers
are those of the authors' code (github.com/zejiangh/MILAN: its README and, named beside a value, a file).
"""

from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.masking.attention import milan_masker
from pantomim.methods.milan import MILANConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.mae import DECODER_SIZES, choose_batch_size, choose_encoder, nearest_size
from pantomim.recipes.recipe import Recipe
from pantomim.teachers.choice import TeacherConfig


def milan_vit_base_in1k() -> Pretrain:
    """MILAN, ViT-B/16, ImageNet-1K, 400 epochs; OpenAI's CLIP ViT-B/16 teaches.

    pantomim pretrain milan_vit_base_in1k --teacher open_clip:ViT-B-16:openai --data IMAGENET --out runs/milan_b
    """
    return Pretrain(
        recipe="milan_vit_base_in1k",
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),  # main_pretrain.py
        method=MILANConfig(
            encoder=EncoderConfig(image_size=(224, 224), patch_size=16, **ENCODER_SIZES["base"]),
            decoder=DecoderConfig(width=512, depth=8, heads=16),  # models_milan.py
            masker=milan_masker(0.75),  # --mask_ratio 0.75 --attn_mask
            # 512 numbers a token, after the projection; CLIP is given images that are normalised for the student
            teacher=TeacherConfig(output="projection", statistics="student"),
        ),
        optim=OptimConfig(
            base_lr=1.5e-4,
            min_lr=0.0,
            warmup=Duration(epochs=40),
            weight_decay=0.05,
            decay_tokens=True,  # main_pretrain.py with timm 0.3.2
            betas=(0.9, 0.95),  # main_pretrain.py
            clip_norm=None,
        ),
        batch_size=4096,
        duration=Duration(epochs=400),
    )


def milan(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """MILAN for any images: `--size` and the data decide the rest, as for MAE; small sizes are ours.

    pantomim pretrain milan --data my_photos/ --teacher runs/moco --out runs/photos

    Args:
        size: Name of the encoder's and decoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and std.
        start: Encoder to continue from: all but its image size is kept.
    """
    encoder = choose_encoder(size, facts, stats, start)
    large, paper = encoder.width >= 768, milan_vit_base_in1k()
    return replace(
        paper,
        recipe="milan",
        data=DataConfig(),
        method=MILANConfig(encoder=encoder, decoder=DECODER_SIZES[nearest_size(encoder.width)]),
        optim=replace(paper.optim, base_lr=paper.optim.base_lr if large else 6e-4, warmup=Duration(epochs=20)),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=400),
    )


def milan_paper(width: int) -> Pretrain:
    """What `explain` compares with, whatever the width."""
    return milan_vit_base_in1k()


RECIPES = (
    Recipe(
        milan_vit_base_in1k,
        cost="39 h on 8 A100 of 40 GB (the authors' README); not measured by us",
        expected="85.4 fine-tuned is the paper's score; not measured by us",
        paper=milan_vit_base_in1k,
        notes=("mixed precision is bfloat16 here, float16 in the authors' code",),
    ),
)
