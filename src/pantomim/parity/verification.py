"""Do our modules compute what the official code computes? Every golden item of a folder answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pantomim.parity.compare import Computed, differences
from pantomim.parity.item import Item, read_item


@dataclass(frozen=True)
class ItemResult:
    """What became of one item; its status is "UNKNOWN ITEM" where no function rebuilds it.

    Args:
        name: Of its files.
        status: Whether everything is within its tolerance.
        error: The largest error as a multiple of its tolerance; None where nothing could be compared.
        worst: The key with that error, and why it cannot be compared, if so.
        compared: Number of keys compared.
        off: Number of keys beyond their tolerance.
    """

    name: str
    status: Literal["PASS", "FAIL", "UNKNOWN ITEM"]
    error: float | None = None
    worst: str = ""
    compared: int = 0
    off: int = 0

    def __str__(self) -> str:
        error = "-" if self.error is None else f"{self.error:.2g} x tolerance"
        tail = f"  worst: {self.worst}" if self.worst else ""
        keys = f"  ({self.compared} keys{f', {self.off} off' if self.off else ''})" if self.compared else ""
        return f"{error:>19}  {self.status}{tail}{keys}"


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
        rebuild = _family(item)
        if rebuild is None:
            return ItemResult(item.name, "UNKNOWN ITEM")
        with torch.random.fork_rng(devices=[]):  # modules are initialised on the way: nobody else's draws may change
            torch.manual_seed(0)
            found = list(differences(item, rebuild(item)))
    except Exception as error:  # an item must not keep the others from being checked
        return ItemResult(path.stem, "FAIL", worst=f"{type(error).__name__}: {' '.join(str(error).split())}")
    if not found:
        return ItemResult(item.name, "FAIL", worst="nothing to compare")
    worst, off = max(found, key=lambda difference: difference.error), sum(each.error > 1.0 for each in found)
    reason = f" ({worst.reason})" if worst.reason else ""
    return ItemResult(item.name, "FAIL" if off else "PASS", worst.error, worst.key + reason, len(found), off)


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
    families = {stem: function for module in PARITY for stem, function in module.ITEMS.items()}
    fitting = [stem for stem in families if title == stem or title.startswith(f"{stem}_")]
    return families[max(fitting, key=len)] if fitting else None
