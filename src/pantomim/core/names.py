"""What was probably meant by a name that is not known."""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, prefix: str = "") -> str:
    """A question, after a space, that names the nearest of the known names; where none is near, the other advice."""
    alike = [*known]
    ends = [full for full in alike if full.endswith(f".{name}")]  # of which people mean the encoder's, or the shortest
    ends.sort(key=lambda full: (not full.endswith(f".encoder.{name}"), len(full)))
    close = ends[:1] or difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
    advice = f"Did you mean {prefix}{close[0]}?" if close else otherwise
    return f" {advice}" if advice else ""


def one_of(field: str, name: str, kinds: Mapping[str, T]) -> T:
    """The kind of a name; a `ValueError`, in the name of a field, says which there are."""
    if name not in kinds:
        raise ValueError(f"{field} must be one of {', '.join(kinds)}; got {name}.{did_you_mean(name, kinds)}")
    return kinds[name]


def check_there(field: str, place: str | os.PathLike[str], rule: str = "a run folder, a file or timm:NAME") -> None:
    """Refuse a path that does not exist, in the name of a field; a name with a colon, such as timm:NAME, is no path."""
    path = Path(place)
    if ":" in str(place) or path.exists():
        return
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = did_you_mean(path.name, beside, "Check the path.", prefix="" if path.parent == Path() else f"{path.parent}/")
    raise ValueError(f"{field} must be {rule}; got {place}, which does not exist.{near}")
