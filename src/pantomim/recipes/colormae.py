"""Recipes of ColorMAE: MAE whose masks come from filtered noise, in four colours.

Paper: Hinojosa et al. 2024, *ColorMAE: Exploring data-independent masking strategies in Masked AutoEncoders*,
arXiv:2407.13036. The numbers for ImageNet-1K are those of the configs in the training logs that the authors ship
(github.com/carlosh93/ColorMAE, `logs/`); the small recipes are our MAE ones with another masker and nothing else.
"""

from collections.abc import Callable
from dataclasses import replace

from pantomim.config import Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.masking.color_noise import color_masker
from pantomim.masking.noise import Color
from pantomim.masking.random import RandomMasker
from pantomim.methods.mae import MAEConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.mae import (
    mae,
    mae_micro_cifar10,
    mae_tiny_cifar10,
    mae_vit_base_in1k,
    mae_vit_large_in1k,
    nearest_size,
)
from pantomim.recipes.recipe import Recipe

COLORS: tuple[Color, ...] = ("green", "red", "blue", "purple")  # green, the paper's best, first


def with_color(base: Pretrain, color: Color) -> Pretrain:
    """The same run with a colour's masks at the same ratio."""
    method = base.method
    assert isinstance(method, MAEConfig), "ColorMAE is MAE with another masker"
    assert isinstance(method.masker, RandomMasker), "MAE's recipes hide at random"
    masker = color_masker(color, method.masker.ratio)
    return replace(base, method=replace(method, masker=masker))


def _in1k(base: Pretrain, color: Color) -> Pretrain:
    """The authors' logged configs; where they have MAE's values, these are MAE's recipe's."""
    colored = with_color(base, color)
    return replace(colored, optim=replace(colored.optim, decay_tokens=False))  # mmpretrain: none on class, mask token


def _recipe(color: Color, scale: str) -> Recipe:
    """One colour at one scale, as a function with the name and the docstring of a recipe."""
    bases: dict[str, Callable[[], Pretrain]] = {
        "vit_base_in1k": mae_vit_base_in1k,
        "vit_large_in1k": mae_vit_large_in1k,
        "tiny_cifar10": mae_tiny_cifar10,
        "micro_cifar10": mae_micro_cifar10,
    }
    base, on_imagenet, name = bases[scale], scale.endswith("in1k"), f"colormae_{color}_{scale}"

    def build() -> Pretrain:
        config = base()
        return replace(_in1k(config, color) if on_imagenet else with_color(config, color), recipe=name)

    what = (base.__doc__ or "").strip().splitlines()[0].removeprefix("MAE, ")
    source = "/path/to/imagenet" if on_imagenet else "cifar10.zip"
    build.__name__ = name
    build.__doc__ = (
        f"ColorMAE, {color} noise, {what}\n\n    pantomim pretrain {name} --data {source} --out runs/{color}\n"
    )
    cost, expected = _KNOWN.get((color, scale), _UNKNOWN)
    paper = _paper(color, "large" if scale == "vit_large_in1k" else "base")
    notes = _NOTES if on_imagenet else ()
    return Recipe(build, cost, expected, paper=lambda: paper, notes=notes + _NOTES_LARGE * (scale == "vit_large_in1k"))


def _paper(color: Color, size: str) -> Pretrain:
    """What `explain` compares with: the authors' config of this colour."""
    base = mae_vit_large_in1k() if size == "large" else mae_vit_base_in1k()
    return replace(_in1k(base, color), recipe=f"colormae_{color}_vit_{size}_in1k")


def colormae(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """ColorMAE with green noise for any images: `mae` with another masker and nothing else.

    pantomim pretrain colormae --data my_photos/ --out runs/photos
    """
    return replace(with_color(mae(size, facts, stats, start), "green"), recipe="colormae")


def colormae_paper(width: int) -> Pretrain:
    """The authors' config nearest to an encoder's width, for green noise."""
    return _paper("green", "large" if nearest_size(width) in ("large", "huge") else "base")


# Where MAE's recipe is another, and what is no field of the config; each with its source in the authors' repository.
_NOTES = (
    "beside MAE's recipe: the masker, and optim.decay_tokens, as mmpretrain decays no class or mask token (logs/)",
    "patterns: ours, fitted to assets/proposed.png; --method.masker.bank takes the authors' (README, OSF)",
    "drawing: each image has its own pattern, place and flips; --method.masker.shared_crop True draws as "
    "models/utils/masking_generator.py does",
    "warm-up: from 0; theirs from 1e-4 times the peak (logs/)",
    "precision: bfloat16; theirs float16 with loss scaling (logs/)",
    "positions: MAE's sine-cosine table; theirs, mmpretrain's, has rows and columns exchanged",
)
_NOTES_LARGE = ("fields: those of ViT-B, as no config for pre-training ViT-L is released",)
_UNKNOWN = ("not measured", "not measured; no number of the paper is known to us")
# Cost and score; the scores are the README's and those of a literature note that transcribes the paper's tables.
_KNOWN: dict[tuple[Color, str], tuple[str, str]] = {
    ("green", "vit_base_in1k"): (
        "about 138 h on 8 GPUs (the authors' logs: 1.0 s a step)",
        "83.77 fine-tuned (the authors' README), 49.26 mIoU on ADE20K (the paper's, second-hand); MAE 83.43 and 47.46",
    ),
    ("green", "vit_large_in1k"): (
        "not stated",
        "85.64 fine-tuned after 800 epochs (the paper's, second-hand); MAE 85.42",
    ),
}

RECIPES = tuple(
    _recipe(color, scale)
    for scale in ("vit_base_in1k", "vit_large_in1k", "micro_cifar10", "tiny_cifar10")
    for color in COLORS
)
