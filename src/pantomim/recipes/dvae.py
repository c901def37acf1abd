"""Recipes of discrete auto-encoders as tokenizers.

Paper: Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, arXiv:2102.12092, appendix A.2. The small recipes are
ours: the same networks, narrower, with shorter schedules.
"""

from collections.abc import Collection
from dataclasses import replace

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.transforms import Crop
from pantomim.methods.dvae import Annealing, DVAEConfig
from pantomim.nn.dvae import DVAESizes
from pantomim.recipes.recipe import CIFAR10, Family, Recipe, Scale, choose_image_size, choose_patch

# Channels of the narrowest group, channels that the codes are projected to, blocks a group; "paper": as published.
TOKENIZER_SIZES: dict[str, dict[str, int]] = {
    "micro": {"width": 16, "code_width": 32, "blocks": 1},
    "small": {"width": 64, "code_width": 128, "blocks": 1},
    "base": {"width": 128, "code_width": 128, "blocks": 2},
    "paper": {"width": 256, "code_width": 128, "blocks": 2},
}
MAX_SIDE = 128  # larger images are cut to LARGE_SIDE: what the tokenizer sees behind a ViT-B/16 at 224 x 224
LARGE_SIDE = 112
STRIDES = (8, 4)  # pixels a code, where these give eight codes a side; else 2
SHORT_RUN = 5_000  # steps: below, weights are averaged over fewer of them


def dvae_paper() -> Pretrain:
    """The published tokenizer: 8,192 codes, stride 8, 3,000,000 steps of 512 images of 256 x 256 (appendix A.2).

    Deviation: crops are random resized ones; the paper's are random squares of a side near the whole image's. The rate
        goes on falling until the end; the paper's is constant from step 1,200,000 on.
    """
    return Pretrain(
        recipe="dvae_paper",
        data=DataConfig(crop=Crop(flip=True)),
        method=DVAEConfig(),
        optim=OptimConfig(
            base_lr=1e-4 * 256 / 512,  # 1e-4 ...
            min_lr=1.25e-6,
            warmup=Duration(steps=0),
            weight_decay=1e-4,
            betas=(0.9, 0.999),
        ),
        batch_size=512,  # ... at 8 images on each of 64 GPUs
        duration=Duration(steps=3_000_000),
    )


def _ours(method: DVAEConfig, batch_size: int, steps: int, lr: float) -> Pretrain:
    """What all recipes of ours have in common: gradients are clipped, schedules have the run's length."""
    paper = dvae_paper()
    return replace(
        paper,
        data=DataConfig(crop=Crop(scale=(0.4, 1.0), flip=True)),
        method=method.annealed_over(steps),
        optim=replace(paper.optim, base_lr=lr * 256 / batch_size, min_lr=1e-6, clip_norm=1.0),
        batch_size=batch_size,
        duration=Duration(steps=steps),
    )


def _micro() -> Pretrain:
    """As bare; the one other trial, a rate of 3e-3 over half as many steps, gave 60 codes, error 0.0130."""
    to = CIFAR10["micro"]
    run = rescale(dvae_paper(), replace(to, facts=replace(to.facts, num_images=10_000)))
    run = replace(run, recipe="dvae_micro_cifar10", data=replace(run.data, images=10_000))
    return fitted(run, 10_000)


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """The networks of a size for any images.

    `micro` has rate, batch size, KL weight and most steps of `dvae_micro_cifar10`, the only one that was measured. The
    KL weight of `small` is that one's too, 1; those of `base` and `paper` are the paper's, 6.6. Nothing was tuned.
    """
    check_range(to.facts)
    micro, num_images = to.size == "micro", to.facts.num_images
    image_size = choose_image_size(to.facts, MAX_SIDE, LARGE_SIDE, STRIDES)
    codes = {"vocabulary": choose_vocabulary(num_images), "stride": choose_patch(image_size, STRIDES)}
    sizes = DVAESizes(to.facts.channels, **codes, **TOKENIZER_SIZES[to.size])
    kl_weight = Annealing(0.0, 1.0 if to.size in ("micro", "small") else 6.6, 1)
    batch_size = replace(to, most=16 if micro else 64).batch_size
    # A hundred passes over the images, but neither very few steps nor more than were tried; not tuned.
    steps = min(max(100 * num_images // batch_size, 1_000), 3_000 if micro else 20_000)
    method = DVAEConfig(sizes=sizes, image_size=image_size, kl_weight=kl_weight)
    return _ours(method, batch_size=batch_size, steps=steps, lr=2e-3 if micro else 3e-4)


def choose_vocabulary(num_images: int) -> int:
    """512 codes for small sets, 2,048 from 100,000 images on, the published 8,192 from a million on."""
    return 8192 if num_images >= 1_000_000 else 2048 if num_images >= 100_000 else 512


def check_range(facts: Facts) -> None:
    """Refuse images whose scaled values can leave [0, 1]."""
    if facts.dtype not in ("uint8", "uint16"):
        raise ValueError(
            f"images must be uint8 or uint16 for a discrete auto-encoder, whose density lies within [0, 1]; got "
            f"{facts.dtype}. Convert them, or use the tokenizer random-projection, which takes any."
        )


def fitted(config: Pretrain, num_images: int, given: Collection[str] = ()) -> Pretrain:
    """An auto-encoder's run with schedules of its length, but for `given` settings; any other run as it is."""
    method = config.method
    if not isinstance(method, DVAEConfig):
        return config
    images = min(num_images, config.data.images or num_images)
    total = max(1, config.duration.in_steps(max(1, images // config.batch_size)))
    whole = replace(method.annealed_over(total), momentum=0.99 if total < SHORT_RUN else 0.999)
    names = ("temperature", "kl_weight", "momentum")
    kept = {name for name in names if any(f"{item}.".startswith(f"method.{name}.") for item in given)}
    return replace(config, method=replace(whole, **{name: getattr(method, name) for name in kept}))


_SMALL = DVAESizes(vocabulary=1024, stride=4, **TOKENIZER_SIZES["small"])
DVAE = Family(
    "dvae",
    "Discrete auto-encoder",
    dvae_paper,
    {},
    others=(
        Recipe(
            _micro(),
            dvae_paper(),
            "Discrete auto-encoder, 16 channels, 512 codes of 4x4 pixels, on 10,000 images of CIFAR-10; for two CPU "
            "cores.",
            "about 9 minutes of one core (26 on a machine shared with eight others)",
            "mean squared error 0.0098 from ids (cells' means: 0.0112), 100 codes used, perplexity 54; one run",
        ),
        Recipe(
            replace(
                _ours(DVAEConfig(sizes=_SMALL, image_size=(32, 32)), 128, 20_000, 3e-4), recipe="dvae_small_cifar10"
            ),
            dvae_paper(),
            "Discrete auto-encoder, 64 channels, 1,024 codes of 4x4 pixels, on CIFAR-10's 50,000 images; for one GPU.",
            *("not measured yet", "not measured yet"),
        ),
    ),
    rescale=rescale,
    bare="dvae",
    idea="codes from which the image is rebuilt",
    sizes=tuple(TOKENIZER_SIZES),
    default_size="small",
    trains="tokenizer",
)
