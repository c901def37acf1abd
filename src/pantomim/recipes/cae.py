"""Recipes of CAE, with 75 and with 98 masked patches.

Paper: Chen et al., *Context Autoencoder for Self-Supervised Representation Learning*, arXiv:2202.03026; the numbers are
those of the authors' PyTorch release (`scripts/cae_base_800e.sh`, `scripts/cae_large_1600e.sh`, else
`run_pretraining.py`), and for 75 masked patches of their PaddlePaddle release; else BEiT's, whose code it is.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pantomim.config import DataConfig, Duration, Pretrain
from pantomim.data.transforms import Crop
from pantomim.masking.block import BlockMasker
from pantomim.methods.cae import CAEConfig, Size, cae_encoder
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.regressor import RegressorConfig
from pantomim.recipes import beit
from pantomim.recipes.recipe import NOT_MEASURED, ON_CIFAR10, Family, Scale, scale, with_parts


def preset(size: Size, num_masked: Literal[75, 98] = 75) -> CAEConfig:
    """The paper's models on 224 x 224 pixels, with either number of masked patches out of 196.

    75 goes without stochastic depth, as in the authors' Paddle release; 98 has 0.1 in each stack, as the published
    checkpoints. Regressor and decoder are as wide as the encoder: also for ViT-S, where the code's default is 768.
    """
    encoder = cae_encoder(size, drop_path=0.1 if num_masked == 98 else 0.0)
    regressor = RegressorConfig(layer_scale=encoder.layer_scale, drop_path=encoder.drop_path)
    decoder = LatentDecoderConfig(layer_scale=encoder.layer_scale, drop_path=encoder.drop_path)
    masker = BlockMasker(ratio=num_masked / 196)
    return CAEConfig(encoder=encoder, regressor=regressor, decoder=decoder, masker=masker)


def in1k(size: Size, num_masked: Literal[75, 98]) -> Pretrain:
    """The authors' scripts; `preset` has their networks and masks."""
    run, first = beit.in1k("base"), num_masked == 75  # batch of 2048: 64 on each of 32 GPUs
    # All but vectors decay; positions are fixed. The PaddlePaddle release warms up for 10 epochs.
    optim = replace(run.optim, warmup=Duration(epochs=20 if first else 40), decay_tokens=True, decay_mask_token=None)
    return replace(
        run,
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True)),  # datasets.py: torchvision's range, no colour jitter
        method=preset(size, num_masked),
        optim=optim,
        duration=Duration(epochs=800 if first else 1600),  # the checkpoints of the README: 300, 800, 1600
    )


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """Regressor and decoder follow the encoder: shallow beside a shallow one, with its layer scale."""
    run = scale(paper, to)
    method: Any = run.method
    stack = {"depth": 1 if method.encoder.depth < 12 else 4, "layer_scale": method.encoder.layer_scale}
    return with_parts(run, regressor=replace(method.regressor, **stack), decoder=replace(method.decoder, **stack))


_SMALL = "the authors state no recipe of ViT-S: all but its sizes is ViT-B's"
_75 = "warm-up: 20 of 800 epochs as in the authors' PyTorch release; their PaddlePaddle release has 10"
_UNKNOWN = (NOT_MEASURED, "not published for 75 masked patches", _75)
_OF = "the PaddlePaddle release's, 800 epochs: 69.32 linear, 49.69 mIoU on ADE20K"
_RELEASED = (NOT_MEASURED, _OF, _75)

CAE = Family(
    "cae",
    "CAE, 75 masked patches",
    partial(in1k, num_masked=75),
    {"small": (NOT_MEASURED, "not published", _SMALL, _75), "base": _RELEASED, "large": _UNKNOWN},
    small=ON_CIFAR10,
    rescale=rescale,
    bare="cae",
    idea="features of masked patches from those of visible ones, and a tokenizer's ids from these",
)
CAE_98 = Family(
    "cae_98",
    "CAE, 98 masked patches as in the published checkpoints",
    partial(in1k, num_masked=98),
    {
        "small": (NOT_MEASURED, "not published", _SMALL),
        "base": (NOT_MEASURED, "83.9 fine-tuned, 77.2 attentive, 70.3 linear (the authors' README)"),
        "large": (NOT_MEASURED, "86.2 fine-tuned, 81.2 attentive, 77.8 linear (the authors' README)"),
    },
)
