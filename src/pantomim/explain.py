"""What a config means before it costs anything: parts, shapes, parameters, FLOPs, memory, rates, differences."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pantomim.config import MethodConfig, Pretrain, leaves, to_dict
from pantomim.core.batch import Batch
from pantomim.data.augment import Augment
from pantomim.data.transforms import View
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Method
from pantomim.methods.beit import BEiT, BEiTConfig
from pantomim.methods.cae import CAE, CAEConfig
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.dvae import DVAE, DVAEConfig, DVAEDraws
from pantomim.methods.guides import GuideConfig, MaskGuide
from pantomim.methods.mae import MAE, MAEConfig
from pantomim.methods.milan import MILANConfig
from pantomim.methods.mocov3 import MoCoV3Config
from pantomim.methods.supervised import Supervised, SupervisedConfig, SupervisedDraws
from pantomim.methods.vqkd import VQKD, VQKDConfig, VQKDDraws
from pantomim.nn.dvae import code_grid
from pantomim.optim import scaled_lr
from pantomim.recipes.recipe import differences
from pantomim.targets.features import FeatureTarget, FeatureTargetConfig
from pantomim.targets.tokens import USUAL_VOCABULARY, TokenTarget, TokenTargetConfig
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import OF_STUDENT

LATE, OF = 98, 100  # the step at which costs are counted, and of how many: all parts take part by then
Section = tuple[str, list[tuple[str, str]]]  # a title, and rows of what and value


@dataclass(frozen=True)
class Cost:
    """What a method costs, counted on tensors without memory.

    Args:
        parameters: All parameters of each part that outlives the run, and of the whole method ("all").
        trainable: Those that are trained.
        flops: Forward pass of one image; a multiply-add counts two. Backward costs about twice as much again.
        draw_flops: What is asked of networks before that, of one image; nothing of it comes back.
        state_gib: Weights, gradients and AdamW's two moments in float32, and copies in a lower precision, if any.
        activations_gib: What backward keeps of one image.
        teachers: Which networks guide it and what they see.
    """

    parameters: dict[str, int]
    trainable: int
    flops: int
    draw_flops: int
    state_gib: float
    activations_gib: float
    teachers: tuple[Teacher, ...] = ()


def count_cost(config: Pretrain, precision: torch.dtype) -> Cost:
    """Count parameters, FLOPs and memory on fake (meta) tensors: no weight is allocated, so ViT-H costs nothing."""
    build = _builder(config.method)
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # where a part is copied
        method = build()
        few = 2 if method.requirements().whole_batch else 1  # images: one alone is compared with nothing
        kept, more = (_kept_bytes(method, images, precision) for images in (few, few + 1))
        batch, draws = _step(method, few)
        trainable = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
        method.requires_grad_(False)  # the counter's hooks know no views of parameters
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            method(batch, draws)
        with FlopCounterMode(display=False) as before:
            _step(method, few)
    parameters = {name: _count(part) for name, part in method.exports().items()} | {"all": _count(method)}
    return Cost(
        parameters=parameters,
        trainable=trainable,
        flops=counter.get_total_flops() // few,
        draw_flops=before.get_total_flops() // few,
        state_gib=(4 * (parameters["all"] + 3 * trainable) + kept - few * (more - kept)) / 2**30,
        activations_gib=(more - kept) / 2**30,
        teachers=tuple(teacher for teacher in _teachers(method) if teacher is not getattr(method, "ema_student", None)),
    )


def _teachers(module: nn.Module) -> list[Teacher]:
    """Those in a method whose features are predicted; not those within another, nor a guide of masks."""
    found: list[Teacher] = []
    for child in module.children():
        if isinstance(child, MaskGuide):
            continue
        found += [child] if isinstance(child, Teacher) else _teachers(child)
    return [teacher for teacher in found if not isinstance(teacher, _UnnamedTeacher)]


def _builder(config: MethodConfig) -> Callable[[], Method]:
    """What makes the method, with random masks; a tokenizer that is not named yet costs nothing.

    What is hidden costs the same wherever it lies, and a bank of noise is not made for this.
    """
    if isinstance(config, DVAEConfig | MoCoV3Config | SupervisedConfig | VQKDConfig):
        return config.build
    if isinstance(config, CMTMAEConfig | DBOTConfig | MILANConfig) and config.masker.guided:
        return _around_teacher(config)  # which networks are asked depends on the masker
    if isinstance(config, BEiTConfig | CAEConfig | MAEConfig) and config.masker.guided:
        return _guided(config)
    (rows, columns), config = config.encoder.grid, replace(config, masker=_as_many_at_random(config))
    if isinstance(config, CMTMAEConfig | DBOTConfig | MILANConfig):
        return _around_teacher(config)
    if isinstance(config.target, TokenTargetConfig):
        if not config.target.tokenizer:
            return partial(
                config.build_around,
                TokenTarget(_Unnamed(config.target.vocabulary or USUAL_VOCABULARY, (rows, columns))),
            )
    elif not isinstance(config.target, FeatureTargetConfig) or config.target.teacher.source in OF_STUDENT:
        return config.build
    elif not config.target.teacher.source:
        teacher = _UnnamedTeacher(config.encoder.width, (rows, columns))
        return partial(config.build_around, FeatureTarget(teacher, (rows, columns)))
    with FakeTensorMode():
        encoder = config.encoder.build()  # whose sizes are asked for
    return partial(config.build_around, config.target.build(encoder))


def _as_many_at_random(
    config: BEiTConfig | CAEConfig | CMTMAEConfig | DBOTConfig | MAEConfig | MILANConfig,
) -> RandomMasker:
    """A masker that hides as many patches, wherever they lie."""
    rows, columns = config.encoder.grid
    return RandomMasker(ratio=(config.masker.num_masked((rows, columns)) - 0.5) / (rows * columns))  # rounds up


def _guided(config: MAEConfig | BEiTConfig | CAEConfig) -> Callable[[], Method]:
    """What makes a method whose guide decides what is hidden; one that is read from somewhere is read now."""
    unguided = _builder(replace(config, masker=_as_many_at_random(config), guide=GuideConfig()))
    found = None
    if config.guide.source not in OF_STUDENT:
        with FakeTensorMode():
            encoder = config.encoder.build()  # whose sizes are asked for
        found = config.guide.build(encoder, config.masker)

    def build() -> Method:
        method = unguided()
        assert isinstance(method, MAE | BEiT | CAE)
        method.masker, method.guide = config.masker, found or config.guide.build(method.encoder, config.masker)
        return method

    return build


def _around_teacher(config: CMTMAEConfig | DBOTConfig | MILANConfig) -> Callable[[], Method]:
    """What makes a method with a teacher: one that is read from somewhere is read now, with its own numbers.

    CMT-MAE's may be none, or not named yet, and then costs nothing.
    """
    unasked = isinstance(config, CMTMAEConfig) and not config.needs_teacher
    if config.teacher.source in OF_STUDENT or unasked:
        return config.build
    if isinstance(config, CMTMAEConfig | MILANConfig) and not config.teacher.source:
        return partial(config.build, teacher=_UnnamedTeacher(config.encoder.width, config.encoder.grid))
    with FakeTensorMode():
        encoder = config.encoder.build()  # whose sizes are asked for
    teacher = config.teacher.build(encoder)
    if isinstance(config, DBOTConfig):
        return partial(config.build_around, teacher)
    return partial(config.build, teacher=teacher)


class _Unnamed(nn.Module):
    """In the place of a tokenizer that is not named yet, while costs are counted; trains nothing."""

    def __init__(self, vocabulary: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.vocabulary, self.grid = vocabulary, grid

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return self.grid

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), self.grid[0] * self.grid[1], dtype=torch.long)


class _UnnamedTeacher(Teacher):
    """In the place of a teacher that is not named yet: as wide as the student, at no cost."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.width, self.grid, self.queries, self.num_prefix = width, grid, ("class", "mean"), 1

    def forward(self, images: Tensor, query: Query | None = None) -> Guidance:
        features = images.new_zeros(len(images), self.grid[0] * self.grid[1], self.width)
        return Guidance(features[:, :1], features, None if query is None else features[:, :, 0])


def _step(method: Method, images: int) -> tuple[Batch, Any]:
    takes = method.requirements()
    views = [torch.empty(images, takes.in_chans, *takes.image_size) for _ in range(takes.views)]
    batch = Batch(views[0], total=images, second=views[1] if takes.views > 1 else None)
    if isinstance(method, DVAE):  # whose draws are made from seeds, which fake tensors do not have
        rows, cols = code_grid(takes.image_size, takes.cell)
        noise = torch.empty(images, method.sizes.vocabulary, rows, cols)
        return batch, DVAEDraws(noise, torch.tensor(1.0), torch.tensor(1.0))
    if isinstance(method, VQKD):  # whose codes have no values to move
        return batch, VQKDDraws()
    if isinstance(method, Supervised):  # whose labels are of no cost
        batch = replace(batch, labels=torch.zeros(images, dtype=torch.long))
        return batch, SupervisedDraws(batch.images, torch.empty(images, method.num_classes))
    method.begin(OF)
    return batch, method.draw(batch, LATE, torch.Generator())


def _kept_bytes(method: Method, images: int, precision: torch.dtype) -> int:
    """Bytes that backward keeps, weights apart; copies of the weights in a lower precision are among them."""
    kept: dict[int, int] = {}  # by storage: one that is kept twice counts once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    batch, draws = _step(method, images)
    autocast = torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        outputs = method(batch, draws)  # alive while storages are counted, so that none is reused
    weights = {parameter.untyped_storage()._cdata for parameter in method.parameters()}
    del outputs
    return sum(size for storage, size in kept.items() if storage not in weights)


def explain(
    config: Pretrain,
    paper: Pretrain,
    precision: torch.dtype,
    notes: tuple[str, ...] = (),
    origins: Mapping[str, str] | None = None,
) -> list[Section]:
    """What a run of this config is, section by section.

    Args:
        config: The run.
        paper: The paper's recipe that it is compared with.
        precision: Of the activations.
        notes: Differences from the paper that are no field of the config.
        origins: Where the values of `paper` come from, by the beginning of a setting's name, if it is a mere starting
            point because the paper does not state them.
    """
    cost, optim, batch_size = count_cost(config, precision), config.optim, config.batch_size
    apart = [
        (name, f"{_short(ours)}   ({_origin(name, origins)}: {'none named' if theirs == '' else _short(theirs)})")
        for name, ours, theirs in differences(config, paper)
    ]
    apart += [("note", note) for note in notes]
    target = getattr(config.method, "target", None)
    unnamed = isinstance(target, TokenTargetConfig) and not target.tokenizer
    unled = isinstance(target, FeatureTargetConfig) and not target.teacher.source
    if isinstance(config.method, CMTMAEConfig | MILANConfig):
        unled = not config.method.teacher.source and getattr(config.method, "needs_teacher", True)
    return [
        ("Parts and shapes", _parts(config.method, cost.teachers)),
        (
            "Cost",
            [
                *([("tokenizer", "not counted: none is named yet; give --tokenizer, or --target pixels")] * unnamed),
                *([("teacher", "not counted: none is named yet; give --teacher")] * unled),
                *((f"parameters, {name}", f"{number:,}") for name, number in cost.parameters.items()),
                ("parameters, trained", f"{cost.trainable:,}"),
                (
                    "FLOPs per image",
                    f"{cost.flops / 1e9:.3f} G forward (a multiply-add is two), a step at most thrice that",
                ),
                *(
                    [("FLOPs before", f"{cost.draw_flops / 1e9:.3f} G: what guiding networks say, without gradient")]
                    * (cost.draw_flops > 0)
                ),
                ("memory, state", f"{cost.state_gib:.2f} GiB: weights, gradients and AdamW's two moments"),
                (
                    "memory, activations",
                    f"about {cost.activations_gib * 1024:.1f} MiB an image in {str(precision).removeprefix('torch.')}, "
                    f"{cost.activations_gib * batch_size / config.runtime.accumulation:.1f} GiB for "
                    f"{batch_size // config.runtime.accumulation} images at once",
                ),
            ],
        ),
        (
            "Training",
            [
                ("data", config.data.source or "(not given)"),
                ("crop", str(config.data.crop)),
                *([("augmentation", _augmentation(config.data.augment))] * config.data.augment.active),
                *_second_view(config.data.second),
                ("weights from", config.init or f"seed {config.runtime.seed}"),
                ("length", f"{config.duration}, the first {config.optim.warmup} warm-up"),
                ("batch size", f"{batch_size}, in {config.runtime.accumulation} part(s)"),
                (
                    "learning rate",
                    f"{scaled_lr(optim.base_lr, batch_size):.3g} = {optim.base_lr:g} x {batch_size} / 256, "
                    + (
                        f"then {optim.min_lr:g}"
                        if optim.schedule == "drop"
                        else f"then half a cosine to {optim.min_lr:g}"
                    ),
                ),
                (
                    "AdamW",
                    f"betas {optim.betas}, weight decay {optim.weight_decay:g}, clipping {optim.clip_norm or 'off'}",
                ),
            ],
        ),
        (
            f"Differences from the {'starting point' if origins else 'paper'} ({paper.recipe})",
            apart or [("none", "every setting is " + ("the starting point's" if origins else "the paper's"))],
        ),
        *(
            [("Where the starting point comes from, as the paper's settings are not known", [*origins.items()])]
            if origins
            else []
        ),
    ]


def _origin(name: str, origins: Mapping[str, str] | None) -> str:
    """What a value that a config is compared with is: the paper's, or one of another origin."""
    if not origins:
        return "paper"
    found = [setting for setting in origins if name.startswith(setting)]
    return origins[max(found, key=len)].partition(",")[0].partition(":")[0] if found else "ours"


def _parts(config: MethodConfig, teachers: tuple[Teacher, ...]) -> list[tuple[str, str]]:
    """What the method consists of; of one that predicts features, how wide they are."""
    if isinstance(config, DBOTConfig | MAEConfig | BEiTConfig | CAEConfig):
        rows = config.describe(teachers[0] if teachers else None)
    else:
        rows = (
            config.describe()
            if hasattr(config, "describe")
            else [(n, str(v)) for n, v in leaves(to_dict(config)).items()]
        )
    return [*rows, *(("teacher", teacher.describe()) for teacher in teachers)]


def _augmentation(augment: Augment) -> str:
    """What is done to an image, without what is left alone."""
    alone = Augment()
    changed = (item.name for item in fields(augment) if getattr(augment, item.name) != getattr(alone, item.name))
    return ", ".join(f"{name} {getattr(augment, name)}" for name in changed)


def _second_view(view: View | None) -> list[tuple[str, str]]:
    if view is None:
        return []
    rows = [("second view, crop", str(view.crop))]
    return rows + [("second view, augmentation", _augmentation(view.augment))] * view.augment.active


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
