"""Do our modules compute what the official code computes? Every golden item of a folder answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pantomim.parity.compare import Difference, differences
from pantomim.parity.item import Computed, Item, read_item

ItemFunction = Callable[[Item], Computed]


@dataclass(frozen=True)
class ItemResult:
    """What became of one item.

    Args:
        name: The item's name.
        status: "UNKNOWN ITEM" where no function rebuilds it.
        error: The largest error as a multiple of its tolerance; None where nothing could be compared.
        worst: The key with that error, and why it cannot be compared, if so.
        compared: How many keys were compared.
        off: How many of them are beyond their tolerance.
    """

    name: str
    status: Literal["PASS", "FAIL", "UNKNOWN ITEM"]
    error: float | None = None
    worst: str = ""
    compared: int = 0
    off: int = 0


def verify(folder: str | Path) -> list[ItemResult]:
    """Rebuild every item of a folder (`NAME.json` + `NAME.safetensors`) in float64 and compare all it expects.

    Raises:
        ValueError: if the folder holds no item.
    """
    folder = Path(folder)
    names = sorted({path.stem for ending in ("json", "safetensors") for path in folder.glob(f"*.{ending}")})
    if not names:
        raise ValueError(
            f"verify.folder must hold golden items, pairs of NAME.json and NAME.safetensors; got {folder}, which holds "
            f"none. A selection comes with the source, in tests/parity/golden."
        )
    return [verify_item(folder / f"{name}.json") for name in names]


def verify_item(path: Path) -> ItemResult:
    """Rebuild and compare one item, given its JSON file; whatever is wrong with it ends in the result."""
    try:
        item = read_item(path)
    except ValueError as error:
        return ItemResult(path.stem, "FAIL", worst=str(error))
    rebuild = _family(item)
    if rebuild is None:
        return ItemResult(item.name, "UNKNOWN ITEM")
    try:
        with torch.random.fork_rng(devices=[]):  # modules are initialised on the way: nobody else's draws may change
            torch.manual_seed(0)
            found = list(differences(item, rebuild(item)))
    except Exception as error:  # an item must not keep the others from being checked
        return ItemResult(item.name, "FAIL", worst=f"{type(error).__name__}: {_one_line(error)}")
    if not found:
        return ItemResult(item.name, "FAIL", worst="nothing to compare")
    worst = max(found, key=_severity)
    status: Literal["PASS", "FAIL"] = "PASS" if worst.error <= 1.0 else "FAIL"
    reason = f" ({worst.reason})" if worst.reason else ""
    off = sum(not difference.error <= 1.0 for difference in found)
    return ItemResult(item.name, status, worst.error, worst.key + reason, len(found), off)


def format_results(results: Sequence[ItemResult]) -> list[str]:
    """One plain line an item, and a last line that counts."""
    width = max((len(result.name) for result in results), default=0)
    lines = [f"{result.name:{width}}  {_format(result)}" for result in results]
    counts = {status: sum(result.status == status for result in results) for status in _STATUSES}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    return [*lines, f"{len(results)} items: {summary}"]


_STATUSES = ("PASS", "FAIL", "UNKNOWN ITEM")


def _format(result: ItemResult) -> str:
    error = "-" if result.error is None else f"{result.error:.2g} x tolerance"
    tail = f"  worst: {result.worst}" if result.worst else ""
    keys = f"  ({result.compared} keys{f', {result.off} off' if result.off else ''})" if result.compared else ""
    return f"{error:>19}  {result.status}{tail}{keys}"


def _family(item: Item) -> ItemFunction | None:
    from pantomim.parity import PARITY  # late: its modules are read after this one

    families = {stem: function for module in PARITY for stem, function in module.ITEMS.items()}
    fitting = [stem for stem in families if item.title == stem or item.title.startswith(f"{stem}_")]
    return families[max(fitting, key=len)] if fitting else None


def _severity(difference: Difference) -> float:
    return math.inf if math.isnan(difference.error) else difference.error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
