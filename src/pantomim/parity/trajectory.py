"""Whole runs of the authors' code, step by step through our engine; only the draws are theirs."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pantomim.config import Duration, OptimConfig, Pretrain, RuntimeConfig
from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.core.modes import evaluating
from pantomim.engine.runtime import start_accelerator
from pantomim.engine.setup import in_steps
from pantomim.engine.training import Training
from pantomim.methods.base import Draws, Method
from pantomim.methods.task import ClassTask
from pantomim.nn.blocks import DropPath
from pantomim.parity.item import RELATIVE, Computed, Item, exact
from pantomim.parity.networks import Names, filled, norm_eps, off_indices

CURVES = ("loss", "grad_norm", "lr", "weight_decay", "group_lr", "group_weight_decay")


class Tape:
    """What an item holds of the micro-batch that is under way; the run's first step is the item's step `first`."""

    def __init__(self, item: Item, first: int = 0) -> None:
        self.item, self.first = item, first
        self.step, self.rows = first, slice(None)
        self.calls: Counter[str] = Counter()  # of each module's stochastic depth, in this micro-batch

    def batches(self, step: int, micro: int) -> list[Batch]:
        """The micro-batches of one of the run's steps, as a stream gives them."""
        ids = self.item.input("image_ids")[self.first + step]
        views = [self.item.input(name) for name in ("images", "second_images") if self.item.has(name)]
        known = {"labels": self.item.input("labels").long()} if self.item.has("labels") else {}
        known = {"labels" if ids.ndim == 1 else "masks": ids for ids in known.values()}  # of images, or of pixels
        known |= {"images": views[0], **({"second": views[1]} if views[1:] else {})}
        return [
            Batch(
                ids=rows, start=part * len(rows), total=len(ids), **{name: all_[rows] for name, all_ in known.items()}
            )
            for part, rows in enumerate(ids.chunk(micro))
        ]

    def seek(self, step: int, batch: Batch) -> "Tape":
        """This micro-batch comes next."""
        self.step, self.rows = self.first + step, slice(batch.start, batch.start + len(batch))
        self.calls.clear()
        return self

    def now(self, name: str) -> Tensor:
        """This micro-batch's rows of a draw."""
        return self.item.input(name)[self.step, self.rows]

    def mask(self, num_masked: int) -> Mask:
        """The given mask, whose count may vary from image to image, or that of noise; large `windows` stay visible."""
        if self.item.has("masked"):
            counts = self.item.input("masked").sum(dim=-1)
            return Mask.from_masked(self.now("masked"), int(counts.max()), varies=bool(counts.min() < counts.max()))
        scores = self.now("noise") if self.item.has("noise") else -self.now("windows").flatten(1)
        return Mask.from_scores(scores, num_masked)


class GivenIds:
    """A tokenizer that knows the ids (images, N) of an item's images."""

    def __init__(self, item: Item, ids: Tensor, grid: tuple[int, int]) -> None:
        self.images, self.ids, self.vocabulary, self.grid = item.input("images"), ids, item.config["vocab_size"], grid

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of the item."""
        return self.grid

    def __call__(self, images: Tensor, only: Tensor | None = None) -> Tensor:
        """The ids of those images that are equal."""
        equal = (images.unsqueeze(1) == self.images).flatten(2).all(dim=2)  # (B, images)
        ids = self.ids[equal.int().argmax(dim=1)]
        return ids if only is None else ids.gather(1, only)


class _GivenDropPath(DropPath):
    """Stochastic depth by given numbers (steps, calls, rows): a branch stays where its number is at least the rate."""

    def __init__(self, rate: float, tape: Tape, numbers: Tensor, name: str) -> None:
        super().__init__(rate)
        self.tape, self.numbers, self.name = tape, numbers, name

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        numbers = self.numbers[self.tape.step, self.tape.calls[self.name], self.tape.rows]
        self.tape.calls[self.name] += 1
        stays = (numbers >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * stays.view(-1, *(1,) * (branch.dim() - 1))


class Run:
    """The run of an item through the engine, and what came of it.

    Args:
        config: The method's, and `method` what was built of it; `optim` says what its authors have by their nature.
        names: The authors' name of each of its parameters and modules.
        draws: Makes of the tape what the method calls its draws; None: the item's masks or, without any, its own draw.
        weights: Those to begin with, by default the item's; what begins with `kept` stays as it is.
        unused: How names begin that the item has for what nothing reads.
        first: The item's step that is the run's first one.
    """

    def __init__(
        self,
        item: Item,
        config: Any,
        method: Method,
        names: Names,
        draws: Callable[[Tape], Any] | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
        kept: tuple[str, ...] = (),
        unused: tuple[str, ...] = (),
        first: int = 0,
        duration: Duration | None = None,
        **optim: Any,
    ) -> None:
        given = item.weights() if weights is None else weights
        self.unused = {name: tensor for name, tensor in given.items() if name.startswith(unused)} if unused else {}
        filled(item, method, names, {name: given[name] for name in given if name not in self.unused}, kept)
        method.reset()
        self.config = run_config(item, config, duration or Duration(steps=item.config["steps"]), **optim)
        self.item, self.method, self.names, self.tape = item, method, names, Tape(item, first)
        self._replace_drop_paths()
        self._logged: dict[str, list[Tensor]] = {}
        self.total, warmup = in_steps(self.config, item.config.get("steps_per_epoch", 1))
        own, masked = method.draw, any(map(item.has, ("masked", "noise", "windows")))

        def draw(batch: Batch, step: int, generator: torch.Generator) -> Any:
            tape = self.tape.seek(step, batch)
            if draws is not None:
                return draws(tape)
            if not masked:
                return own(batch, step, generator)
            return Draws(tape.mask(config.masker.num_masked(config.encoder.grid)))

        setattr(method, "draw", draw)  # noqa: B010  (all else stays)
        runtime = start_accelerator(self.config.runtime, Path())
        self.training = Training(self.config, method, self.total, warmup, runtime)

    def carry_out(self) -> Self:
        """Train, and remember what each step logged."""
        for step in range(self.total):
            rates: dict[str, Any] = {"lr": self.training.lr(step), "weight_decay": self.training.weight_decay(step)}
            logged = self.training.step(step, self.tape.batches(step, self.config.runtime.accumulation))
            groups = self._stated_groups()
            rates |= {"group_lr": [group["lr"] for group in groups]}
            rates |= {"group_weight_decay": [group["weight_decay"] for group in groups]}
            logged |= {name: torch.tensor(value, dtype=torch.float64) for name, value in rates.items()}
            if (step + 1) % self.item.config.get("steps_per_epoch", self.total) == 0:
                self.at_epochs_end()
            for name, value in logged.items():
                self._logged.setdefault(name, []).append(value)
        return self

    def at_epochs_end(self) -> None:
        """What an item asks for then."""

    def _stated_groups(self) -> list[dict[str, Any]]:
        """Our group of the optimiser for each that the item states."""
        groups = self.training.optimizer.param_groups
        ours = {self.names(name): group for group in groups for name in group["param_names"]}
        stated = self.item.numbers.get("parameter_groups", [])
        return [ours[name] for group in stated for name in group["parameters"][:1] if name in ours]

    def curve(self, name: str) -> Tensor:
        """What each step logged under a name; zeros where it is not logged."""
        return torch.stack(self._logged[name]) if name in self._logged else torch.zeros(self.total)

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """The trained parameters as they are now, under the authors' names."""
        named = self.method.named_parameters()
        return {f"{prefix}{self.names(name)}": p.detach().clone() for name, p in named if p.requires_grad}

    def computed(
        self, outputs: Mapping[str, Tensor] | None = None, errors: Mapping[str, float] | None = None
    ) -> Computed:
        """Curves, weights at the end and their norms, the optimiser's groups; and whatever else the item asks for."""
        curves = {name: self.curve(name) for name in CURVES}
        final = self.weights("final/") | {f"final/{name}": tensor for name, tensor in self.unused.items()}
        final |= dict(outputs or {})
        found = self._compare_groups() | self.compare_norms("final", final) | off_indices(self.item, self.method)
        return Computed(curves | final, config=norm_eps(self.method), errors=found | dict(errors or {}))

    def compare_norms(self, entry: str, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Norms of the parameters in `numbers.ENTRY_l2_norms`, as exactly as the parameters themselves are compared."""
        found, described = {}, self.item.spec["outputs"]["tensors"]
        for name, stated in self.item.numbers.get(f"{entry}_l2_norms", {}).items():
            key = name if "/" in name else f"{entry}/{name}"
            ours = weights.get(key, torch.tensor(math.inf))
            room = described.get(key, {}).get("suggested_atol_float64", 0.0) * math.sqrt(ours.numel())
            off = abs(ours.norm().item() - stated) / (max(room, RELATIVE * stated) or RELATIVE)
            found[f"numbers/{entry}_l2_norms/{name}"] = off
        return found

    def _compare_groups(self) -> dict[str, float]:
        """Weight decay and factor of the rate of every parameter."""
        stated = self.item.numbers.get("parameter_groups", [])
        theirs = {n: (g["weight_decay"], g.get("lr_scale", 1.0)) for g in stated for n in g["parameters"]}
        follows = self.config.optim.weight_decay_end is not None  # then the curve of the weight decay is compared
        ours: dict[str, tuple[float | str, float]] = {}
        for group in self.training.optimizer.param_groups:
            decay = "schedule" if follows and group["weight_decay"] else group["weight_decay"]
            ours |= {self.names(name): (decay, group["lr_scale"]) for name in group["param_names"]}
        names = {*theirs, *ours} - {*self.unused} if stated else ()
        return {f"numbers/parameter_groups/{name}": exact(ours.get(name) == theirs.get(name)) for name in names}

    def _replace_drop_paths(self) -> None:
        """Draw stochastic depth from the item; what is no module of ours is a copy of the encoder, run after it."""
        modules = {name: part for name, part in self.method.named_modules() if isinstance(part, DropPath)}
        ours = {self.names(name): name for name in modules}
        given: dict[str, list[Tensor]] = {}
        for theirs, numbers in sorted(self.item.weights("in/drop/").items(), key=lambda drop: drop[0] not in ours):
            name = ours[theirs] if theirs in ours else ours["encoder." + theirs.partition(".")[2]]
            given.setdefault(name, []).append(numbers)
        for name, parts in given.items():
            numbers = torch.cat(parts, dim=1)
            self.method.set_submodule(name, _GivenDropPath(modules[name].rate, self.tape, numbers, name))


class TestedRun(Run):
    """A run that learns classes, and is tested after every epoch."""

    method: ClassTask

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.tests: list[dict[str, float]] = []

    def at_epochs_end(self) -> None:
        """Scores of the images for evaluation."""
        test = Batch(self.item.input("eval_images"), labels=self.item.input("eval_labels"))
        self.tests.append(self.method.judge(self.method.model, [test]))

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        """Of the images for evaluation, by the model in evaluation mode."""
        with evaluating(model):
            return self.method.logits(model, self.item.input("eval_images"))

    def computed(
        self, outputs: Mapping[str, Tensor] | None = None, errors: Mapping[str, float] | None = None
    ) -> Computed:
        """With logits, statistics of batch norms, the moving average of the weights, and the scores of each test."""
        model, losses = self.method.model, [test["loss"] for test in self.tests]
        more = {"eval_logits": self.logits(model), "eval_loss": torch.tensor(losses, dtype=torch.float64)}
        more |= {f"final_statistics/{self.names(name)}": buffer for name, buffer in model.named_buffers("model")}
        if self.method.ema is not None:
            average = self.method.ema.copy
            more |= {f"final_ema/{self.names(name)}": weight for name, weight in average.named_parameters("model")}
            more |= {"eval_logits_ema": self.logits(average)}
        found = super().computed(more | dict(outputs or {}), errors)
        tests = ((test["loss"], test["top1"], test.get("top5", 1.0)) for test in self.tests)
        found.numbers["tests"] = [{"loss": loss, "acc1": 100 * one, "acc5": 100 * five} for loss, one, five in tests]
        return found


def run_config(item: Item, method: Any, duration: Duration, **optim: Any) -> Pretrain:
    """The run that an item states; `optim` says what its authors have by their nature."""
    config, rows = item.config, item.input("image_ids").shape[1]
    warmup = config.get("warmup_epochs", config.get("warmup", 0))  # a word where `optim` has the steps
    settings = {
        "base_lr": config["lr"] * 256 / rows,
        "min_lr": config.get("min_lr", 0.0),
        "warmup": Duration(epochs=0 if isinstance(warmup, str) else warmup),
        "weight_decay": config["weight_decay"],
        "betas": tuple(config.get("betas", (0.9, 0.999))),
        "eps": config.get("eps", 1e-8),
        "clip_norm": config.get("clip_grad"),
    }
    return Pretrain(
        recipe=item.name,
        method=method,
        optim=OptimConfig(**(settings | optim)),
        batch_size=rows,
        duration=duration,
        runtime=RuntimeConfig(accumulation=config.get("accum_iter") or 1, precision="float32", tracker="none"),
    )
