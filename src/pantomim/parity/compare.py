"""Differences between expected and own values, measured in tolerances."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pantomim.parity.item import Computed, Item

RELATIVE = 1e-9  # where an item states no tolerance: the share of the largest value that stated ones come to
NEGLIGIBLE = 1e-12  # of the largest value: rounding noise where the true value is zero


class Difference(NamedTuple):
    """One compared value: how far off, as a multiple of its tolerance (infinite if not comparable), and why."""

    key: str
    error: float
    reason: str = ""


def differences(item: Item, computed: Computed) -> Iterator[Difference]:
    """Compare everything that an item expects."""
    for name, (want, description) in item.expected().items():
        if name in computed.deviations:
            continue
        yield _tensor(name, want, computed.outputs.get(name), description)
    for name, want in item.numbers.items():
        if any(key.startswith(f"numbers/{name}/") for key in computed.deviations):
            continue
        if name in computed.numbers:
            relative = computed.relative.get(name, RELATIVE)
            floor = NEGLIGIBLE * max(map(abs, _floats(want)), default=0.0)
            ours = computed.numbers[name]
            yield from _number(f"numbers/{name}", _unordered(want), _unordered(ours), relative, floor)
        else:
            yield _wrong(f"numbers/{name}", "not computed")
    for name, ours in computed.config.items():
        stated = item.config.get(name, ours)
        if stated != ours:
            yield _wrong(f"config/{name}", f"our modules have {ours}, the item has {_short(stated)}")
    for name, error in computed.deviations.items():
        yield Difference(name, error)


def _wrong(key: str, reason: str) -> Difference:
    return Difference(key, math.inf, reason)


def _tensor(key: str, want: Tensor | None, ours: Tensor | None, description: Mapping[str, Any]) -> Difference:
    if want is None:
        return _wrong(key, "described but not stored")
    if "shape" in description and list(want.shape) != description["shape"]:
        return _wrong(key, f"stored as {list(want.shape)}, described as {description['shape']}")
    if ours is None:
        return _wrong(key, "not computed")
    ours = ours.detach()
    if want.numel() == 1 and ours.numel() == 1:
        ours = ours.reshape(want.shape)  # scalars are stored with one dimension
    if ours.shape != want.shape:
        return _wrong(key, f"ours is {list(ours.shape)}, expected {list(want.shape)}")
    if not want.numel():
        return _wrong(key, "empty")
    if ours.is_floating_point() != want.is_floating_point():
        return _wrong(key, f"ours is {ours.dtype}, expected {want.dtype}")
    if not want.is_floating_point():
        different = (ours.to(want.dtype) != want).sum().item()
        return _wrong(key, f"{different} of {want.numel()} differ") if different else Difference(key, 0.0)
    want, ours = want.double(), ours.double()
    if not (want.isfinite().all() and ours.isfinite().all()):
        return _wrong(key, "not finite")
    tolerance = description.get("suggested_atol_float64", RELATIVE * want.abs().max().item())
    return Difference(key, _in_tolerances((ours - want).abs().max().item(), tolerance))


def _number(key: str, want: Any, ours: Any, relative: float, floor: float) -> Iterator[Difference]:
    """Walk through two nested values; names and counts must be equal, floats within their tolerance."""
    if isinstance(want, dict) and isinstance(ours, Mapping):
        for name, value in want.items():
            if name in ours:
                yield from _number(f"{key}/{name}", value, ours[name], relative, floor)
            else:
                yield _wrong(f"{key}/{name}", "not computed")
    elif isinstance(want, list) and isinstance(ours, list) and len(want) == len(ours):
        for index, (value, own) in enumerate(zip(want, ours, strict=True)):
            yield from _number(f"{key}/{index}", value, own, relative, floor)
    elif _is_real(want) and _is_real(ours) and isinstance(want, float) | isinstance(ours, float):
        if math.isfinite(want) and math.isfinite(ours):
            yield Difference(key, _in_tolerances(abs(ours - want), relative * abs(want) + floor))
        else:
            yield _wrong(key, "not finite")
    elif type(want) is type(ours) and want == ours:
        yield Difference(key, 0.0)
    else:
        yield _wrong(key, f"ours is {_short(ours)}, expected {_short(want)}")


def _in_tolerances(error: float, tolerance: float) -> float:
    if error == 0.0:
        return 0.0
    return error / tolerance if tolerance > 0 else math.inf


def _unordered(value: Any) -> Any:
    """The same value with lists of names sorted, and groups of parameters sorted by their names."""
    if isinstance(value, Mapping):
        return {key: _unordered(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_unordered(entry) for entry in value]
        if all(isinstance(entry, str) for entry in entries):
            return sorted(entries)
        if all(isinstance(entry, dict) and "parameters" in entry for entry in entries):
            return sorted(entries, key=lambda group: group["parameters"])
        return entries
    return value


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _floats(entry)
    elif isinstance(value, float) and math.isfinite(value):
        yield value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def distance(ours: Tensor, want: Tensor) -> float:
    """The largest difference of two tensors; infinite if they differ in shape."""
    return (ours - want).abs().max().item() if ours.shape == want.shape else math.inf
