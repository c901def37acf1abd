"""What a config means before it costs anything: parts, shapes, parameters, FLOPs, memory, rates, differences.

One pass through the method on fake tensors, with a forward hook on each part, tells what goes in and comes out; it
knows no method by name.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pantomim.config import Lora, Pretrain, to_dict
from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.data.augment import Augment
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods import MethodConfig
from pantomim.methods.base import Method
from pantomim.methods.guides import GuideConfig, teacher_of
from pantomim.methods.task import Task
from pantomim.nn.blocks import stream_in_bfloat16
from pantomim.optim import limit_training, scaled_lr
from pantomim.recipes.recipe import differences
from pantomim.targets.features import FeatureTarget
from pantomim.targets.tokens import USUAL_VOCABULARY, TokenTarget
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import OF_STUDENT

LATE, OF = 98, 100  # the step at which costs are counted, and of how many: all parts take part by then
Rows = list[tuple[str, str]]
Section = tuple[str, Rows]  # a title, and rows of what and value


@dataclass(frozen=True)
class Cost:
    """What a method costs, counted on tensors without memory; FLOPs and activations are those of one image."""

    shapes: Rows  # what goes into each part and comes out of it, in the order in which they run
    parameters: dict[str, int]  # of each part, and of the whole method ("all")
    trainable: int  # those that are trained
    flops: int  # forward pass; a multiply-add counts two, and backward costs about twice as much again
    draw_flops: int  # networks that run before that to draw the masks, without gradient
    state_gib: float  # weights, gradients, AdamW's two moments in float32, and copies in a lower precision, if any
    activations_gib: float  # what backward keeps

    @property
    def step_flops(self) -> int:
        """Of an image in a step, at most: backward costs twice what forward does, less where parts are frozen."""
        return 3 * self.flops + self.draw_flops


def count_cost(config: Pretrain, precision: torch.dtype) -> Cost:
    """Count parameters, FLOPs and memory on fake (meta) tensors: no weight is allocated, so ViT-H costs nothing."""
    # Real tensors come in: images, what is drawn for them, and weights that are read from somewhere.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # where a part is copied
        method = _build(config.method, fake)
        with fake:
            limit_training(getattr(method, "encoder", None), config.optim.freeze_blocks, **asdict(config.optim.lora))
        if config.runtime.precision == "bfloat16_residual":
            stream_in_bfloat16(method)
        few, many = 2, 4  # images: one alone is compared and mixed with nothing
        with _recorded(method) as shapes:
            kept = _kept_bytes(method, few, precision, fake)
        more = (_kept_bytes(method, many, precision, fake) - kept) // (many - few)  # of one more image
        owners = method.model if isinstance(method, Task) else method
        parameters = {name: size for name, part in owners.named_children() if (size := _count(part))}
        parameters["all"] = _count(method)
        trainable = sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
        method.requires_grad_(False)  # the counter's hooks know no views of parameters
        with FlopCounterMode(display=False) as before:
            batch, draws = _step(method, few)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), fake:
            method(batch, draws)
    return Cost(
        shapes=shapes,
        parameters=parameters,
        trainable=trainable,
        flops=counter.get_total_flops() // few,
        draw_flops=before.get_total_flops() // few,
        state_gib=(4 * (parameters["all"] + 3 * trainable) + kept - few * more) / 2**30,
        activations_gib=more / 2**30,
    )


def _build(config: MethodConfig, fake: FakeTensorMode) -> Method:
    """The method on fake tensors; networks and tokenizers that are read from somewhere keep their real weights.

    A teacher or tokenizer that is not named yet has a stand-in that costs nothing.
    """
    with fake:
        encoder: Any = config.encoder.build() if hasattr(config, "encoder") else None  # whose sizes are asked for
    parts: dict[str, Any] = {}
    target: Any = getattr(config, "target", None)
    teacher, grid = teacher_of(config), getattr(encoder, "grid", (1, 1))
    if teacher is not None and not teacher.source:
        unnamed = _UnnamedTeacher(config.encoder.width, grid)
        parts = {"teacher": unnamed} if hasattr(config, "teacher") else {"target": FeatureTarget(target, unnamed, grid)}
    elif getattr(target, "tokenizer", None) == "":
        parts = {"target": TokenTarget(_UnnamedTokenizer(target.vocabulary or USUAL_VOCABULARY, grid))}
    elif teacher is not None and teacher.source not in OF_STUDENT and hasattr(config, "teacher"):
        parts = {"teacher": teacher.build(encoder)}
    elif hasattr(target, "build") and (teacher is None or teacher.source not in OF_STUDENT):
        parts = {"target": target.build(encoder)}
    guide = None
    if (guided := getattr(config, "guide", GuideConfig())).source and guided.source not in OF_STUDENT:
        guide = guided.build(encoder, config.masker)
        config = replace(config, guide=GuideConfig("random", query=guided.query))  # until the rest is built
    if isinstance(masker := getattr(config, "masker", None), ColorNoiseMasker):  # whose bank takes a while to make
        ratio = (masker.num_masked(grid) - 0.5) / (grid[0] * grid[1])  # rounds up
        config = replace(config, masker=RandomMasker(ratio=ratio))
    with fake:
        method = config.build(OF, **parts)
    if guide is not None:
        method.guide = guide
    return method


def _step(method: Method, images: int) -> tuple[Batch, Any]:
    """A batch of empty images and what is drawn for it."""
    needs = method.requirements
    views = [torch.zeros(images, needs.in_chans, *needs.image_size) for _ in range(needs.views)]
    labels = None if needs.num_classes is None else torch.zeros(images, dtype=torch.long)
    masks = torch.zeros(images, *needs.image_size, dtype=torch.long) if needs.masks else None
    batch = Batch(views[0], labels=labels, total=images, second=views[1] if needs.views > 1 else None, masks=masks)
    method.eval()  # in which no method changes by drawing
    draws = method.draw(batch, LATE, torch.Generator().manual_seed(0))
    method.train()
    return batch, draws


def _kept_bytes(method: Method, images: int, precision: torch.dtype, fake: FakeTensorMode) -> int:
    """Bytes that backward keeps, weights apart; copies of the weights in a lower precision are among them."""
    kept: dict[int, int] = {}  # by storage: one that is kept twice counts once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    batch, draws = _step(method, images)
    autocast = torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)
    with fake, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        outputs = method(batch, draws)  # alive while storages are counted, so that none is reused
    weights = {parameter.untyped_storage()._cdata for parameter in method.parameters()}
    del outputs
    return sum(size for storage, size in kept.items() if storage not in weights)


@contextmanager
def _recorded(method: Method) -> Iterator[Rows]:
    """The calls of each part of a method and of each teacher within, as rows that are filled while this lasts."""
    rows: Rows = []
    parts: dict[str, nn.Module] = {name: part for name, part in method.named_modules() if isinstance(part, Teacher)}
    children = {name: part for name, part in method.named_children() if type(part).forward is not nn.Module.forward}
    model = children.pop("model", None)  # of a task: its parts say more
    children |= {} if model is None else dict(model.named_children())
    parts |= {name: part for name, part in children.items() if not isinstance(part, nn.Identity)}

    def record(name: str) -> Any:
        def hook(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any], found: Any) -> None:
            if found is not None and not isinstance(part, _UnnamedTeacher):
                inputs = ", ".join(filter(None, map(_shape, (*given, *named.values()))))
                learned = any(item.requires_grad for item in tree_leaves(found) if isinstance(item, Tensor))
                rows.append((name, f"{inputs} -> {_shape(found)}{'' if learned else ', no gradient'}"))

        return hook

    handles = [part.register_forward_hook(record(name), with_kwargs=True) for name, part in parts.items()]
    yield rows
    for handle in handles:
        handle.remove()


def _shape(value: Any) -> str:
    """What a part is given or gives, in words; empty for what is no tensor."""
    if isinstance(value, Mask):
        return f"mask of {value.ids_keep.shape[1]} visible and {value.ids_mask.shape[1]} masked"
    if isinstance(value, list):
        return "; ".join(map(_shape, value))
    if isinstance(value, Tensor):
        kind = "ids " if value.dtype == torch.int64 else ""
        return kind + " x ".join(["B", *map(str, value.shape[1:])]) if value.ndim else "a number"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = zip(value._fields, value, strict=True)
        return ", ".join(f"{name} {_shape(item)}" for name, item in named if isinstance(item, Tensor) and item.numel())
    return ""


class _UnnamedTokenizer(nn.Module):
    """In the place of a tokenizer that is not named yet."""

    def __init__(self, vocabulary: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.vocabulary, self.grid = vocabulary, grid

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return self.grid

    def forward(self, images: Tensor, only: Tensor | None = None) -> Tensor:
        cells = self.grid[0] * self.grid[1] if only is None else only.shape[1]
        return torch.zeros(len(images), cells, dtype=torch.long)


class _UnnamedTeacher(Teacher):
    """In the place of a teacher that is not named yet: as wide as the student."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.width, self.grid, self.num_prefix = "a teacher that is not named yet", width, grid, 1
        self.queries = ("class", "mean")

    def forward(self, images: Tensor, query: Query | None = None) -> Guidance:
        features = images.new_zeros(len(images), self.grid[0] * self.grid[1], self.width)
        return Guidance(features[:, :1], features, None if query is None else features[:, :, 0])


def explain(
    config: Pretrain,
    paper: Pretrain,
    precision: torch.dtype,
    notes: tuple[str, ...] = (),
    origins: Mapping[str, str] | None = None,
    cost: Cost | None = None,
) -> list[Section]:
    """What a run of this config is, section by section, beside the paper's.

    `notes` are differences that are no field of the config; `origins` says where values of `paper` that no paper states
    come from, by the beginning of a setting's name. A `cost` that is counted already is not counted again.
    """
    cost = cost or count_cost(config, precision)
    whose = "starting point" if origins else "paper"
    apart = [
        (name, f"{_short(ours)}   ({_origin(name, origins)}: {'none named' if theirs == '' else _short(theirs)})")
        for name, ours, theirs in differences(config, paper)
    ]
    apart += [("note", note) for note in notes]
    sections = [
        ("Settings of the method", _as_yaml(to_dict(config.method))),
        ("Parts and shapes", cost.shapes),
        ("Cost", _not_counted(config.method) + _cost(cost, config, precision)),
        ("Training", _training(config)),
        (f"Differences from the {whose} ({paper.recipe})", apart or [("none", f"every setting is the {whose}'s")]),
    ]
    if origins:
        title = "Where the starting point comes from, as the paper's settings are not known"
        sections.append((title, [*origins.items()]))
    return sections


def _not_counted(config: MethodConfig) -> Rows:
    """What is not named yet, and therefore has no cost."""
    teacher, tokenizer = teacher_of(config), getattr(getattr(config, "target", None), "tokenizer", None)
    unled = teacher is not None and not teacher.source and getattr(config, "needs_teacher", True)
    missing = ["tokenizer"] * (tokenizer == "") + ["teacher"] * unled
    return [(name, "not counted: none is named yet") for name in missing]


def _cost(cost: Cost, config: Pretrain, precision: torch.dtype) -> Rows:
    micro = config.batch_size // config.runtime.accumulation
    rows = [(f"parameters, {name}", f"{number:,}") for name, number in cost.parameters.items()]
    flops = f"{cost.flops / 1e9:.3f} G forward (a multiply-add is two), a step at most thrice that"
    share = cost.trainable / cost.parameters["all"]
    rows += [("parameters, trained", f"{cost.trainable:,}, {share:.1%} of all"), ("FLOPs per image", flops)]
    if cost.draw_flops:
        rows.append(("FLOPs before", f"{cost.draw_flops / 1e9:.3f} G: networks that guide masks, without gradient"))
    kept = f"about {cost.activations_gib * 1024:.1f} MiB an image in {str(precision).removeprefix('torch.')}"
    return [
        *rows,
        ("memory, state", f"{cost.state_gib:.2f} GiB: weights, gradients and AdamW's two moments"),
        ("memory, activations", f"{kept}, {cost.activations_gib * micro:.1f} GiB for {micro} images at once"),
    ]


def _training(config: Pretrain) -> Rows:
    """Data, optimiser and length as they stand in config.yaml, and the learning rate in use; what is off by name."""
    optim, rate = config.optim, scaled_lr(config.optim.base_lr, config.batch_size)
    settings = to_dict(config.data) | to_dict(optim)
    for name, usual in (("augment", to_dict(Augment())), ("lora", to_dict(Lora()))):  # which do nothing
        settings[name] = {key: value for key, value in settings[name].items() if value != usual[key]}
    off = [name for name, value in settings.items() if not value and name not in ("draw", "weight_decay")]
    return [
        ("learning rate", f"{rate:.3g} = {optim.base_lr:g} x {config.batch_size} / 256"),
        ("weights from", config.init or f"seed {config.runtime.seed}"),
        *_as_yaml({name: value for name, value in settings.items() if name not in off}),
        ("batch_size", f"{config.batch_size}, in {config.runtime.accumulation} part(s)"),
        ("duration", str(config.duration)),
        ("off, 0 or null", ", ".join(off)),
    ]


def _origin(name: str, origins: Mapping[str, str] | None) -> str:
    """What a value that a config is compared with is: the paper's, or one of another origin."""
    if not origins:
        return "paper"
    found = [setting for setting in origins if name.startswith(setting)]
    return origins[max(found, key=len)].partition(",")[0].partition(":")[0] if found else "ours"


def _as_yaml(settings: Any) -> Rows:
    """Settings as they stand in config.yaml, one a line; numbers to four digits."""
    dump = partial(yaml.safe_dump, default_flow_style=True, sort_keys=False, width=10**6)
    return [(name, str(dump(_rounded(value))).removesuffix("...\n").strip()) for name, value in settings.items()]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
