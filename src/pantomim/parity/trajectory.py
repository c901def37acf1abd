"""Whole runs of the authors' code, step by step through our engine; only the draws are theirs."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.config import Duration, OptimConfig, Pretrain, RuntimeConfig
from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.engine.runtime import start_accelerator
from pantomim.engine.setup import in_steps
from pantomim.engine.training import Training
from pantomim.formats.files import load_exactly
from pantomim.methods.base import Method
from pantomim.nn.blocks import DropPath
from pantomim.parity.compare import RELATIVE, norm_eps
from pantomim.parity.item import Computed, Item


class Tape:
    """What an item holds of the batch that is under way.

    Args:
        item: With images, their ids in each step, and draws.
        first: The item's step that is the run's first.
    """

    def __init__(self, item: Item, first: int = 0) -> None:
        self.item, self.first = item, first
        self.step, self.rows = first, slice(None)
        self.calls: Counter[str] = Counter()  # of each module's stochastic depth, in this micro-batch

    def batches(self, step: int, micro: int) -> list[Batch]:
        """The micro-batches of one of the run's steps, as a stream gives them."""
        ids = self.item.input("image_ids")[self.first + step]
        second = self.item.input("second_images")[ids] if self.item.has("second_images") else None
        whole = Batch(self.item.input("images")[ids], ids, total=len(ids), second=second)
        size = len(ids) // micro
        return [
            Batch(
                whole.images[start : start + size],
                ids[start : start + size],
                start=start,
                total=len(ids),
                second=None if second is None else second[start : start + size],
            )
            for start in range(0, len(ids), size)
        ]

    def seek(self, step: int, batch: Batch) -> None:
        """This micro-batch comes next."""
        self.step, self.rows = self.first + step, slice(batch.start, batch.start + len(batch))
        self.calls.clear()

    def now(self, name: str) -> Tensor:
        """This micro-batch's rows of a draw."""
        return self.item.input(name)[self.step, self.rows]

    def ids(self) -> Tensor:
        """Which images of the pool they are."""
        return self.now("image_ids")

    def scores(self, name: str, num_masked: int, largest_visible: bool = False) -> Mask:
        """The mask that noise gives."""
        noise = self.now(name).flatten(1)
        return Mask.from_scores(-noise if largest_visible else noise, num_masked)

    def masked(self) -> Mask:
        """The given mask, whose number may vary from image to image."""
        masked, counts = self.now("masked"), self.item.input("masked").sum(dim=-1)
        return Mask.from_masked(masked, int(counts.max()), varies=bool(counts.min() < counts.max()))


class GivenDropPath(DropPath):
    """Stochastic depth by given numbers: a row's branch stays where its number is at least the rate.

    Args:
        rate: As of the module in whose place it is.
        tape: Which rows are under way.
        numbers: (steps, calls in a forward pass, rows).
        name: Of the module.
    """

    def __init__(self, rate: float, tape: Tape, numbers: Tensor, name: str) -> None:
        super().__init__(rate)
        self.tape, self.numbers, self.name = tape, numbers, name

    def forward(self, branch: Tensor) -> Tensor:
        """See `DropPath.forward`."""
        if self.rate == 0.0 or not self.training:
            return branch
        tape = self.tape
        numbers = self.numbers[tape.step, tape.calls[self.name], tape.rows]
        tape.calls[self.name] += 1
        stays = (numbers >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * stays.view(-1, *(1,) * (branch.dim() - 1))


class PoolIds:
    """A tokenizer that knows the ids of every image of an item's pool, and is told which of them come next."""

    def __init__(self, pool: Tensor, vocabulary: int, grid: tuple[int, int]) -> None:
        self.pool, self.vocabulary, self.grid = pool, vocabulary, grid
        self.ids = pool

    def turn_to(self, tape: Tape) -> None:
        """The images of this micro-batch come next."""
        self.ids = self.pool[tape.ids()]

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of the item."""
        return self.grid

    def __call__(self, images: Tensor) -> Tensor:
        """The ids of the images that were announced."""
        return self.ids


class Replayed(Method):
    """A method whose draws are an item's; all else is its own.

    Args:
        method: What is trained.
        tape: Where the draws are.
        draws: What the method calls its draws, made of the tape.
    """

    def __init__(self, method: Method, tape: Tape, draws: Callable[[Tape], Any]) -> None:
        super().__init__()
        self.method, self.tape, self.draws = method, tape, draws

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Any:
        """The item's draws of these rows."""
        self.tape.seek(step, batch)
        return self.draws(self.tape)

    def forward(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """The method's."""
        return self.method(batch, draws)

    def update_ema(self, step: int) -> None:
        """The method's."""
        self.method.update_ema(step)

    def exports(self) -> dict[str, Any]:
        """The method's."""
        return self.method.exports()


@dataclass
class Run:
    """One run through the engine, and what came of it.

    Args:
        config: Of the run.
        method: Built for its length, with the item's weights in float64.
        tape: What it sees.
        draws: See `Replayed`.
        official: The authors' name of one of the method's parameters or modules.
    """

    config: Pretrain
    method: Method
    tape: Tape
    draws: Callable[[Tape], Any]
    official: Callable[[str], str]

    def __post_init__(self) -> None:
        self._take_drops()
        self.curves: dict[str, list[Tensor]] = {}
        accelerator = start_accelerator(self.config.runtime, Path())
        replayed = Replayed(self.method, self.tape, self.draws)
        self.total, warmup = in_steps(self.config, self.tape.item.config["steps_per_epoch"])
        self.training = Training(self.config, replayed, self.total, warmup, accelerator)

    def carry_out(self, steps: range | None = None) -> "Run":
        """Train, all steps unless said otherwise, and remember what each logged."""
        for step in range(self.total) if steps is None else steps:
            rates = {"lr": self.training.lr(step), "weight_decay": self.training.weight_decay(step)}
            logged = self.training.step(step, self.tape.batches(step, self.config.runtime.accumulation))
            logged |= {name: torch.tensor(value, dtype=torch.float64) for name, value in rates.items()}
            for name, value in logged.items():
                self.curves.setdefault(name, []).append(value)
        return self

    def curve(self, name: str) -> Tensor:
        """What each step logged under a name."""
        return torch.stack(self.curves[name])

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """The trained parameters as they are now, under the authors' names."""
        named = self.method.named_parameters()
        return {f"{prefix}{self.official(n)}": p.detach().clone() for n, p in named if p.requires_grad}

    def computed(self, outputs: Mapping[str, Tensor] | None = None) -> Computed:
        """Curves, weights at the end and their norms, the optimiser's groups; and whatever else the item asks for."""
        final = self.weights("final/")
        curves = {name: self.curve(name) for name in ("loss", "grad_norm", "lr", "weight_decay")}
        final |= outputs or {}
        return Computed(
            self.tape.item.asked(curves) | final,
            config={"layer_norm_eps": norm_eps(self.method)},
            deviations=self._compare_groups() | self.compare_norms("final", final),
        )

    def compare_norms(self, entry: str, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Norms of the parameters in `numbers.ENTRY_l2_norms`, as exactly as the parameters themselves are compared."""
        item, found = self.tape.item, {}
        expected = item.expected()
        for name, stated in item.numbers.get(f"{entry}_l2_norms", {}).items():
            output = name if "/" in name else f"{entry}/{name}"
            ours = weights.get(output)
            key = f"numbers/{entry}_l2_norms/{name}"
            if ours is None:
                found[key] = math.inf
                continue
            _, description = expected.get(output, (None, {}))
            room = description.get("suggested_atol_float64", 0.0) * math.sqrt(ours.numel())
            found[key] = abs(ours.norm().item() - stated) / max(room, RELATIVE * stated)
        return found

    def _compare_groups(self) -> dict[str, float]:
        """Weight decay and factor of the rate of every parameter: right (0) or wrong (infinite)."""
        stated = self.tape.item.numbers.get("parameter_groups", [])
        theirs = {n: (g["weight_decay"], g.get("lr_scale", 1.0)) for g in stated for n in g["parameters"]}
        follows = self.config.optim.weight_decay_end is not None  # then the curve of the weight decay is compared
        ours = {
            self.official(name.removeprefix("method.")): (
                "schedule" if follows and group["weight_decay"] else group["weight_decay"],
                group["lr_scale"],
            )
            for group in self.training.optimizer.param_groups
            for name in group["param_names"]
        }
        return {
            f"numbers/parameter_groups/{name}": 0.0 if ours.get(name) == theirs.get(name) else math.inf
            for name in {*theirs, *ours}
            if stated
        }

    def _take_drops(self) -> None:
        """Put the item's numbers in the place of our draws: a module's own first, then those of a second pass.

        What is no module of ours is a copy of the encoder that shares its weights, and runs after it.
        """
        modules = {name: part for name, part in self.method.named_modules() if isinstance(part, DropPath)}
        ours = {self.official(name): name for name in modules}
        given: dict[str, list[Tensor]] = {}
        for theirs in sorted(self.tape.item.inputs("drop/"), key=lambda name: name not in ours):
            name = ours[theirs] if theirs in ours else ours["encoder." + theirs.partition(".")[2]]
            given.setdefault(name, []).append(self.tape.item.input(f"drop/{theirs}"))
        for name, numbers in given.items():
            owner, _, child = name.rpartition(".")
            drop = GivenDropPath(modules[name].rate, self.tape, torch.cat(numbers, dim=1), name)
            setattr(self.method.get_submodule(owner), child, drop)


def fill(model: nn.Module, weights: Mapping[str, Tensor], official: Callable[[str], str], source: str) -> None:
    """Load weights under the authors' names; every name and shape must be right.

    Raises:
        ValueError: with what is missing, unexpected or mis-shaped.
    """
    names = {official(name): name for name in model.state_dict()}
    load_exactly(model, {names.get(name, name): tensor for name, tensor in weights.items()}, source)


def run_config(item: Item, method: Any, **optim: Any) -> Pretrain:
    """The run that an item states; `optim` says what its authors have by their nature."""
    config, rows = item.config, item.input("image_ids").shape[1]
    settings = {
        "base_lr": config["lr"] * 256 / rows,
        "min_lr": config.get("min_lr", 0.0),
        "warmup": Duration(epochs=config.get("warmup_epochs", config.get("warmup", 0))),
        "weight_decay": config["weight_decay"],
        "betas": tuple(config["betas"]),
        "eps": config["eps"],
        "clip_norm": config.get("clip_grad"),
    }
    return Pretrain(
        recipe=item.name,
        method=method,
        optim=OptimConfig(**(settings | optim)),
        batch_size=rows,
        duration=Duration(epochs=config["epochs"]) if "epochs" in config else Duration(steps=config["steps"]),
        runtime=RuntimeConfig(
            accumulation=config.get("accum_iter", 1), precision="float32", device="auto", tracker="none"
        ),
    )
