"""A golden item, what some official code computed at a tiny size and what went into it; and what we compute."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

INDEX = "relative_position_index"  # stored beside the weights; ours is made from the grid
RELATIVE = 1e-9  # where an item states no tolerance: the share of the largest value that stated ones come to


@dataclass(frozen=True)
class Item:
    """A JSON file and the safetensors file beside it, read; inputs and weights are given in float64."""

    name: str
    spec: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def config(self) -> Mapping[str, Any]:
        """Sizes, ratios and flags."""
        return self.spec["config"]

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Expected values that are not tensors."""
        return self.spec.get("numbers", {})

    def has(self, name: str) -> bool:
        """Whether there is such an input."""
        return self.spec["inputs"]["prefix"] + name in self.tensors

    def input(self, name: str) -> Tensor:
        """One of the inputs."""
        return _promoted(self.tensors[self.spec["inputs"]["prefix"] + name])

    def weights(self, prefix: str = "state/") -> dict[str, Tensor]:
        """The tensors stored under a prefix, which is left out; without `indices`."""
        stored = {name: tensor for name, tensor in self.tensors.items() if not name.endswith(INDEX)}
        return {name.removeprefix(prefix): _promoted(stored[name]) for name in stored if name.startswith(prefix)}

    def indices(self) -> dict[str, Tensor]:
        """The matrices of relative positions that are stored with the weights."""
        return {name: self.tensors[name] for name in self.tensors if name.startswith("state/") and name.endswith(INDEX)}

    def output(self, name: str) -> Tensor | None:
        """An expected tensor, where it is stored."""
        return self.tensors.get(self.spec["outputs"]["prefix"] + name)

    def expected(self) -> dict[str, tuple[Tensor | None, Mapping[str, Any]]]:
        """Every output with its description: those described, those stored, and those only one of the two knows."""
        prefix, described = self.spec["outputs"]["prefix"], self.spec["outputs"]["tensors"]
        stored = {name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)}
        return {name: (self.output(name), described.get(name, {})) for name in sorted({*described, *stored})}

    def asks(self, part: str) -> bool:
        """Whether an output's name contains this."""
        return any(part in name for name in self.expected())


@dataclass
class Computed:
    """What our modules make of an item; more than it asks for is fine."""

    outputs: dict[str, Tensor] = field(default_factory=dict)  # Tensors under the names of the item's outputs
    numbers: dict[str, Any] = field(default_factory=dict)  # Values in the layout of the item's `numbers`
    # Relative tolerance of an entry of `numbers` that the official code computes in float32
    relative: dict[str, float] = field(default_factory=dict)
    # What our modules have by their nature, under the names of the item's `config`: there it must be equal
    config: dict[str, Any] = field(default_factory=dict)
    # Values compared otherwise, as multiples of their tolerance: outputs by their names, entries of numbers as
    # numbers/NAME/..., and further ones. What is named here is judged here alone
    errors: dict[str, float] = field(default_factory=dict)
    # Patterns of keys that stand for what this package does not do: not compared, and named in the result
    unbuilt: tuple[str, ...] = ()


def read_item(path: Path) -> Item:
    """Read a pair, given its JSON file; whatever is wrong with either file is an error."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(spec, dict):
        raise ValueError(f"{path.name} must hold an object; got {type(spec).__name__}.")
    return Item(path.stem, spec, load_file(path.with_suffix(".safetensors")))


def distance(ours: Tensor, target: Tensor) -> float:
    """The largest difference of two tensors; infinite if they differ in shape."""
    return (ours - target).abs().max().item() if ours.shape == target.shape else math.inf


def exact(equal: bool) -> float:
    """The error of what is either right or wrong."""
    return 0.0 if equal else math.inf


def _promoted(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
