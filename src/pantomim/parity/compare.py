"""Differences between expected and computed values, measured in tolerances."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, NamedTuple

from torch import Tensor

from pantomim.parity.item import Item

RELATIVE = 1e-9  # where an item states no tolerance: the share of the largest value that stated ones come to
NEGLIGIBLE = 1e-12  # of the largest value: rounding noise where the true value is zero


@dataclass
class Computed:
    """What our modules make of an item; more than it asks for is fine.

    Args:
        outputs: Tensors under the names of the item's outputs.
        numbers: Values in the layout of the item's `numbers`.
        relative: Relative tolerance of an entry of `numbers` that the official code computes in float32.
        config: What our modules have by their nature, under the names of the item's `config`: there it must be equal.
        errors: Values compared otherwise, as multiples of their tolerance: outputs by their names, entries of numbers
            as numbers/NAME/..., and further ones. What is named here is judged here alone.
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


class Difference(NamedTuple):
    """One compared value: how far off, as a multiple of its tolerance (infinite if not comparable), and why."""

    key: str
    error: float
    reason: str = ""


def differences(item: Item, computed: Computed) -> Iterator[Difference]:
    """Compare everything that an item expects."""
    for name, (target, description) in item.expected().items():
        if name not in computed.errors:
            yield _tensor(name, target, computed.outputs.get(name), description)
    for name, target in item.numbers.items():
        key = f"numbers/{name}"
        if any(judged.startswith(f"{key}/") for judged in computed.errors):
            continue
        if name in computed.numbers:
            yield from _numbers(key, target, computed.numbers[name], computed.relative.get(name, RELATIVE))
        else:
            yield _wrong(key, "not computed")
    for name, ours in computed.config.items():
        stated = item.config.get(name, ours)
        if stated != ours:
            yield _wrong(f"config/{name}", f"our modules have {ours}, the item has {_short(stated)}")
    for name, error in computed.errors.items():
        yield Difference(name, math.inf if math.isnan(error) else error)


def distance(ours: Tensor, target: Tensor) -> float:
    """The largest difference of two tensors; infinite if they differ in shape."""
    return (ours - target).abs().max().item() if ours.shape == target.shape else math.inf


def exact(equal: bool) -> float:
    """The error of what is either right or wrong."""
    return 0.0 if equal else math.inf


def _tensor(key: str, target: Tensor | None, ours: Tensor | None, description: Mapping[str, Any]) -> Difference:
    if target is None:
        return _wrong(key, "described but not stored")
    shape = list(target.shape)
    if description.get("shape", shape) != shape:
        return _wrong(key, f"stored as {shape}, described as {description['shape']}")
    if ours is None:
        return _wrong(key, "not computed")
    if target.numel() == 1 and ours.numel() == 1:
        ours = ours.reshape(target.shape)  # scalars are stored with one dimension
    if ours.shape != target.shape:
        return _wrong(key, f"ours is {list(ours.shape)}, expected {shape}")
    if not target.numel():
        return _wrong(key, "empty")
    if ours.is_floating_point() != target.is_floating_point():
        return _wrong(key, f"ours is {ours.dtype}, expected {target.dtype}")
    if not target.is_floating_point():
        different = (ours.to(target.dtype) != target).sum().item()
        return _wrong(key, f"{different} of {target.numel()} differ") if different else Difference(key, 0.0)
    tolerance = description.get("suggested_atol_float64", RELATIVE * target.abs().max().item())
    return _close(key, distance(ours.double(), target.double()), tolerance)


def _numbers(key: str, target: Any, ours: Any, relative: float) -> Iterator[Difference]:
    """Two nested values: names and counts must be equal, floats within their tolerance."""
    expected, found = dict(_leaves(key, target)), dict(_leaves(key, ours))
    largest = max((abs(v) for v in expected.values() if isinstance(v, float) and math.isfinite(v)), default=0.0)
    for name, value in expected.items():
        own = found.get(name)
        if name not in found:
            yield _wrong(name, "not computed")
        elif float in (type(value), type(own)) and _is_real(value) and _is_real(own):
            yield _close(name, abs(own - value), relative * abs(value) + NEGLIGIBLE * largest)
        elif type(value) is type(own) and value == own:
            yield Difference(name, 0.0)
        else:
            yield _wrong(name, f"ours is {_short(own)}, expected {_short(value)}")


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value of a nested one under its path; lists of names and groups of parameters are in no order."""
    entries: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple):
        yield key, f"{len(value)} entries"
        if all(isinstance(entry, str) for entry in value):
            value = sorted(value)
        elif all(isinstance(entry, Mapping) and "parameters" in entry for entry in value):
            value = sorted(value, key=lambda group: sorted(group["parameters"]))
        entries = enumerate(value)
    else:
        yield key, value
        return
    for name, entry in entries:
        yield from _leaves(f"{key}/{name}", entry)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(key: str, error: float, tolerance: float) -> Difference:
    if not math.isfinite(error):
        return _wrong(key, "not finite")
    if error == 0.0:
        return Difference(key, 0.0)
    return Difference(key, error / tolerance if tolerance > 0 else math.inf)


def _wrong(key: str, reason: str) -> Difference:
    return Difference(key, math.inf, reason)


def _short(value: Any) -> str:
    return shorten(str(value), 60, placeholder="...")
