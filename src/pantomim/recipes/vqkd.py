"""Recipes of VQ-KD, the tokenizer of BEiT v2, which is learned from a teacher.

Paper: Peng et al. 2022, arXiv:2208.06366, appendix; the authors' `TOKENIZER.md` and `run_vqkd_training.py`.
"""

from dataclasses import replace
from typing import Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.methods.vqkd import VQKDConfig, vqkd_encoder
from pantomim.recipes import beit
from pantomim.recipes.dvae import choose_vocabulary
from pantomim.recipes.recipe import NOT_MEASURED, Family, Scale, scale, with_parts


def in1k(size: Literal["base", "large"]) -> Pretrain:
    """`TOKENIZER.md`; ViT-B/16 at 224 x 224, 8,192 codes. What is not named is BEiT's, whose code it is."""
    run = beit.in1k("base")
    optim = replace(
        run.optim,
        base_lr=5e-5 * 256 / 128,  # --lr 5e-5; the script multiplies it by the total batch over 128
        weight_decay=1e-4,  # --weight_decay
        decay_mask_token=None,  # there is none
        betas=(0.9, 0.99),  # --opt_betas
        clip_norm=None,
    )
    data = replace(run.data, augment=Augment())  # --min_crop_scale 0.08
    method = VQKDConfig(encoder=vqkd_encoder(size))
    return replace(run, data=data, method=method, optim=optim, batch_size=512, duration=Duration(epochs=100))


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """A tokenizer with the patches that bare BEiT has of the same images, and one block to decode; not tuned."""
    half = (0.5,) * to.facts.channels  # pixels from -1 to 1
    to = replace(
        to,
        stats=Stats(half, half),
        data=DataConfig(crop=Crop(scale=(0.4, 1.0), flip=True)),
        optim=OptimConfig(
            base_lr=4e-3, min_lr=1e-5, warmup=Duration(steps=500), weight_decay=1e-4, betas=(0.9, 0.99), clip_norm=1.0
        ),
        most=64,
        duration=Duration(steps=10_000),
    )
    vocabulary = choose_vocabulary(to.facts.num_images)
    return with_parts(scale(paper, to), decoder_depth=1, vocabulary=vocabulary, dead_below=0.5)


VQKD = Family(
    "vqkd",
    "VQ-KD, the tokenizer of BEiT v2",
    in1k,
    {"base": (NOT_MEASURED, "97% of the codes used, with CLIP and a decoder of three blocks (TOKENIZER.md)")},
    rescale=rescale,
    bare="vqkd",
    idea="codes from which a teacher's features are rebuilt",
    notes=("teacher: none by default; the paper's are CLIP ViT-B/16, projected, and DINO ViT-B/16",),
    trains="tokenizer",
)
