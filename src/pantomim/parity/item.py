"""A golden item: what some official code computed at a tiny size, and what went into it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Item:
    """A JSON file and the safetensors file beside it, read; floating tensors become float64 when they are asked for."""

    name: str
    spec: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def title(self) -> str:
        """What the item calls itself, whatever its files are called; their name where it does not say."""
        stated = self.spec.get("item")
        return stated if isinstance(stated, str) else self.name

    @property
    def config(self) -> Mapping[str, Any]:
        """Sizes, ratios and flags."""
        return self.spec["config"]

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Expected values that are not tensors."""
        return self.spec.get("numbers", {})

    def input(self, name: str) -> Tensor:
        """One of the inputs."""
        return _promoted(self.tensors[self.spec["inputs"]["prefix"] + name])

    def has(self, name: str) -> bool:
        """Whether there is such an input."""
        return self.spec["inputs"]["prefix"] + name in self.tensors

    def weights(self, prefix: str = "state/") -> dict[str, Tensor]:
        """The tensors stored under a prefix, which is left out.

        Raises:
            ValueError: if there are none.
        """
        found = self.under(prefix)
        if not found:
            raise ValueError(f"{self.name}.safetensors must hold weights under {prefix}; got none.")
        return found

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The same, where there may be none."""
        stored = self.tensors.items()
        return {name.removeprefix(prefix): _promoted(tensor) for name, tensor in stored if name.startswith(prefix)}

    def expected(self) -> dict[str, tuple[Tensor | None, Mapping[str, Any]]]:
        """Every output with its description: those described, those stored, and those only one of the two knows."""
        outputs = self.spec["outputs"]
        prefix, described = outputs["prefix"], outputs["tensors"]
        stored = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        return {name: (stored.get(name), described.get(name, {})) for name in sorted({*described, *stored})}

    def asks(self, part: str) -> bool:
        """Whether an output's name contains this."""
        return any(part in name for name in self.expected())


@dataclass(frozen=True)
class Computed:
    """What our own modules make of an item; more than it asks for is fine.

    Args:
        outputs: Tensors under the names of the item's outputs.
        numbers: Values in the layout of the item's `numbers`.
        relative: Relative tolerance of an entry of `numbers` that the official code computes in float32.
        config: What our modules have by their nature, under the names of the item's `config`: there it must be equal.
        deviations: Comparisons with a measure of their own, as multiples of their tolerance: outputs by their names,
            entries of numbers as numbers/NAME/..., and further ones. What is named here is judged here alone.
    """

    outputs: Mapping[str, Tensor]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    relative: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)


def read_item(path: Path) -> Item:
    """Read a pair, given its JSON file.

    Raises:
        ValueError: if one of the two files is missing or damaged.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{path.name} must hold an object; got {type(spec).__name__}")
    weights = path.with_suffix(".safetensors")
    if not weights.is_file():
        raise ValueError(f"{weights.name} is missing")
    try:
        return Item(path.stem, spec, load_file(weights))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights.name} cannot be read: {error}") from error


def _promoted(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
