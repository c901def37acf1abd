"""Recipes of I-JEPA.

Paper: Assran et al. 2023, *Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture*,
arXiv:2301.08243; the numbers are those of the authors' code (github.com/facebookresearch/ijepa,
`configs/in1k_vith14_ep300.yaml`). Their configs of ViT-B and ViT-L are not public.
"""

from dataclasses import replace
from typing import Any

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.transforms import Crop
from pantomim.masking.multi_block import MultiBlockMasker
from pantomim.methods.ijepa import IJEPAConfig, PredictorConfig
from pantomim.nn.momentum import Momentum
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import BASE_WIDTH, ON_CIFAR10, Family, Scale, scale, with_parts

BATCH = 2048  # 16 processes of 128


def in1k(size: str) -> Pretrain:
    """ViT-H/14 on images of 224 x 224."""
    return Pretrain(
        recipe="ijepa",
        data=DataConfig(crop=Crop(scale=(0.3, 1.0), flip=False, interpolation="bilinear")),  # crop_scale, transforms.py
        method=IJEPAConfig(
            encoder=EncoderConfig(patch_size=14, class_token=False, initialisation="normal", **ENCODER_SIZES[size]),
            predictor=PredictorConfig(width=384, depth=12),  # pred_emb_dim, pred_depth
            masker=MultiBlockMasker(),  # mask: all as its defaults
            momentum=Momentum(0.996, 1.0, shape="linear"),  # ema
        ),
        optim=OptimConfig(
            base_lr=1e-3 * 256 / BATCH,  # lr, which is not scaled by the batch there
            min_lr=1e-6,  # final_lr
            start_lr=2e-4,
            warmup=Duration(epochs=40),
            weight_decay=0.04,
            weight_decay_end=0.4,  # final_weight_decay
            lead=1,  # train.py: the schedules move before the step
            betas=(0.9, 0.999),  # torch's
        ),
        batch_size=BATCH,
        duration=Duration(epochs=300),
    )


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """Half as wide a predictor, smaller blocks on smaller grids (ours); crops and schedules as the paper's."""
    rows, cols = to.encoder.grid
    run = scale(with_parts(paper, masker=MultiBlockMasker(min_keep=min(10, 10 * rows * cols // 16**2))), to)
    method: Any = run.method
    width, depth = method.encoder.width, method.encoder.depth
    if width < BASE_WIDTH:
        run = with_parts(run, predictor=PredictorConfig(width=width // 2, depth=max(depth // 2, 1)))
    crop = paper.data.crop if to.optim is None else replace(paper.data.crop, scale=to.data.crop.scale)
    base_lr, warmup = run.optim.base_lr, run.optim.warmup
    peak = base_lr * run.batch_size / 256  # of which first and last rate keep their share
    optim = replace(paper.optim, base_lr=base_lr, warmup=warmup, start_lr=peak / 5, min_lr=peak / 1000)
    return replace(run, data=replace(run.data, crop=crop), optim=optim)


IJEPA = Family(
    "ijepa",
    "I-JEPA",
    in1k,
    {"huge": ("under 72 h on 16 A100 (the paper's abstract)", "the paper's tables could not be read by us")},
    small=ON_CIFAR10,
    rescale=rescale,
    bare="ijepa",
    idea="features of four blocks from those of one, by a moving average of the encoder itself",
    notes=(
        "lists of patches are cut to the shortest of the global batch; the authors cut within each process",
        "mixed precision is bfloat16 without a gradient scaler, which the authors' code has beside it",
    ),
)
