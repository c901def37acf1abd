"""How far a long piece of work has come, told to whoever shows it: a bar of the command line, or nobody."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
# What is done, how much of it, and of how much; "" is shown elsewhere
Shown = Callable[[str, float, float | None], None]
_watching: list[Shown] = []


def report(what: str, done: float = 0, total: float | None = None) -> None:
    """Tell how far something has come; without a total nobody knows how long it takes."""
    for shown in _watching[-1:]:
        shown(what, done, total)


def tracked(items: Iterable[T], what: str, total: float | None = None) -> Iterator[T]:
    """The items, each told of once whoever asked for it comes back."""
    report(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        report(what, done, total)
    report("working")


@contextmanager
def watched_by(shown: Shown) -> Iterator[None]:
    """Within, this is told of all progress."""
    _watching.append(shown)
    try:
        yield
    finally:
        _watching.remove(shown)


def duration(seconds: float) -> str:
    """As 0:17 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def about(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 19 h, 5 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{int(seconds < 10 * length and unit != 'min')}f} {unit}"
    return f"{seconds:.0f} s"
