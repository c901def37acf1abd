"""What is printed: any words as they are, on any terminal, and no end of a command by it."""

import contextlib
import os
import subprocess
import sys

import pytest

from pantomim.cli import console
from pantomim.cli.console import fail, grid, progress, say, section, warn
from pantomim.core.progress import tracked

NAMES = ["brackets[old]", "runs/lr [bold]", "run[/x]", "hf:me:cat:", "[red]r", "a\\[b]\\", "[link=x]"]


def printed(show, capsys):
    with contextlib.suppress(SystemExit):
        show()
    found = capsys.readouterr()
    return "".join((found.out + found.err).split("\n"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "show",
    [
        say,
        progress,
        warn,
        lambda name: fail(name, 2),
        lambda name: section(name, []),
        lambda name: section("what", [(name, "")]),
        lambda name: section("what", [("", name)]),
        lambda name: grid((name,), []),
        lambda name: grid(("what",), [(name,)], title=name),
    ],
    ids=["say", "progress", "warn", "fail", "heading", "row", "value", "column", "cell"],
)
def test_names_are_printed_as_they_are(show, name, capsys):
    assert name in printed(lambda: show(name), capsys)


def test_in_a_file_what_lasts_is_told_every_half_minute(monkeypatch, capsys):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "DISPLAY", console._Display())
    with console.progress_shown("evaluate"):
        assert list(tracked(range(4), "photos: images", 4)) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == ["photos: images: 2 of 4", "photos: images: 4 of 4"]


def ended(words, **environment):
    command = f"{sys.executable} -c 'from pantomim.cli import main; main()' {words}"
    script = f"set -o pipefail; {command}"
    return subprocess.run(["bash", "-c", script], capture_output=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--help | head -c1", 0),
        ("stats --help | true", 0),
        ("--help >/dev/full", 0),
        ("stats --help >&- 2>&-", 0),
        ("nonsense 2>&1 | true", 2),
        ("nonsense 2>&-", 2),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_nobody_reads_is_no_error(words, status):
    found = ended(words)
    assert (found.returncode, found.stderr) == (status, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_the_terminal_lacks_are_escaped(encoding):
    found = ended("Ωé", PYTHONIOENCODING=encoding)
    assert found.returncode == 2
    assert b"There is no command \\u03a9" in found.stderr
