"""What a recipe is, which recipes a published method has, and a paper's recipe at another scale.

A paper states numbers for one data set and one or two sizes. What follows from other images, from a smaller encoder and
from a smaller budget is decided here (`scale`), once for all methods, and is ours.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain, leaves, to_dict
from pantomim.core.names import did_you_mean
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
# Below, the peak of a batch is ours: as MAE was measured with at micro, and less for a wider encoder and more for a
# larger batch, as usual with Adam (inverse to the width, by the root of the batch).
SMALL_LR, SMALL_BATCH = 1e-3, 32
MICRO_SIDE, MICRO_PATCHES = 224, 4096  # of images, and in a batch, so that a step of micro is less than a second's work
MAX_SIDE = 512  # a larger common size is a camera's, not a model's: such images are treated like mixed ones


@dataclass(frozen=True)
class Scale:
    """Images, sizes and budget of a run."""

    size: str  # name of the encoder's and the decoder's sizes
    facts: Facts
    stats: Stats
    start: EncoderConfig | None = None  # an encoder to continue: all is kept but image size and drop path
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig | None = None  # None: the paper's, with 20 epochs of warm-up and, below base, a rate of ours
    most: int | None = None  # images in a batch, halved where there are fewer; None: few for micro, on a CPU, else 256
    duration: Duration = field(default_factory=lambda: Duration(epochs=400))
    whole: int | None = None  # images of the training set that these are a part of
    least: int = 1  # patches of `start` along a side of an image

    @property
    def encoder(self) -> EncoderConfig:
        """One that fits images and size, or continues `start`."""
        return self.encoder_like(EncoderConfig())

    def encoder_like(self, published: EncoderConfig) -> EncoderConfig:
        """The same for a method whose encoder has its own positions, biases and initial weights."""
        largest = MICRO_SIDE if self.micro else MAX_SIDE
        if self.start is not None:
            patch = self.start.patch_size
            rows, cols = (max(side // patch, self.least) for side in common_size(self.facts, largest))
            return replace(self.start, image_size=(rows * patch, cols * patch), drop_path=0.0)
        image_size = choose_image_size(self.facts, largest)
        of_images: Any = {"in_chans": self.facts.channels, "mean": self.stats.mean, "std": self.stats.std}
        sizes: Any = {**ENCODER_SIZES[self.size], "image_size": image_size, "patch_size": choose_patch(image_size)}
        return replace(published, **sizes, **of_images, drop_path=0.0)

    @property
    def micro(self) -> bool:
        """Whether the encoder is of the size for a CPU."""
        return (self.size if self.start is None else nearest_size(self.start.width)) == "micro"

    @property
    def batch_size(self) -> int:
        """Images in a batch: no more than there are, nor fewer than eight if `most` allows."""
        batch_size, limit = self.most or 256, max(self.facts.num_images, 8)
        if self.most is None and self.micro:
            batch_size, limit = SMALL_BATCH, min(limit, max(MICRO_PATCHES // math.prod(self.encoder.grid), 8))
        while batch_size > limit:
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
    """A published recipe at another scale, MAE's decoder too; masks, targets and what is done to colours stay."""
    method: Any = paper.method
    parts: dict[str, Any] = {"encoder": to.encoder_like(method.encoder)}
    width = parts["encoder"].width
    if isinstance(getattr(method, "decoder", None), DecoderConfig):
        parts["decoder"] = DECODER_SIZES[nearest_size(width)]
    base_lr = paper.optim.base_lr if width >= BASE_WIDTH else small_lr(width, to.batch_size)
    return replace(
        paper,
        data=replace(to.data, augment=paper.data.augment if to.in_colour else Augment()),
        method=replace(method, **parts),
        optim=to.optim or replace(paper.optim, base_lr=base_lr, warmup=Duration(epochs=20)),
        batch_size=to.batch_size,
        duration=to.duration,
    )


def small_lr(width: int, batch_size: int, peak: float = SMALL_LR) -> float:
    """The rate per 256 images of encoders below base; at micro and 32 images their rate is `peak`."""
    lr = peak * ENCODER_SIZES["micro"]["width"] / width * (batch_size / SMALL_BATCH) ** 0.5
    return float(f"{lr * 256 / batch_size:.2g}")


def choose_patch(image_size: tuple[int, int], sides: tuple[int, ...] = (16, 8, 4)) -> int:
    """The largest of these sides that gives at least 8 patches a side; 2 for very small images."""
    if min(image_size) < 2:
        raise ValueError(
            f"image_size must be at least 2x2, the smallest patch; got {image_size[0]}x{image_size[1]}. "
            f"Give images with something to mask."
        )
    return next((patch for patch in sides if min(image_size) // patch >= 8), 2)


def choose_image_size(
    facts: Facts, largest: int = MAX_SIDE, square: int = 224, sides: tuple[int, ...] = (16, 8, 4)
) -> tuple[int, int]:
    """`common_size` in whole patches."""
    height, width = common_size(facts, largest, square)
    patch = choose_patch((height, width), sides)
    return height // patch * patch, width // patch * patch


def common_size(facts: Facts, largest: int = MAX_SIDE, square: int = 224) -> tuple[int, int]:
    """The images' common size; without one up to `largest`, the median shorter side, to `square`."""
    if facts.size is None or max(facts.size) > largest:
        return (min(facts.median_shorter_side, square),) * 2
    return facts.size


def nearest_size(width: int, among: Iterable[str] = ENCODER_SIZES) -> str:
    """The name of the size whose width is nearest."""
    return min(among, key=lambda name: abs(ENCODER_SIZES[name]["width"] - width))


Trained = Literal["encoder", "tokenizer", "classifier", "segmenter"]
Row = tuple[str, ...]  # what a run costs, the score to expect, both with their source; then notes
NOT_MEASURED = "not measured by us"
# Methods of others that are not here: whoever asks for one means none of ours with a name like it.
OTHERS = {"dino", "dinov2", "dinov3", "ibot", "simclr", "simsiam", "byol", "swav", "msn", "mocov2", "capi", "eva"}
OTHERS |= {"videomae", "vjepa", "mae3d"}
ON_CIFAR10: dict[str, Row] = dict.fromkeys(CIFAR10, ("not measured yet", "not measured yet; nothing is tuned"))
_WORDS = {
    "micro": "micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores",
    "tiny": "ViT-Ti/4, on CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU",
}


def no_recipe(name: str, known: Iterable[str]) -> ValueError:
    """What a name that is not among the known ones is answered with."""
    near = () if name.lower().partition("_")[0] in OTHERS else known
    return ValueError(f"There is no recipe {name}.{did_you_mean(name, near, '`pantomim recipes` lists them all.')}")


@dataclass(frozen=True)
class Recipe:
    """A starting point for a run, and what is known about it."""

    config: Pretrain  # carries the recipe's name; of a chain of runs the first
    paper: Pretrain  # the published config that it is compared with
    summary: str
    cost: str = ""  # of a run, and who measured it
    expected: str = ""  # score, and who measured it
    notes: tuple[str, ...] = ()  # what differs from the paper and is no field of the config
    stages: int | None = None  # how many runs a chain has; None: a single run
    origins: Mapping[str, str] | None = None  # of values that the paper does not state, by their names' beginnings

    @property
    def name(self) -> str:
        """Method, size, data."""
        return self.config.recipe


@dataclass(frozen=True)
class Family:
    """The recipes of a published method, and the bare method, which any images complete."""

    name: str  # what the names of its recipes begin with
    title: str  # what the paper calls it
    published: Callable[..., Pretrain]  # makes the paper's config of a size
    rows: Mapping[str, Row]  # the published recipes, by size
    others: tuple[Recipe, ...] = ()
    small: Mapping[str, Row] = field(default_factory=dict)  # beside MAE's: same images, sizes, rates and length
    rescale: Callable[[Pretrain, Scale], Pretrain] = scale  # and what else of the method follows the scale
    bare: str | None = None  # name of the bare method; None: there is none
    idea: str = ""  # what the bare method predicts, from what
    notes: tuple[str, ...] = ()  # as of `Recipe`, for all of them and for the bare method; so are the next two
    stages: int | None = None
    origins: Mapping[str, str] | None = None
    sizes: tuple[str, ...] = tuple(ENCODER_SIZES)  # of the bare method
    default_size: str = "tiny"
    trains: Trained = "encoder"
    data: str = "ImageNet-1K"  # of the published recipes
    least: int = 1  # patches along a side of an image, where an encoder is continued

    @property
    def recipes(self) -> Iterator[Recipe]:
        """All of them."""
        for size, row in self.rows.items():
            run: Any = self._of_size(size)
            vit = f"ViT-{size[0].upper()}/{run.method.encoder.patch_size}"
            tail = " each" if self.stages else ": a starting point" if self.origins else ""
            yield self._recipe(run, run, f"{vit}, {self.data}, {run.duration}{tail}", row)
        yield from self.others
        for size, row in self.small.items():
            paper = self.paper(ENCODER_SIZES[size]["width"])
            run = replace(self.rescale(paper, CIFAR10[size]), recipe=f"{self.name}_{size}_cifar10")
            yield self._recipe(run, paper, _WORDS[size], row)

    @property
    def summary(self) -> str:
        """One line on the bare method."""
        whose = "the paper's own numbers are not known" if self.origins else "what the paper does not state is ours"
        return f"{self.title} for any images: size and data decide the rest; {whose}."

    def paper(self, width: int) -> Pretrain:
        """The published config nearest to an encoder's width: what a run is compared with."""
        return self._of_size(nearest_size(width, self.rows)) if self.rows else self.published()

    def fit(
        self, size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None, whole: int | None = None
    ) -> Pretrain:
        """The bare method for such images; of `start`, an encoder to continue, not image size and drop path."""
        if size not in self.sizes:
            raise ValueError(f"prepare.size must be one of {', '.join(self.sizes)} for {self.bare}; got {size}.")
        width = start.width if start is not None else ENCODER_SIZES.get(size, {"width": 0})["width"]
        to = Scale(size, facts, stats, start, whole=whole, least=self.least)
        return replace(self.rescale(self.paper(width), to), recipe=self.bare or self.name)

    def _of_size(self, size: str) -> Pretrain:
        ending = "in1k" if self.data == "ImageNet-1K" else self.data.lower()
        return replace(self.published(size), recipe=f"{self.name}_vit_{size}_{ending}")

    def _recipe(self, config: Pretrain, paper: Pretrain, what: str, row: Row) -> Recipe:
        (cost, expected, *notes), summary = row, f"{self.title}, {what}."
        return Recipe(config, paper, summary, cost, expected, (*notes, *self.notes), self.stages, self.origins)


@dataclass(frozen=True)
class Numbers:
    """Of one size in training for a task; the rate is the peak at that batch, the score the published one."""

    lr: float
    layer_decay: float
    drop_path: float
    score: str
    layer_scale: float | None = None  # of pre-training
    batch: int = 1024
    epochs: int = 50
    warmup: int = 5  # epochs
    clip: float | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Preset:
    """How the authors of a paper train for a task."""

    title: str
    sizes: Mapping[str, Numbers]
    note: str
    parts: Mapping[str, Any] = field(default_factory=dict)  # of the method
    encoder: Mapping[str, Any] = field(default_factory=dict)
    schedule: Literal["mae", "beit", "mmcv", "poly"] = "mae"

    def encoder_of(self, size: str, image_size: tuple[int, int], **more: Any) -> EncoderConfig:
        """The encoder of one size."""
        row, patch = self.sizes[size], 14 if size == "huge" else 16
        sizes: Any = {**ENCODER_SIZES[size], **self.encoder, **more}
        return EncoderConfig(image_size, patch, drop_path=row.drop_path, layer_scale=row.layer_scale, **sizes)

    def optim_of(self, size: str, **more: Any) -> OptimConfig:
        """Optimiser and schedule of one size."""
        row = self.sizes[size]
        more |= {"layer_decay": row.layer_decay, "schedule": self.schedule}
        return OptimConfig(base_lr=row.lr * 256 / row.batch, weight_decay=0.05, betas=(0.9, 0.999), **more)

    def family(self, name: str, title: str, published: Callable[["Preset", str], Pretrain], **more: Any) -> Family:
        """The recipes of a task that follow this paper; `published` makes the config of a size."""
        rows = {size: (NOT_MEASURED, row.score) for size, row in self.sizes.items()}
        more["notes"] = (self.note, *more.get("notes", ()))
        return Family(name, f"{title} as {self.title}", partial(published, self), rows, bare=name, **more)


# Of pre-training, beside what `ENCODER_SIZES` has.
BEIT_ENCODER = {"position": "none", "attention_bias": "qv", "initialisation": "beit"}
CAE_ENCODER = {"position": "sincos_rows_first", "attention_bias": "qv", "initialisation": "cae"}


def with_parts(run: Pretrain, **parts: Any) -> Pretrain:
    """The same run with other settings of its method."""
    return replace(run, method=replace(run.method, **parts))


def differences(config: Pretrain, paper: Pretrain) -> list[tuple[str, object, object]]:
    """Settings, but of place and manner, in which a config is not the paper's: (dotted name, ours, the paper's)."""
    ours, theirs = leaves(to_dict(config)), leaves(to_dict(paper))
    apart = ("recipe", "init", "runtime.", "data.source", "data.scale", "data.workers", "data.memory_gib")
    found = ((name, ours.get(name), theirs.get(name)) for name in (theirs | ours) if not name.startswith(apart))
    return [row for row in found if row[1] != row[2]]
