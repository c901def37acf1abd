"""A paper's recipe at another scale: other sizes, small images, images of one's own.

A paper states numbers for one data set and one or two sizes. What follows from other images, from a smaller encoder and
from a smaller budget is decided here, once for all methods, and is ours.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.data.transforms import Crop
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig

# MAE's decoder. From base on the paper's (Table 1a, 1b); the smaller ones are ours.
DECODER_SIZES: dict[str, DecoderConfig] = {
    "micro": DecoderConfig(width=64, depth=1, heads=4),
    "tiny": DecoderConfig(width=128, depth=4, heads=4),
    "small": DecoderConfig(width=256, depth=4, heads=8),
    **dict.fromkeys(("base", "large", "huge"), DecoderConfig(width=512, depth=8, heads=16)),
}
BASE_WIDTH = ENCODER_SIZES["base"]["width"]  # from here on rates are the paper's
SMALL_LR = 6e-4  # per 256 images, below
MAX_SIDE = 512  # a larger common size is a camera's, not a model's: such images are treated like mixed ones


@dataclass(frozen=True)
class Scale:
    """Images, sizes and budget of a run.

    Args:
        size: Name of the encoder's and the decoder's sizes.
        facts: Size, channels and number of the images.
        stats: Their mean and std.
        start: Encoder whose training is continued: all of it is kept but its image size.
        data: Which images, and how they are cut.
        optim: All of the optimiser; None: the paper's, with a warm-up of 20 epochs and, below base, a rate of ours.
        most: Images in a batch, halved where there are fewer.
        duration: Length of the run.
    """

    size: str
    facts: Facts
    stats: Stats
    start: EncoderConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig | None = None
    most: int = 256
    duration: Duration = field(default_factory=lambda: Duration(epochs=400))

    @property
    def encoder(self) -> EncoderConfig:
        """One that fits images and size, or continues `start`."""
        return self.encoder_like(EncoderConfig())

    def encoder_like(self, published: EncoderConfig) -> EncoderConfig:
        """The same for a method whose encoder has its own positions, biases and initial weights."""
        image_size = choose_image_size(self.facts)
        if self.start is not None:
            patch = self.start.patch_size
            rows, cols = (max(side // patch, 1) for side in image_size)
            return replace(self.start, image_size=(rows * patch, cols * patch))
        return replace(
            published,
            **ENCODER_SIZES[self.size],
            image_size=image_size,
            patch_size=choose_patch(image_size),
            in_chans=self.facts.channels,
            mean=self.stats.mean,
            std=self.stats.std,
            drop_path=0.0,
        )

    @property
    def batch_size(self) -> int:
        """Images in a batch: no more than there are, nor fewer than eight if `most` allows."""
        batch_size = self.most
        while batch_size > max(self.facts.num_images, 8):
            batch_size //= 2
        return batch_size

    @property
    def in_colour(self) -> bool:
        """Whether images are such that colours can be changed."""
        return self.facts.channels == 3 and self.facts.dtype in ("uint8", "uint16")


# Two budgets: a quarter of an hour of two CPU cores, and a GPU's. Rates and lengths were found for MAE alone.
_CIFAR10 = Facts(50_000, 3, (32, 32), 32, "uint8", 10)
_STATS = Stats((0.4903, 0.4804, 0.4455), (0.2448, 0.2429, 0.2605))  # as `pantomim stats` gives of the training images
CIFAR10 = {
    "micro": Scale(
        "micro",
        _CIFAR10,
        _STATS,
        data=DataConfig(images=10_000, crop=Crop(scale=(0.4, 1.0), flip=True)),
        optim=OptimConfig(base_lr=8e-3, warmup=Duration(steps=600)),
        most=32,
        duration=Duration(steps=6000),
    ),
    "tiny": Scale("tiny", _CIFAR10, _STATS, optim=OptimConfig(base_lr=3e-4, warmup=Duration(epochs=20)), most=512),
}


def scale(paper: Pretrain, to: Scale) -> Pretrain:
    """A published recipe at another scale: its encoder gets the sizes of the scale, and MAE's decoder follows it.

    Masks, targets and the rest of the method stay. Colours are changed as in the paper where images have any.
    """
    method: Any = paper.method
    parts: dict[str, Any] = {"encoder": to.encoder_like(method.encoder)}
    width = parts["encoder"].width
    if isinstance(getattr(method, "decoder", None), DecoderConfig):
        parts["decoder"] = DECODER_SIZES[nearest_size(width)]
    base_lr = paper.optim.base_lr if width >= BASE_WIDTH else SMALL_LR
    return replace(
        paper,
        data=replace(to.data, augment=paper.data.augment if to.in_colour else Augment()),
        method=replace(method, **parts),
        optim=to.optim or replace(paper.optim, base_lr=base_lr, warmup=Duration(epochs=20)),
        batch_size=to.batch_size,
        duration=to.duration,
    )


def choose_patch(image_size: tuple[int, int], sides: tuple[int, ...] = (16, 8, 4)) -> int:
    """The largest of these sides that gives at least 8 patches a side; 2 for very small images.

    Raises:
        ValueError: if a side is smaller than two pixels.
    """
    if min(image_size) < 2:
        raise ValueError(
            f"image_size must be at least 2x2, the smallest patch; got {image_size[0]}x{image_size[1]}. "
            f"Give images with something to mask."
        )
    return next((patch for patch in sides if min(image_size) // patch >= 8), 2)


def choose_image_size(
    facts: Facts, largest: int = MAX_SIDE, square: int = 224, sides: tuple[int, ...] = (16, 8, 4)
) -> tuple[int, int]:
    """The images' common size, rounded down to the patch.

    Where they have none, or it is above `largest`: a square of their median shorter side, up to `square`.
    """
    height, width = facts.size or (0, 0)
    if facts.size is None or max(height, width) > largest:
        height = width = min(facts.median_shorter_side, square)
    patch = choose_patch((height, width), sides)
    return height // patch * patch, width // patch * patch


def nearest_size(width: int, among: Iterable[str] = ENCODER_SIZES) -> str:
    """The name of the size whose width is nearest."""
    return min(among, key=lambda name: abs(ENCODER_SIZES[name]["width"] - width))
