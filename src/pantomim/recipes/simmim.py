"""Recipes of SimMIM: the pixels of coarse masked cells, predicted by one linear layer.

Paper: Xie et al. 2022, *SimMIM: a Simple Framework for Masked Image Modeling*, arXiv:2111.09886; the numbers are those
of the authors' code (github.com/microsoft/SimMIM, `configs/vit_base__800ep`, `config.py`).
"""

from dataclasses import replace
from typing import Any, Literal

from pantomim.config import DataConfig, Pretrain
from pantomim.data.transforms import Crop
from pantomim.masking.grid import GridMasker
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.recipes import beit
from pantomim.recipes.recipe import NOT_MEASURED, Family, Scale, scale, with_parts
from pantomim.targets.distance import Distance
from pantomim.targets.pixels import PixelTargetConfig


def in1k(size: Literal["base"]) -> Pretrain:
    """The authors' configs: BEiT's, but for masks, target, crops and rates."""
    run = beit.in1k(size)  # batch of 2048: not stated for ViT; the Swin example's
    method = BEiTConfig(
        encoder=beit_encoder(size, drop_path=0.1),
        masker=GridMasker(ratio=0.6, cell=2),  # data_simmim.py: cells of 32 pixels
        target=PixelTargetConfig(normalise="none", distance=Distance("l1")),  # simmim.py
        initialise_head=False,  # simmim.py: the head begins as torch's layers do
    )
    optim = replace(
        run.optim,
        base_lr=1e-4 / 2,  # config.py: 1e-4 per 512 images
        min_lr=4e-5,  # a tenth of 4e-4
        start_lr=5e-7 * 4,  # 5e-7 per 512 images
        schedule="drop",  # a tenth from epoch 700 on
        lead=-1,  # main_simmim.py: the schedule moves after the step
        clip_norm=5.0,
    )
    crop = Crop(scale=(0.67, 1.0), interpolation="bilinear")  # data_simmim.py; torchvision's default
    return replace(run, data=DataConfig(crop=crop), method=method, optim=optim)


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """The last rate is a tenth of the batch's own, the first 0; deep encoders have BEiT's layer scale of ViT-L."""
    method: Any = paper.method
    if to.encoder.depth > 12:
        paper = with_parts(paper, encoder=replace(method.encoder, layer_scale=1e-5))
    run = scale(paper, to)
    tenth = run.optim.base_lr * run.batch_size / 256 / 10
    return replace(run, optim=replace(run.optim, min_lr=tenth, start_lr=0.0))


SIMMIM = Family(
    "simmim",
    "SimMIM",
    in1k,
    {
        "base": (
            NOT_MEASURED,
            "83.8 fine-tuned (the authors' README)",
            "batch size: not stated for ViT; 2048 is that of the authors' Swin example",
        )
    },
    rescale=rescale,
    bare="simmim",
    idea="pixels of coarse masked cells, which the encoder sees as mask tokens",
)
