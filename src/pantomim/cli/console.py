"""What all commands print with; nothing below the command line prints."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

CONSOLE, ERRORS = Console(highlight=False), Console(stderr=True, highlight=False)


def is_main_process() -> bool:
    """Whether this one of several processes is the one that prints results."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """A line of the result; long ones are left to the terminal, so that paths can be copied."""
    CONSOLE.print(text, markup=False, soft_wrap=True)


def progress(text: str) -> None:
    """A line on what is being done, apart from the result."""
    ERRORS.print(text, markup=False, soft_wrap=True)


def warn(text: str, label: str = "warning") -> None:
    """A line that wants attention but stops nothing."""
    ERRORS.print(f"[bold yellow]{label}:[/bold yellow] {escape(text)}", soft_wrap=True)


class _Notes(logging.Handler):
    """Shows what is logged below the command line, each line once."""

    def __init__(self, worded: Callable[[str], str]) -> None:
        super().__init__()
        self._worded, self._shown = worded, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """A line on what is being done, or a warning."""
        if (text := self._worded(record.getMessage())) not in self._shown and is_main_process():
            self._shown.add(text)
            (warn if record.levelno >= logging.WARNING else progress)(text)


@contextmanager
def notes_shown(worded: Callable[[str], str]) -> Iterator[None]:
    """What the package logs within is shown, in these words."""
    logger, notes = logging.getLogger("pantomim"), _Notes(worded)
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(notes)


def fail(message: str, status: int) -> NoReturn:
    """One message, and the end."""
    ERRORS.print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)
    sys.exit(status)


def section(heading: str, rows: Iterable[tuple[str, str]]) -> None:
    """A heading, and rows of what and value."""
    table = Table.grid(padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True, style="cyan")
    for row in rows:
        table.add_row(*map(escape, row))
    CONSOLE.print(f"\n[bold]{escape(heading)}[/bold]")
    CONSOLE.print(table)


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]], *, gap: int = 0, **options: Any) -> None:
    """A table without lines, its first column unbroken; `gap` rows between two, other options as rich's."""
    table = Table(box=None, padding=(0, 2, gap, 0), show_edge=False, **options)
    for number, heading in enumerate(headings):
        table.add_column(escape(heading), no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    CONSOLE.print(table)


def say_broken(broken: Iterable[Any]) -> None:
    """Which images were left out, and why."""
    for item in broken:
        say(f"Left out as broken: {item.name}: {item.reason}")
