"""Recipes of MAE.

Paper: He et al. 2022, *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377; the numbers are those of
Table 8 and of the authors' code (github.com/facebookresearch/mae, `PRETRAIN.md`), which agree where both speak.
"""

from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.masking.random import RandomMasker
from pantomim.methods.mae import MAEConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import DECODER_SIZES, NOT_MEASURED, Family, Recipe, Scale, scale, with_parts
from pantomim.targets.pixels import PixelTargetConfig


def in1k(size: str) -> Pretrain:
    """Table 8 and `PRETRAIN.md`, field by field."""
    return Pretrain(
        recipe="mae",
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),  # Table 8: RandomResizedCrop; flip: main_pretrain.py
        method=MAEConfig(
            encoder=EncoderConfig((224, 224), 14 if size == "huge" else 16, **ENCODER_SIZES[size]),
            decoder=DECODER_SIZES[size],  # Table 1a, 1b
            masker=RandomMasker(ratio=0.75),  # Figure 5
            target=PixelTargetConfig(normalise="patch"),  # Table 1d, used for Table 3
        ),
        optim=OptimConfig(
            base_lr=1.5e-4,  # Table 8
            warmup=Duration(epochs=40),  # Table 8
            weight_decay=0.05,  # Table 8
            decay_tokens=True,  # main_pretrain.py with timm 0.3.2
            betas=(0.9, 0.95),  # Table 8
            clip_norm=None,  # engine_pretrain.py
        ),
        batch_size=4096,  # Table 8
        duration=Duration(epochs=1600),  # Table 3; 800 in the ablations
    )


def on_mnist() -> Pretrain:
    """The demo: 4,000 digits in four minutes."""
    to = Scale(
        "micro",
        Facts(4_000, 1, (28, 28), 28, "uint8", 10),
        Stats((0.131,), (0.308,)),
        data=DataConfig(source="mnist", crop=Crop(scale=(0.6, 1.0), flip=False)),  # a mirrored digit is none
        optim=OptimConfig(base_lr=8e-3, warmup=Duration(steps=400)),
        most=32,
        duration=Duration(steps=4000),
    )
    target = PixelTargetConfig(normalise="none")  # as they are: black patches have no std to divide by
    run = with_parts(scale(in1k("base"), to), target=target, encoder=replace(to.encoder, patch_size=4))
    return replace(run, recipe="mae_micro_mnist")


MAE = Family(
    "mae",
    "MAE",
    in1k,
    {
        "base": (f"{NOT_MEASURED}; paper and code give ViT-L's only", "83.6 fine-tuned, 68.0 linear (Tables 3 and 12)"),
        "large": ("31 h on 128 TPU-v3 cores (section 4)", "85.9 fine-tuned, 75.8 linear (Tables 3 and 12)"),
        "huge": ("69 h on 128 TPU-v3 cores (twice Table 2's)", "86.9 fine-tuned, 76.6 linear (Tables 3 and 12)"),
    },
    others=(
        Recipe(
            on_mnist(),
            replace(in1k("base"), recipe="mae_vit_base_in1k"),
            "MAE, micro with patches of 4x4, on 4,000 digits of MNIST; the demo takes 3,000 of its steps.",
            "the demo, fine-tuning included: 5 min on two cores (docs/results/demo.md)",
            "ten labels a class, frozen: 78.5 ± 3.1 over draws of the labels, one seed; raw pixels 73.2",
        ),
    ),
    small={
        "micro": (
            "12 min on one core of a Xeon at 2.5 GHz (docs/results/cifar10.md)",
            "linear 50.0 ± 0.3, ten labels a class 30.2 ± 0.1, three seeds",
        ),
        "tiny": ("not measured yet", "not measured yet"),
    },
    bare="mae",
    idea="pixels of masked patches, from the visible ones alone",
)
