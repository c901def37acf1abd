"""A run, written down: frozen, validated settings, to and from YAML."""

import copy
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from pantomim.core.frozen import frozen
from pantomim.core.machine import Device
from pantomim.core.names import did_you_mean
from pantomim.core.ranges import (
    AtLeastOne,
    AtLeastZero,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Share,
    ShareBelowOne,
)
from pantomim.core.reading import adapter, read_yaml
from pantomim.data.augment import Augment
from pantomim.data.mask_crops import MaskCrop
from pantomim.data.transforms import Crop, View
from pantomim.methods import MethodConfig
from pantomim.methods.mae import MAEConfig

T = TypeVar("T")
Reinit = Literal["full", "reference", "none"]


@frozen
class Duration:
    """A length of training, in optimiser steps or in passes over the data; exactly one of the two is set."""

    steps: AtLeastZero | None = None
    epochs: NotNegative | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"Duration must have either steps or epochs; got {self.steps} and {self.epochs}. Set one.")

    def in_steps(self, steps_per_epoch: int) -> int:
        """Converted once, before the first step."""
        return self.steps if self.steps is not None else math.ceil((self.epochs or 0.0) * steps_per_epoch)

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else f"{self.epochs:g} epochs"


@frozen
class MaskConfig:
    """The masks that a run learns from."""

    name: str | None = None  # Of their folder or array; None: the only one
    ignore: int = 255  # The value in masks of pixels that have no class
    reduce_zero: bool | None = None  # 0 is no class either, and the others count from 1; None: so it is in ADE20K alone
    # How an image and its mask are cut, in the place of `DataConfig.crop`; its base is the size of a test, too
    crop: MaskCrop = field(default_factory=MaskCrop)


@frozen
class DataConfig:
    """Which images, and how training images are made of them."""

    source: str = ""  # An embedded set, a folder, a zip, an .npz, a list of files, torchvision:NAME or hf:NAME
    # Use only this many of the training images, a fixed draw (balanced over classes, if any)
    images: AtLeastOne | None = None
    crop: Crop = field(default_factory=Crop)  # How a training image is cut and flipped
    # What is done to it then: colour jitter, blur, RandAugment, erasing ...
    augment: Augment = field(default_factory=Augment)
    # Processes that read and decode; None: chosen by the kind of data and the number of cores
    workers: AtLeastZero | None = None
    memory_gib: Positive = 4.0  # A set that fits in this much memory is held there
    second: View | None = None  # How another view of the same images is made, for a method that compares two
    fraction: PositiveShare | None = None  # Use only this share of every class, rounded up: a draw by `draw`
    # Use only so many images of every class, as far as there are: a draw by `draw`
    labels_per_class: AtLeastOne | None = None
    draw: AtLeastZero = 0  # Which draw, with `fraction` or `labels_per_class`
    # How often an image comes in a row, each time cut and changed anew; an epoch then shows that much fewer images
    # (repeated augmentation, arXiv:1901.09335)
    repeats: AtLeastOne = 1
    masks: MaskConfig | None = None  # Where the class of every pixel is, for a method that learns it
    # Share held back for tests where the source has no test images of its own; 0: all are trained on. Scores on the
    # same source are of a fifth in any case: with less than 0.2 partly of images seen
    holdout: ShareBelowOne = 0.2
    # The stored value that becomes 1; None: by the number type, 255 for 8-bit images (docs/data.md)
    scale: Positive | None = None

    def __post_init__(self) -> None:
        asked = {"images": self.images, "fraction": self.fraction, "labels_per_class": self.labels_per_class}
        if len(given := {name: value for name, value in asked.items() if value is not None}) > 1:
            raise ValueError(
                f"DataConfig must have at most one of images, fraction and labels_per_class; got {given}. Keep one."
            )

    @property
    def partial(self) -> bool:
        """Whether only some of the training images are used."""
        return any(asked is not None for asked in (self.images, self.fraction, self.labels_per_class))


@frozen
class Validation:
    """By which training images the best step of a task is found, or the loss of another method is watched."""

    # Of every class of the training images, held out, but no more than 10,000 images; 0: none is, and the last step is
    # taken; where the source has a split val beside a test split, and all training images are used, that split is taken
    # instead
    share: ShareBelowOne = 0.1
    # Steps between two looks; None: an epoch, but at most twenty times; of a method's own loss by `engine.validation`
    every: AtLeastOne | None = None


@frozen
class Lora:
    """Low-rank updates of the encoder's linear layers: with a rank, nothing else of it is trained (arXiv:2106.09685).

    The defaults are those of RoBERTa base in the paper's Table 9, whose rank is 8.
    """

    rank: AtLeastZero = 0  # Of each update; 0: there are none, and the encoder is trained as it is
    alpha: Positive = 8.0  # An update is multiplied by alpha / rank
    mlp: bool = False  # Also update the MLPs, beside attention's two layers


@frozen
class OptimConfig:
    """AdamW, or another optimiser, with linear warm-up and half-cosine decay, both in steps."""

    base_lr: Positive = 1.5e-4  # Learning rate per 256 images; the rate in use is base_lr * batch_size / 256
    min_lr: NotNegative = 0.0  # Rate at the end
    start_lr: NotNegative = 0.0  # Rate at the beginning of the warm-up
    warmup: Duration = field(default_factory=lambda: Duration(epochs=40))  # Length of the linear warm-up
    weight_decay: NotNegative = 0.05  # For matrices and tokens
    # Weight decay at the end, reached along half a cosine; None: it is constant
    weight_decay_end: NotNegative | None = None
    # Peak in the step after the warm-up ("mae"), or in its last step ("beit", and CAE's); "drop": the peak, then min_lr
    # (SimMIM's); "poly" and "mmcv": linearly to min_lr, as in mmsegmentation 1.x and 0.x
    schedule: Literal["mae", "beit", "drop", "poly", "mmcv"] = "mae"
    drop_at: Share = 7 / 8  # Of schedule drop: the share of the run after which the rate is min_lr
    # Rate and weight decay are those of so many steps later: -1 in SimMIM's loop, 1 in I-JEPA's
    lead: Literal[-1, 0, 1] = 0
    # Length of schedules over that of the run; above 1 the run ends before they do (I-JEPA's ipe_scale)
    stretch: Annotated[float, Range(least=1)] = 1.0
    decay_tokens: bool = True  # Also decay class, register and mask tokens, as the authors' code does
    # The same of the mask token apart; None: like the other tokens. BEiT's authors decay it alone
    decay_mask_token: bool | None = None
    decay_vectors: bool = False  # Also decay biases and norms, as MoCo v3's authors do
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)  # AdamW's two decay rates
    eps: Positive = 1e-8  # What AdamW adds to the root of the second moment
    clip_norm: Positive | None = None  # Largest gradient norm; None: not clipped, as in the paper
    # Factor of the rate from each block of the encoder to the one before it; 1: one rate for all
    layer_decay: PositiveShare = 1.0
    freeze_blocks: AtLeastZero = 0  # So many first blocks of the encoder, and what lies before them, are not trained
    lora: Lora = field(default_factory=Lora)  # What is trained of the encoder instead of its weights; merged at the end
    decay_relative: bool = True  # Also decay tables of relative positions, as BEiT's authors do unless told otherwise
    # AdamW, momentum SGD with Nesterov's step, or LARS (You et al. 2017)
    optimiser: Literal["adamw", "sgd", "lars"] = "adamw"
    momentum: ShareBelowOne = 0.9  # Of SGD and LARS
    trust_coefficient: Positive = 0.001  # Of LARS: step over weight norm, before the rate

    def __post_init__(self) -> None:
        if self.weight_decay_end and not self.weight_decay:
            raise ValueError(
                f"OptimConfig.weight_decay must be above 0 beside weight_decay_end; got 0 and "
                f"{self.weight_decay_end:g}. Begin with a small one, such as 1e-8."
            )


@frozen
class RuntimeConfig:
    """How a run is carried out; nothing here changes what is learned, but for rounding and the seed."""

    seed: AtLeastZero = 0  # Of weights, data order, crops and masks
    device: Device = "auto"  # "auto" takes a GPU if there is one, Apple's ("mps") as well
    # "auto" is float32 on a CPU, bfloat16 on a GPU, float16 with a scaled loss on one without bfloat16 (T4, V100);
    # "bfloat16_residual" keeps the sums of the blocks in bfloat16, too: less memory, and faster where it is compiled
    precision: Literal["auto", "float32", "bfloat16", "bfloat16_residual", "float16"] = "auto"
    # Compile the whole forward pass with static shapes (the first step then takes a minute or so); "auto": on a GPU, in
    # runs of at least 500 steps
    compile: bool | Literal["auto"] = "auto"
    accumulation: AtLeastOne = 1  # Micro-batches a step; the batch size stays what it is
    # Steps between two logged ones; None: every step in runs under 200 steps, else every 10th
    log_every: AtLeastOne | None = None
    # Steps between two checkpoints; None: a twentieth of the run, at least 50 and at most 1,000
    save_every: AtLeastOne | None = None
    keep: AtLeastOne = 2  # Checkpoints that are kept; the newest is always among them
    # Where the curves also go, each with an extra of its name; the run folder has them in any case
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "none"
    threads: AtLeastOne | None = None  # CPU threads of torch; None: torch's choice


@frozen
class Pretrain:
    """Everything that decides a pre-training run."""

    recipe: str  # Name of the recipe that it started from
    data: DataConfig = field(default_factory=DataConfig)  # Which images, and how they are cut
    method: MethodConfig = field(default_factory=MAEConfig)  # The method and its parts
    optim: OptimConfig = field(default_factory=OptimConfig)  # Optimiser and schedule
    batch_size: AtLeastOne = 4096  # Images per step, over all devices and micro-batches
    duration: Duration = field(default_factory=lambda: Duration(epochs=800))  # Length of the run
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)  # Seed, device, precision, logging and saving
    init: str | None = None  # Weights to start from: a run folder, a file, or timm:NAME; None: drawn from the seed
    # How the best step is found, for a method that learns from labels; None: the last step is taken. Of another one the
    # loss is taken: None: on images that are held back anyway, if there are any (docs/data.md)
    validation: Validation | None = None
    # Lengths at which the run had ended before it was extended. From the last one on the rate rises again, for a
    # twentieth of what follows, to where it would be in a run of the whole length, and then is as in that one
    extended: tuple[Duration, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size % self.runtime.accumulation:
            raise ValueError(
                f"Pretrain.batch_size must be a multiple of runtime.accumulation; got {self.batch_size} and "
                f"{self.runtime.accumulation}. Change one of the two."
            )
        kept = {"optim.lora.rank": self.optim.lora.rank, "optim.freeze_blocks": self.optim.freeze_blocks}
        for name, value in kept.items():
            if value and self.init is None:
                raise ValueError(
                    f"Pretrain.init must name weights to start from where not all of the encoder is trained; got none "
                    f"with {name} {value}. Name them, or set {name} to 0."
                )


@frozen
class Stages:
    """A chain of runs, each of which has the encoder of the one before as its teacher."""

    run: Pretrain  # The first stage, whose teacher is the first one; the others differ in teacher and seed
    stages: AtLeastOne = 2  # How many; dBOT has 2, or 3 for dense tasks
    # How a stage starts. "full": new student (another seed) and optimiser; "reference": new student, but the bias of
    # the patch projection and AdamW's state are kept, as in the authors' code; "none": new optimiser
    reinit: Reinit = "full"
    evaluate: str | None = None  # Labelled images on which every stage is scored; None: none is


def with_duration(config: Pretrain, duration: Duration) -> Pretrain:
    """The same run at another length; the warm-up keeps its share of it where both are given in one unit.

    With 500 steps of a recipe of 800 epochs, 40 of them warm-up, the warm-up becomes 25 steps. So do steps between two
    looks at held-out images.
    """
    old, warmup, judged = config.duration, config.optim.warmup, config.validation
    if judged is not None and judged.every and old.steps and duration.steps:
        every = max(1, round(judged.every * duration.steps / old.steps))
        config = replace(config, validation=replace(judged, every=every))
    length = duration.steps if duration.steps is not None else duration.epochs
    if old.steps is not None and warmup.steps is not None:
        share = warmup.steps / max(old.steps, 1)
    elif old.epochs is not None and warmup.epochs is not None:
        share = warmup.epochs / old.epochs if old.epochs else 0.0
    else:
        return replace(config, duration=duration)
    scaled = share * (length or 0)
    new = Duration(steps=round(scaled)) if duration.steps is not None else Duration(epochs=scaled)
    return replace(config, duration=duration, optim=replace(config.optim, warmup=new))


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values: tuples are lists and paths strings, so that YAML and JSON read the same back."""
    return dict(json.loads(json.dumps(asdict(config), default=str)))


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def to_yaml(config: Any) -> str:
    """A config as YAML, in the order of its fields."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=100)


def from_dict(cls: type[T], values: Any, where: str) -> T:
    """A validated config from plain values.

    Raises `ValueError` with every problem of the config, one a line; an unknown key names its nearest neighbour.
    """
    try:
        return cast(T, adapter(cls).validate_python(values))
    except ValidationError as error:
        lines = [f"{where} is not a valid {cls.__name__}:"]
        for problem in error.errors():
            path, owner = _followed(cls, [part for part in problem["loc"] if isinstance(part, str | int)])
            dotted = ".".join(map(str, path))
            if problem["type"] == "unexpected_keyword_argument":
                lines.append(f"  {dotted}: no such key.{_nearest(owner, str(path[-1]))}")
            else:
                lines.append(f"  {dotted}: {problem['msg'].removeprefix('Value error, ')}")
        raise ValueError("\n".join(lines)) from None


# What runs of earlier versions have in their config.yaml and this one has not: by method, dotted setting, and the one
# value at which a run is what it is without the setting.
REMOVED: dict[str, dict[str, Any]] = {
    "": {"runtime.cache": False},
    "cmt_mae": {
        "method.decoder_form": "mae",
        "method.decoder_input": "latent",
        "method.shared_head": False,
        "method.positions": "masked",
        "method.predict_class": False,
    },
}


def of_today(values: Any, where: str) -> Any:
    """The settings of a run that an earlier version wrote, as this one has them; refuses what it cannot do, by name."""
    if not isinstance(values, dict):
        return values
    if isinstance(values.get("run"), dict):  # a chain of runs
        return values | {"run": of_today(values["run"], where)}
    values = copy.deepcopy(values)
    method = values.get("method")
    kind = method.get("kind") if isinstance(method, dict) else None
    for dotted, kept in (REMOVED[""] | REMOVED.get(str(kind), {})).items():
        *path, name = dotted.split(".")
        part: Any = values
        for key in path:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict) and name in part and (found := part.pop(name)) != kept:
            raise ValueError(
                f"{where}: {dotted} must be {kept}, as this version has no such setting; got {found}. Set it so, or "
                f"use the version that wrote the file."
            )
    if kind == "cmt_mae" and isinstance(method, dict):
        _move_target(method)
    if kind == "supervised" and isinstance(method, dict) and "head_init" not in method:
        method |= {"head_init": "deit", "pool": "normed_mean" if method.get("pool") == "mean" else method.get("pool")}
    return values


def is_of_earlier_version(path: Path) -> bool:
    """Whether a config.yaml has settings that this version removed or moved."""
    return bool(of_today(values := read_yaml(path), str(path)) != values)


def _move_target(method: dict[str, Any]) -> None:
    """CMT-MAE's target once lay beside it in four settings; the mixing had three weights, and a mode for no warm-up."""
    moved = {"kind": method.pop("target_mode", None)}
    moved |= {name: method.pop(name, None) for name in ("normalise", "distance")}
    mixing = method.get("mixing")
    mixing = mixing if isinstance(mixing, dict) else {}
    if mixing.pop("stage_mode", None) == "joint":
        mixing["warmup_share"] = 0.0
    in_mask, in_target = (mixing.pop(f"{part}_teacher_weight", None) for part in ("mask", "target"))
    if in_mask is not None:  # the weight of both is now the mask's; the target may have its own
        in_target = mixing.get("teacher_weight", 0.5) if in_target is None else in_target
        mixing["teacher_weight"] = in_mask
    if moved["kind"] != "concat":
        moved["teacher_weight"] = in_target
    if moved := {name: value for name, value in moved.items() if value is not None}:
        method["target"] = {"kind": "weighted"} | moved


def from_yaml(cls: type[T], path: Path) -> T:
    """A validated config from a YAML file."""
    if not isinstance(values := read_yaml(path), dict):
        raise ValueError(
            f"{path} must hold the settings of a {cls.__name__} by name; got {values!r}. Put it back whole."
        )
    return from_dict(cls, of_today(values, str(path)), str(path))


def read_plan(path: Path) -> Pretrain | Stages:
    """The config of a run, or of a chain of runs, from a YAML file."""
    values = read_yaml(path)
    chain = isinstance(values, dict) and "stages" in values
    return from_yaml(Stages, path) if chain else from_yaml(Pretrain, path)


def with_kind(config: T, path: str, kind: str, within: str = "") -> T:
    """The same config with another kind of part at a dotted path; values that both have, such as a ratio, are kept.

    `path` is for example method.masker, `kind` color_noise; `within` is where `config` itself lies, for messages.
    """
    name, _, rest = path.partition(".")
    hints = get_type_hints(type(config)) if is_dataclass(config) else {}
    if name not in hints:
        raise ValueError(f"There is no {within}{path}.kind.{_nearest([type(config)] if hints else [], name)}")
    part = getattr(config, name)
    if isinstance(config, Pretrain) and not rest and name == "method" and part.kind != kind:
        raise ValueError(
            f"method.kind must stay that of the recipe, {part.kind}; got {kind}. Name a recipe of {kind} instead."
        )
    if rest:
        return replace(config, **{name: with_kind(part, rest, kind, f"{within}{name}.")})  # type: ignore[type-var]
    choices = {member.kind: member for member in _members(hints[name]) if hasattr(member, "kind")}
    if len(choices) == 1:  # one class, whose kind is a setting like others
        return config
    if kind not in choices:
        raise ValueError(f"{within}{path}.kind must be one of {', '.join(choices)}; got {kind}.")
    if part.kind == kind:
        return config
    hints, other = get_type_hints(choices[kind]), get_type_hints(type(part))
    settings = {item.name for item in fields(choices[kind])} - {"kind"}  # without what is the class's
    shared = {item for item in settings & other.keys() if hints[item] == other[item]}
    values = {item: getattr(part, item) for item in shared if not is_dataclass(getattr(part, item))}
    return replace(config, **{name: choices[kind](**values)})  # type: ignore[type-var]


def with_settings(config: Pretrain, settings: Mapping[str, Any]) -> Pretrain:
    """The same run with other values of settings, by their dotted names, or nested as in a file.

    Another kind of part comes first, as in `with_kind`; one unit of a duration takes the place of the other.
    """
    given, known = leaves(dict(settings)), leaf_owners(Pretrain)
    for name in given:
        if name not in known:
            raise ValueError(f"There is no setting {name}.{did_you_mean(name, known, 'config.yaml of a run has all.')}")
    for name, value in given.items():
        if name.endswith(".kind"):
            config = with_kind(config, name.removesuffix(".kind"), value)
    values = to_dict(config)
    for name, value in {**given, **dict.fromkeys(other_units(given))}.items():
        *path, last = name.split(".")
        part = values
        for key in path:
            part[key] = part = part.get(key) or {}
        part[last] = value
    return from_dict(Pretrain, values, "The run with these settings")


def other_units(names: Collection[str]) -> list[str]:
    """The settings of durations that are to be unset where those of the other unit are given."""
    pairs = [("steps", "epochs"), ("epochs", "steps")]
    return [
        f"{duration}.{other}"
        for duration in ("duration", "optim.warmup")
        for unit, other in pairs
        if f"{duration}.{unit}" in names and f"{duration}.{other}" not in names
    ]


def leaf_owners(cls: Any, prefix: str = "") -> dict[str, set[str]]:
    """The dotted names of all settings that a config can have, whatever parts are chosen, and their classes' names."""
    found: dict[str, set[str]] = {}
    hints = get_type_hints(cls)
    for item in fields(cls):  # of which a ClassVar is none
        name, hint = prefix + item.name, hints[item.name]
        members = [] if get_origin(hint) is tuple else _members(hint)
        if not members or type(None) in get_args(hint):
            found.setdefault(name, set()).add(cls.__name__)
        for leaf, owners in (pair for member in members for pair in leaf_owners(member, f"{name}.").items()):
            found.setdefault(leaf, set()).update(owners)
    return found


def _members(hint: Any) -> list[Any]:
    """The config classes in a type: itself, the members of a union, the items of a tuple."""
    return [hint] if is_dataclass(hint) else [member for item in get_args(hint) for member in _members(item)]


def _followed(cls: type, path: list[Any]) -> tuple[list[Any], list[Any]]:
    """A path into a config without the kinds that pydantic puts between, and the classes that may own its last key."""
    owners: list[Any] = [cls]
    plain: list[Any] = []
    for place, key in enumerate(path):
        chosen = [owner for owner in owners if getattr(owner, "kind", None) == key and len(owners) > 1]
        if chosen:
            owners = chosen
            continue
        plain.append(key)
        if place < len(path) - 1 and isinstance(key, str):
            owners = [member for owner in owners for member in _members(get_type_hints(owner).get(key))]
    return plain, owners


def _nearest(owners: list[Any], key: str) -> str:
    """What to write instead of a key that none of these configs has."""
    names = [item.name for owner in owners for item in fields(owner)]
    return did_you_mean(key, names, f"It has: {', '.join(names)}.") if names else ""
