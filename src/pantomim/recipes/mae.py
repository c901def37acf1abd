"""Recipes of MAE: the paper's for ImageNet-1K, ours for small images and for any data.

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
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.recipe import Recipe
from pantomim.targets.pixels import PixelTargetConfig

# Width, depth and heads of the decoder. From base on the paper's (Table 1a, 1b); the smaller ones are ours.
DECODER_SIZES: dict[str, DecoderConfig] = {
    "micro": DecoderConfig(width=64, depth=1, heads=4),
    "tiny": DecoderConfig(width=128, depth=4, heads=4),
    "small": DecoderConfig(width=256, depth=4, heads=8),
    "base": DecoderConfig(width=512, depth=8, heads=16),
    "large": DecoderConfig(width=512, depth=8, heads=16),
    "huge": DecoderConfig(width=512, depth=8, heads=16),
}


def _in1k(recipe: str, size: str, patch_size: int) -> Pretrain:
    """Table 8 and `PRETRAIN.md`, field by field."""
    return Pretrain(
        recipe=recipe,
        data=DataConfig(crop=Crop(scale=(0.2, 1.0), flip=True)),  # Table 8: RandomResizedCrop; flip: main_pretrain.py
        method=MAEConfig(
            encoder=EncoderConfig(image_size=(224, 224), patch_size=patch_size, **ENCODER_SIZES[size]),
            decoder=DECODER_SIZES[size],  # Table 1a, 1b
            masker=RandomMasker(ratio=0.75),  # Figure 5
            target=PixelTargetConfig(normalise="patch"),  # Table 1d, used for Table 3
        ),
        optim=OptimConfig(
            base_lr=1.5e-4,  # Table 8
            min_lr=0.0,
            warmup=Duration(epochs=40),  # Table 8
            weight_decay=0.05,  # Table 8
            decay_tokens=True,  # main_pretrain.py with timm 0.3.2
            betas=(0.9, 0.95),  # Table 8
            clip_norm=None,  # engine_pretrain.py
        ),
        batch_size=4096,  # Table 8
        duration=Duration(epochs=1600),  # Table 3; 800 in the ablations
    )


def mae_vit_base_in1k() -> Pretrain:
    """MAE, ViT-B/16, ImageNet-1K, 1600 epochs.

    pantomim pretrain mae_vit_base_in1k --data /path/to/imagenet --out runs/mae_b
    """
    return _in1k("mae_vit_base_in1k", "base", 16)


def mae_vit_large_in1k() -> Pretrain:
    """MAE, ViT-L/16, ImageNet-1K, 1600 epochs.

    pantomim pretrain mae_vit_large_in1k --data /path/to/imagenet --out runs/mae_l
    """
    return _in1k("mae_vit_large_in1k", "large", 16)


def mae_vit_huge_in1k() -> Pretrain:
    """MAE, ViT-H/14, ImageNet-1K, 1600 epochs.

    pantomim pretrain mae_vit_huge_in1k --data /path/to/imagenet --out runs/mae_h
    """
    return _in1k("mae_vit_huge_in1k", "huge", 14)


CIFAR10_MEAN = (0.4903, 0.4804, 0.4455)  # as `pantomim stats` says of the training images
CIFAR10_STD = (0.2448, 0.2429, 0.2605)


def mae_tiny_cifar10() -> Pretrain:
    """MAE, ViT-Ti/4, CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU.

    pantomim pretrain mae_tiny_cifar10 --data cifar10.zip --out runs/mae_tiny
    """
    return Pretrain(
        recipe="mae_tiny_cifar10",
        method=MAEConfig(
            encoder=EncoderConfig(
                image_size=(32, 32), patch_size=4, mean=CIFAR10_MEAN, std=CIFAR10_STD, **ENCODER_SIZES["tiny"]
            ),
            decoder=DECODER_SIZES["tiny"],
        ),
        optim=OptimConfig(base_lr=3e-4, warmup=Duration(epochs=20)),
        batch_size=512,
        duration=Duration(epochs=400),
    )


def mae_micro_cifar10() -> Pretrain:
    """MAE, micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores and a quarter of an hour.

    pantomim pretrain mae_micro_cifar10 --data cifar10.zip --out runs/mae_micro
    """
    return Pretrain(
        recipe="mae_micro_cifar10",
        data=DataConfig(images=10_000, crop=Crop(scale=(0.4, 1.0), flip=True)),
        method=MAEConfig(
            encoder=EncoderConfig(
                image_size=(32, 32), patch_size=4, mean=CIFAR10_MEAN, std=CIFAR10_STD, **ENCODER_SIZES["micro"]
            ),
            decoder=DECODER_SIZES["micro"],
        ),
        optim=OptimConfig(base_lr=8e-3, warmup=Duration(steps=600)),
        batch_size=32,
        duration=Duration(steps=6000),
    )


def mae_micro_mnist() -> Pretrain:
    """MAE, micro with patches of 4x4, on 4,000 digits of MNIST; the demo.

    pantomim pretrain mae_micro_mnist --out runs/demo
    """
    return Pretrain(
        recipe="mae_micro_mnist",
        data=DataConfig(source="mnist", crop=Crop(scale=(0.6, 1.0), flip=False)),  # a mirrored digit is none
        method=MAEConfig(
            encoder=EncoderConfig(
                image_size=(28, 28), patch_size=4, in_chans=1, mean=(0.131,), std=(0.308,), **ENCODER_SIZES["micro"]
            ),
            decoder=DECODER_SIZES["micro"],
            target=PixelTargetConfig(normalise="none"),  # black patches have no deviation to divide by
        ),
        optim=OptimConfig(base_lr=8e-3, warmup=Duration(steps=400)),
        batch_size=32,
        duration=Duration(steps=4000),
    )


RECIPES = (
    Recipe(
        mae_vit_base_in1k,
        cost="not measured by us; paper and code give ViT-L's time only",
        expected="83.6 fine-tuned, 68.0 linear (the paper's, Tables 3 and 12)",
        paper=mae_vit_base_in1k,
    ),
    Recipe(
        mae_vit_large_in1k,
        cost="31 h on 128 TPU-v3 cores (the paper's, section 4)",
        expected="85.9 fine-tuned, 75.8 linear (the paper's, Tables 3 and 12)",
        paper=mae_vit_large_in1k,
    ),
    Recipe(
        mae_vit_huge_in1k,
        cost="69 h on 128 TPU-v3 cores (twice the paper's 800 epochs, Table 2)",
        expected="86.9 fine-tuned, 76.6 linear (the paper's, Tables 3 and 12)",
        paper=mae_vit_huge_in1k,
    ),
    Recipe(
        mae_micro_mnist,
        cost="3.5 min on two cores of a Xeon at 2.5 GHz (README)",
        expected="ten labels a class 78.5 ± 3.1 over draws of the labels, one seed; raw pixels 73.2",
        paper=mae_vit_base_in1k,
    ),
    Recipe(
        mae_micro_cifar10,
        cost="12 min on one core of a Xeon at 2.5 GHz (docs/results/cifar10.md)",
        expected="linear 50.0 ± 0.3, ten labels a class 30.2 ± 0.1, three seeds",
        paper=mae_vit_base_in1k,
    ),
    Recipe(
        mae_tiny_cifar10,
        cost="not measured yet",
        expected="not measured yet",
        paper=mae_vit_base_in1k,
    ),
)


def choose_patch(image_size: tuple[int, int]) -> int:
    """The largest patch of 16, 8, 4 and 2 that gives at least 8 a side; 2 for very small images.

    Raises:
        ValueError: if a side is smaller than two pixels.
    """
    if min(image_size) < 2:
        raise ValueError(
            f"image_size must be at least 2x2, the smallest patch; got {image_size[0]}x{image_size[1]}. "
            f"Masked image modelling needs images with something to hide."
        )
    return next((patch for patch in (16, 8, 4) if min(image_size) // patch >= 8), 2)


MAX_SIDE = 512  # a larger common size is a camera's, not a model's: such images are treated like mixed ones


def choose_image_size(facts: Facts) -> tuple[int, int]:
    """The images' common size, else a square of their median shorter side up to 224; rounded down to the patch."""
    height, width = facts.size or (0, 0)
    if facts.size is None or max(height, width) > MAX_SIDE:
        height = width = min(facts.median_shorter_side, 224)
    patch = choose_patch((height, width))
    return height // patch * patch, width // patch * patch


def mae(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
    """MAE for any images: `--size` and the data decide the rest; the numbers below base are ours, not the paper's.

    pantomim pretrain mae --data my_photos/ --out runs/photos

    Args:
        size: Name of the encoder's and decoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and deviation.
        start: Encoder to go on from: its sizes, patch and normalisation are kept, its image size follows the data.
    """
    encoder = choose_encoder(size, facts, stats, start)
    if start is not None:
        size = nearest_size(start.width)
    return Pretrain(
        recipe="mae",
        method=MAEConfig(encoder=encoder, decoder=DECODER_SIZES[size]),
        optim=OptimConfig(base_lr=1.5e-4 if encoder.width >= 768 else 6e-4, warmup=Duration(epochs=20)),
        batch_size=choose_batch_size(facts),
        duration=Duration(epochs=400),
    )


def choose_encoder(size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> EncoderConfig:
    """The encoder for any images; arguments as for `mae`."""
    image_size = choose_image_size(facts)
    if start is None:
        sizes = ENCODER_SIZES[size]
        patch_size = choose_patch(image_size)
        return EncoderConfig(image_size, patch_size, facts.channels, mean=stats.mean, std=stats.std, **sizes)
    patch = start.patch_size
    fitted = (max(image_size[0] // patch, 1) * patch, max(image_size[1] // patch, 1) * patch)
    return replace(start, image_size=fitted)


def choose_batch_size(facts: Facts) -> int:
    """256, or less where there are fewer images."""
    batch_size = 256
    while batch_size > max(facts.num_images, 8):
        batch_size //= 2
    return batch_size


def nearest_size(width: int) -> str:
    """The name of the size whose width is nearest."""
    return min(ENCODER_SIZES, key=lambda name: abs(ENCODER_SIZES[name]["width"] - width))


def mae_paper(width: int) -> Pretrain:
    """The paper's recipe nearest to an encoder's width: what `explain` compares with."""
    return {"large": mae_vit_large_in1k, "huge": mae_vit_huge_in1k}.get(nearest_size(width), mae_vit_base_in1k)()
