"""Recipes of tokenizers that are learned from a teacher (VQ-KD): the paper's, and one for any images.

Paper: Peng et al. 2022, arXiv:2208.06366, appendix; the authors' `TOKENIZER.md`.
"""

from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.methods.vqkd import VQKDConfig
from pantomim.nn.vit import ENCODER_SIZES
from pantomim.recipes.dvae import choose_vocabulary
from pantomim.recipes.mae import choose_encoder
from pantomim.recipes.recipe import Recipe
from pantomim.teachers.choice import TeacherConfig


def vqkd_vit_base_in1k() -> Pretrain:
    """VQ-KD, ViT-B/16 at 224 x 224, 8,192 codes, on ImageNet-1K: the paper's tokenizer of BEiT v2.

    pantomim tokenizer train vqkd_vit_base_in1k --teacher SPEC --data imagenet/ --out runs/vqkd

    Not stated in our sources: clipping of gradients (here none).
    """
    return Pretrain(
        recipe="vqkd_vit_base_in1k",
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True)),  # crop scale from 0.08
        method=VQKDConfig(),
        optim=OptimConfig(
            base_lr=5e-5 * 256 / 512,  # 5e-5 at batch size 8 x 64
            min_lr=1e-5,
            warmup=Duration(epochs=10),
            weight_decay=1e-4,
            betas=(0.9, 0.99),
        ),
        batch_size=512,
        duration=Duration(epochs=100),
    )


RECIPES = (
    Recipe(
        vqkd_vit_base_in1k,
        cost="not measured by us",
        expected="97% of the codes used, CLIP as teacher and a decoder of three blocks (the authors' TOKENIZER.md)",
        paper=vqkd_vit_base_in1k,
        notes=("the teacher is what --teacher says; the paper's are CLIP ViT-B/16, projected, and DINO ViT-B/16",),
    ),
)


def vqkd(size: str, facts: Facts) -> Pretrain:
    """A tokenizer learned from a teacher, for any images: `--size` and the data decide the rest; the numbers are ours.

    pantomim tokenizer train vqkd --teacher runs/mae --data my_photos/ --out runs/tokenizer

    Its patches are those of `pantomim pretrain beit --data` of the same images. Not tuned.

    Args:
        size: Name of the encoder's sizes.
        facts: Size, channels and number of the images.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in ENCODER_SIZES:
        raise ValueError(f"--size must be one of {', '.join(ENCODER_SIZES)} for vqkd; got {size}.")
    paper = vqkd_vit_base_in1k()
    stats = Stats((0.5,) * facts.channels, (0.5,) * facts.channels)
    encoder = replace(choose_encoder(size, facts, stats), position="learned", initialisation="beit")
    batch_size = 64
    while batch_size > max(facts.num_images, 8):
        batch_size //= 2
    method = VQKDConfig(
        encoder=encoder,
        decoder_depth=1,
        vocabulary=choose_vocabulary(facts.num_images),
        teacher=TeacherConfig(),
        dead_below=0.5,
    )
    return replace(
        paper,
        recipe="vqkd",
        data=DataConfig(crop=Crop(scale=(0.4, 1.0), flip=True)),
        method=method,
        optim=replace(paper.optim, base_lr=4e-3, min_lr=1e-5, warmup=Duration(steps=500), clip_norm=1.0),
        batch_size=batch_size,
        duration=Duration(steps=10_000),
    )
