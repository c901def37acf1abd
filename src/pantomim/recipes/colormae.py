"""Recipes of ColorMAE: MAE whose masks come from filtered noise, in four colours.

Paper: Hinojosa et al. 2024, *ColorMAE: Exploring data-independent masking strategies in Masked AutoEncoders*,
arXiv:2407.13036. The numbers are those of the configs in the training logs that the authors ship
(github.com/carlosh93/ColorMAE, `logs/`); where they have MAE's values, these are MAE's recipe's.
"""

from dataclasses import replace
from functools import partial

from pantomim.config import OptimConfig, Pretrain
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.noise import Color, Noise
from pantomim.recipes import mae
from pantomim.recipes.recipe import ON_CIFAR10, Family, Scale, scale, with_parts

COLORS: tuple[Color, ...] = ("green", "red", "blue", "purple")


def mmengine(run: Pretrain) -> OptimConfig:
    """MAE's optimiser as mmengine and mmpretrain have it."""
    return replace(
        run.optim,
        start_lr=1e-4 * run.optim.base_lr * run.batch_size / 256,  # LinearLR: start_factor=0.0001
        schedule="beit",  # LinearLR has the peak in the warm-up's last step
        decay_tokens=False,  # none on class and mask token
    )


def in1k(size: str, color: Color) -> Pretrain:
    """The authors' logged configs; of ViT-L none for pre-training is released."""
    base = mae.in1k(size)
    masker = ColorNoiseMasker(noise=Noise(color), ratio=0.75)
    return with_parts(replace(base, optim=mmengine(base)), masker=masker)


def beside_mae(paper: Pretrain, to: Scale) -> Pretrain:
    """MAE of this size with a colour's masks, and nothing else: so that the two compare."""
    run = scale(paper, to)
    return replace(run, optim=replace(run.optim, start_lr=0.0, schedule="mae", decay_tokens=True))


# Scores are the README's and those of a literature note that transcribes the paper's tables.
_GREEN = {
    "base": (
        "about 138 h on 8 GPUs (the authors' logs: 1.0 s a step)",
        "83.77 fine-tuned (the authors' README), 49.26 mIoU on ADE20K (the paper's, second-hand); MAE 83.43 and 47.46",
    ),
    "large": ("not stated", "85.64 fine-tuned after 800 epochs (the paper's, second-hand); MAE 85.42"),
}
_OTHERS = dict.fromkeys(_GREEN, ("not measured", "not measured; the score in the paper is not known to us"))
_PRECISION = "precision: bfloat16; theirs float16 with loss scaling (logs/)"
_LARGE = "fields: those of ViT-B, as no config for pre-training ViT-L is released"


def _family(color: Color) -> Family:
    rows = _GREEN if color == "green" else _OTHERS
    return Family(
        f"colormae_{color}",
        f"ColorMAE, {color} noise",
        partial(in1k, color=color),
        {"base": (*rows["base"], _PRECISION), "large": (*rows["large"], _LARGE, _PRECISION)},
        small=ON_CIFAR10,
        rescale=beside_mae,
        bare="colormae" if color == "green" else None,  # the paper's best
        idea="as mae, with masks out of filtered noise",
        notes=(
            "patterns: ours, fitted to assets/proposed.png; method.masker.bank takes the authors' (README, OSF)",
            "drawing: each image has its own pattern, place and flips; method.masker.shared_crop True draws as "
            "models/utils/masking_generator.py does",
            "positions: MAE's sine-cosine table; theirs, mmpretrain's, has rows and columns exchanged",
        ),
    )


COLOR_MAE = tuple(_family(color) for color in COLORS)
