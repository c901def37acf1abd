"""Do our modules compute what the official code computes? Every golden item of a folder answers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pantomim.parity.item import RELATIVE, Computed, Item, distance, exact, read_item

# Entries of `numbers` that tell how the official code behaves in float32, and how sure its predictions are.
NOTES = frozenset({"in_float32", "float32", "float64_noise", "smallest_margin_of_predictions"})
NOTES |= {"final_l2_norms_float32", "metrics_float32"}
NEGLIGIBLE = 1e-12  # of an entry's largest value: rounding noise where the true value is zero


@dataclass(frozen=True)
class ItemResult:
    """What became of one item."""

    name: str
    status: Literal["PASS", "FAIL", "UNKNOWN ITEM"]  # the last: no function rebuilds it
    error: float | None = None  # the largest, as a multiple of its tolerance; None: nothing could be compared
    worst: str = ""  # the key of that, and why it cannot be compared, if so
    compared: int = 0  # keys
    off: int = 0  # of these, beyond their tolerance
    unbuilt: tuple[str, ...] = ()  # patterns of keys left out, as this package does not do what they stand for

    def __str__(self) -> str:
        error = "-" if self.error is None else f"{self.error:.2g} x tolerance"
        tail = f"  worst: {self.worst}" if self.worst else ""
        keys = f"  ({self.compared} keys{f', {self.off} off' if self.off else ''})" if self.compared else ""
        rest = f"  not built here: {', '.join(self.unbuilt)}" if self.unbuilt else ""
        return f"{error:>19}  {self.status}{tail}{keys}{rest}"


def verify(folder: str | Path) -> list[ItemResult]:
    """Rebuild each item (`NAME.json` + `NAME.safetensors`) in float64 and compare all; `ValueError` without any."""
    folder = Path(folder)
    names = sorted({path.stem for ending in ("json", "safetensors") for path in folder.glob(f"*.{ending}")})
    if not names:
        raise ValueError(
            f"verify.folder must hold golden items, pairs of NAME.json and NAME.safetensors; got {folder}, which holds "
            f"none. Without a folder the selection is taken that comes with the package."
        )
    return [verify_item(folder / f"{name}.json") for name in names]


def verify_item(path: Path) -> ItemResult:
    """Rebuild and compare one item, given its JSON file; whatever is wrong with it ends in the result."""
    try:
        item = read_item(path)
        rebuild = _family(item)
        if rebuild is None:
            return ItemResult(item.name, "UNKNOWN ITEM")
        with torch.random.fork_rng(devices=[]):  # modules are initialised on the way: nobody else's draws may change
            torch.manual_seed(0)
            computed = rebuild(item)
            compared = differences(item, computed)
            found = [each for each in compared if not any(fnmatchcase(each.key, key) for key in computed.unbuilt)]
    except Exception as error:  # an item must not keep the others from being checked
        return ItemResult(path.stem, "FAIL", worst=f"{type(error).__name__}: {' '.join(str(error).split())}")
    if not found:
        return ItemResult(item.name, "FAIL", worst="nothing to compare")
    worst, off = max(found, key=lambda difference: difference.error), sum(each.error > 1.0 for each in found)
    reason = f" ({worst.reason})" if worst.reason else ""
    return ItemResult(
        item.name, "FAIL" if off else "PASS", worst.error, worst.key + reason, len(found), off, computed.unbuilt
    )


def format_results(results: Sequence[ItemResult]) -> list[str]:
    """One plain line an item, and a last line that counts."""
    width = max((len(result.name) for result in results), default=0)
    statuses = [result.status for result in results]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("PASS", "FAIL", "UNKNOWN ITEM"))
    return [*(f"{result.name:{width}}  {result}" for result in results), f"{len(results)} items: {counts}"]


def _family(item: Item) -> Callable[[Item], Computed] | None:
    """What rebuilds the item: by what it calls itself or, where it does not say, by the name of its files."""
    from pantomim.parity import PARITY  # late: its modules are read after this one

    stated = item.spec.get("item")
    title = stated if isinstance(stated, str) else item.name
    public = {name: value for module in PARITY for name, value in vars(module).items() if not name.startswith("_")}
    rebuilds = {"item": Item, "return": Computed}  # from an item alone to what we compute
    rebuilding = [name for name, value in public.items() if getattr(value, "__annotations__", None) == rebuilds]
    fitting = [name for name in rebuilding if f"{title}_".startswith(f"{name}_")]
    return public[max(fitting, key=len)] if fitting else None


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
        if name in NOTES or any(judged.startswith(f"{key}/") for judged in computed.errors):
            continue
        if name in computed.numbers:
            yield from _numbers(key, target, computed.numbers[name], computed.relative.get(name, RELATIVE))
        else:
            yield _wrong(key, "not computed")
    for name, ours in computed.config.items():
        stated = item.config.get(name, ours)
        if stated != ours:
            yield _wrong(f"config/{name}", shorten(f"our modules have {ours}, the item has {stated}", 120))
    for name, error in computed.errors.items():
        yield Difference(name, math.inf if math.isnan(error) else error)


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
        elif isinstance(value, int | float) and isinstance(own, int | float) and float in (type(value), type(own)):
            yield _close(name, abs(own - value), relative * abs(value) + NEGLIGIBLE * largest)
        elif type(value) is type(own) and value == own:
            yield Difference(name, 0.0)
        else:
            yield _wrong(name, f"ours is {own}, expected {value}")


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


def _close(key: str, error: float, tolerance: float) -> Difference:
    if not math.isfinite(error):
        return _wrong(key, "not finite")
    return Difference(key, error / tolerance if tolerance > 0 else exact(error == 0.0))


def _wrong(key: str, reason: str) -> Difference:
    return Difference(key, math.inf, reason)
