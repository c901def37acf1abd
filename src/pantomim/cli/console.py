"""What all commands print with; nothing below the command line prints.

Words are printed as they are, without rich's markup: names of files may hold brackets and colons.
"""

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from pantomim.core.machine import is_main_process
from pantomim.core.progress import watched_by
from pantomim.engine.bar import Times

AS_THEY_ARE: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
EVERY_S = 30.0  # at most one line of progress in a file
CONSOLE, ERRORS = Console(**AS_THEY_ARE), Console(stderr=True, **AS_THEY_ARE)


class _Outlet(io.FileIO):
    """Standard output; what cannot be written, as nobody reads it any more, is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def print_whatever_happens() -> None:
    """From here on printing ends no command: letters that the terminal lacks are escaped, a closed pipe is no error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed from the beginning
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif sys.platform == "win32":  # whose terminals are no files
            stream.reconfigure(errors="backslashreplace")
        else:
            raw = io.BufferedWriter(_Outlet(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True))


class _Display:
    """What a command is doing, and how far it is: a line on a terminal's standard error, from the first second on.

    It is gone as soon as there is a result to print. In a file there is a line of what lasts, every half minute.
    """

    def __init__(self) -> None:
        self._told = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""

    def __call__(self, what: str, done: float, total: float | None) -> None:
        if not what or not ERRORS.is_terminal or not is_main_process():
            self.hide()
            if done and total and is_main_process() and time.monotonic() - self._told > EVERY_S:
                self._told = time.monotonic()
                progress(f"{what}: {done:,.0f} of {total:,.0f}")
            return
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), Times())
            self._progress = Progress(*columns, console=ERRORS, transient=True)
            self._progress.start()
        if what != self._what or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._what, self._task = what, self._progress.add_task(what, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def hide(self) -> None:
        """Until the next thing is told."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


DISPLAY = _Display()


@contextmanager
def progress_shown(command: str) -> Iterator[None]:
    """What is told of progress within is shown; at first, the command alone."""
    with watched_by(DISPLAY):
        try:
            DISPLAY(command, 0, None)
            yield
        finally:
            DISPLAY.hide()


def result() -> Console:
    """Where the result is printed, nothing else being shown."""
    DISPLAY.hide()
    return CONSOLE


def say(text: str) -> None:
    """A line of the result; long ones are left to the terminal, so that paths can be copied."""
    result().print(text, soft_wrap=True)


def progress(text: str) -> None:
    """A line on what is being done, apart from the result."""
    ERRORS.print(text, soft_wrap=True)


def say_loading(command: str) -> None:
    """A line for the seconds that libraries take, unless they are there already."""
    if "torch" not in sys.modules and is_main_process():
        progress(f"pantomim {command}: loading PyTorch ...")


def warn(text: str, label: str = "warning") -> None:
    """A line that wants attention but stops nothing."""
    ERRORS.print(Text.assemble((f"{label}:", "bold yellow"), " ", text), soft_wrap=True)


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
    ERRORS.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)
    sys.exit(status)


def section(heading: str, rows: Iterable[tuple[str, str | Text]]) -> None:
    """A heading, and rows of what and value."""
    table = Table.grid(padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True, style="cyan")
    for row in rows:
        table.add_row(*row)
    result().print(Text(f"\n{heading}", "bold"))
    CONSOLE.print(table)


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]], *, gap: int = 0, **options: Any) -> None:
    """A table without lines, its first column unbroken; `gap` rows between two, other options as rich's."""
    table = Table(box=None, padding=(0, 2, gap, 0), show_edge=False, **options)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    result().print(table)


def say_broken(broken: Iterable[Any]) -> None:
    """Which images were left out, and why."""
    for item in broken:
        say(f"Left out as broken: {item.name}: {item.reason}")
