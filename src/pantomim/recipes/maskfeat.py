"""Recipes of MaskFeat: histograms of oriented gradients at masked blocks.

Paper: Wei et al. 2022, *Masked Feature Prediction for Self-Supervised Visual Pre-Training*, arXiv:2112.09133; the
numbers are those of the authors' code (github.com/facebookresearch/SlowFast, `in1k_VIT_B_MaskFeat_PT.yaml`).
"""

from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.transforms import Crop
from pantomim.masking.block import BlockMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import NOT_MEASURED, Family, Scale, scale, with_parts
from pantomim.targets.hog import HOGTargetConfig


def in1k(size: str) -> Pretrain:
    """The authors' file, field by field."""
    return Pretrain(
        recipe="maskfeat",
        data=DataConfig(crop=Crop(scale=(0.5, 1.0), flip=True)),
        method=BEiTConfig(
            encoder=EncoderConfig(position="learned", initialisation="normal", **ENCODER_SIZES[size]),
            masker=BlockMasker(ratio=78 / 196, exact=False, min_area=15),  # transform.py: 78 // 5
            target=HOGTargetConfig(bins=9, cell=8),  # operators.py; no Gaussian window
        ),
        optim=OptimConfig(
            base_lr=2e-4,  # per 256 images
            min_lr=8e-6,  # 1e-6 per 256 images: the code multiplies all three rates by the number of nodes ...
            start_lr=8e-6,  # ... of eight GPUs, here eight
            warmup=Duration(epochs=30),
            weight_decay=0.05,  # none on parameters of one dimension
            betas=(0.9, 0.999),  # defaults.py
            clip_norm=0.02,
        ),
        batch_size=2048,
        duration=Duration(epochs=300),  # the released weights: 1600
    )


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """Blocks of BEiT's least size, cells that divide the patch; first and last rate are those of 256 images."""
    parts = {"masker": BlockMasker(ratio=78 / 196, exact=False), "target": HOGTargetConfig()}
    return scale(with_parts(replace(paper, optim=replace(paper.optim, min_lr=1e-6, start_lr=1e-6)), **parts), to)


MASKFEAT = Family(
    "maskfeat",
    "MaskFeat (histograms of gradients)",
    in1k,
    {
        "base": (
            NOT_MEASURED,
            "84.0 fine-tuned after 1600 epochs (README); 83.4 after 300 with a Gaussian window (mmpretrain's port)",
            "epochs: the authors' file has 300, their released weights 1600",
        )
    },
    rescale=rescale,
    bare="maskfeat",
    idea="histograms of gradients in masked patches, which the encoder sees as mask tokens",
)
