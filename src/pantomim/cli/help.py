"""Help that fits a screen: what a command does, examples, the options that people touch; all of them on request."""

import inspect
import re
import sys
import textwrap
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import tyro
from rich.text import Text

from pantomim.cli.console import CONSOLE

if TYPE_CHECKING:
    from pantomim.cli.command_line import CommandLine

# What people touch, in the order of help; a command that has more than `MOST` options shows ten of these.
TOUCHED = (
    *("data", "encoder", "out", "init", "size", "minutes", "steps", "epochs", "masks", "head", "labels_per_class"),
    *("compare", "batch_size", "optim.base_lr", "method.masker.ratio", "runtime.device", "tokenizer", "teacher"),
    *("images", "image_size", "seed", "device", "index", "table"),
)
MOST, NUM_TOUCHED = 15, 10
INDENT = 30  # where texts begin
PLACES = {"data": "SRC", "source": "SRC", "images": "SRC", "encoder": "RUN", "init": "RUN", "out": "OUT"}
SIMPLE = {int: "N", float: "X", Path: "FILE", str: ""}
HIDDEN = ("recipe", "init", "data.source", "data.scale", "method.kind")  # settings that options stand for


@dataclass(frozen=True)
class Option:
    """One option, as help shows it."""

    name: str  # dotted, as in Python
    values: str  # N, X, SRC ...
    text: str
    positional: bool = False
    required: bool = False

    @property
    def typed(self) -> str:
        """As it is typed."""
        flag = self.values if self.positional else f"--{self.name.replace('_', '-')} {self.values}".rstrip()
        return f"[{flag}]" if self.positional and not self.required else flag


def options_in(kind: Callable[..., Any], flags: bool) -> list[Option]:
    """The arguments of a function or a dataclass; `flags` where a truth value is typed without one."""
    texts = _comments(kind) if isinstance(kind, type) else _arguments(kind)
    found = []
    for name, each in inspect.signature(kind).parameters.items():
        marks = getattr(each.annotation, "__metadata__", ())
        if tyro.conf.Suppress in marks:
            continue
        renamed = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
        values = "" if flags and each.annotation is bool else _values(each.annotation, name)
        required, positional = each.default is each.empty, tyro.conf.Positional in marks
        values = re.sub(r"\bSTR\b", name.upper(), values) if positional else values
        text = _with_default(texts.get(name, ""), each.default, required)
        if name == "out" and (file := re.match(r"FILE[.\w]*|(?=The run folder)", text)) is not None:
            values = file[0] or "RUN"
        if values == "FILE" and "folder" in (first := text.partition(".")[0].lower()) and "file" not in first:
            values = "FOLDER"
        found.append(Option(renamed, values, text, positional, required))
    return found


def settings_in(
    config: Any, fitted: Collection[str] = (), prefix: str = "", kinds: str = ""
) -> Iterator[tuple[str, Option]]:
    """Every setting of a config below a heading; of those that are `fitted` to the images no default is shown."""
    texts, hints = _comments(type(config)), get_type_hints(type(config), include_extras=True)
    for item in fields(config):
        name, value, hint = prefix + item.name, getattr(config, item.name), hints[item.name]
        if is_dataclass(value):
            members = get_args(get_args(hint)[0] if get_origin(hint) is Annotated else hint)
            yield from settings_in(value, fitted, f"{name}.", "|".join(getattr(each, "kind", "") for each in members))
        elif name not in HIDDEN:
            text = texts.get(item.name, "")
            shown = f"{text} (default: by size and data)" if name in fitted else _with_default(text, value)
            values = kinds if item.name == "kind" and kinds else _values(hint, item.name)
            yield prefix or "run", Option(name, values, shown.strip())


def show_help(
    line: "CommandLine",
    options: Sequence[Option],
    settings: Sequence[tuple[str, Option]] = (),
    *,
    needs: Sequence[str] = (),
    more: str = "",
) -> NoReturn:
    """Print the help of a command, and end; what it `needs` is among the options that are shown."""
    prog, everything = f"pantomim {line.command}", "--help-all" in line.arguments
    every = [*options, *(setting for _, setting in settings)]
    few = everything or len(every) <= MOST
    named = {each.name: each for each in reversed(every)}
    required = [each for each in options if each.required or each.positional]
    touched = [
        named[name] for name in dict.fromkeys([*needs, *TOUCHED]) if name in named and named[name] not in required
    ]
    words = [each.typed for each in required]
    CONSOLE.print(Text(" ".join(["usage:", prog, *words, "[options]"])), soft_wrap=True)
    CONSOLE.print(Text("\n" + textwrap.fill(readable(line.about), CONSOLE.width)))
    if line.examples:
        CONSOLE.print(Text("\nExamples", "bold"))
        for each in line.examples:
            CONSOLE.print(Text(f"  {each}"), soft_wrap=True)
    _rows("Options", options if few else [*required, *touched[:NUM_TOUCHED]])
    if everything:
        for heading in dict.fromkeys(heading for heading, _ in settings):
            _rows(f"Settings: {heading.rstrip('.')}", [each for of, each in settings if of == heading])
    elif not few:
        more = f"All options and settings: {prog} --help-all. {more}"
    CONSOLE.print(Text("\n" + textwrap.fill(more, CONSOLE.width)) if more else "", end="\n" if more else "")
    sys.exit(0)


def examples_of(command: Callable[..., Any]) -> list[str]:
    """The lines below Examples in a docstring."""
    found = re.search(r"^Examples:\n((?: {4}.*\n?)+)", inspect.getdoc(command) or "", re.MULTILINE)
    return textwrap.dedent(found[1]).splitlines() if found else []


def readable(text: str) -> str:
    """Text of help, with pages of the documentation by how they are opened."""
    return re.sub(r"`?docs/([\w/-]+)\.md`?", r"`pantomim docs \1`", text)


def _rows(heading: str, options: Iterable[Option]) -> None:
    CONSOLE.print(Text(f"\n{heading}", "bold"))
    for each in options:
        typed, lines = f"  {each.typed}", textwrap.wrap(readable(each.text), max(30, CONSOLE.width - INDENT)) or [""]
        if len(typed) > INDENT - 2:
            CONSOLE.print(Text(typed, "cyan"), soft_wrap=True)
        else:
            CONSOLE.print(Text.assemble((f"{typed:{INDENT}}", "cyan"), lines.pop(0)), soft_wrap=True)
        for line in lines:
            CONSOLE.print(Text(" " * INDENT + line), soft_wrap=True)


def _with_default(text: str, default: Any, required: bool = False) -> str:
    text = text.strip().rstrip(".")
    if required:
        return f"{text} (required)"
    if default is None:
        return re.sub(r"[Nn]one: ", "default: ", text)
    if default in ("", (), False):
        return text
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f"{text} (default: {default:g})" if isinstance(default, float) else f"{text} (default: {default})"


def _values(hint: Any, name: str) -> str:
    """What is typed behind an option."""
    if get_origin(hint) is Annotated:
        return _values(get_args(hint)[0], name)
    if get_origin(hint) in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_values(each, name) for each in get_args(hint) if each is not type(None)))
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        one = _values(first, name)
        return f"{one} [{one} ...]" if Ellipsis in others else " ".join([one] * (1 + len(others)))
    if hint is bool:
        return "true|false"
    return SIMPLE.get(hint) or PLACES.get(name) or name.rpartition("_")[2].upper()


def check_number(option: str, hint: Any, word: str | None) -> None:
    """Refuse a word where one number is typed."""
    number = {"N": int, "X": float}.get(_values(hint, ""))
    if number is None or word in (None, "None"):
        return
    try:
        number(word)
    except ValueError:
        kind = "a whole number" if number is int else "a number"
        raise ValueError(f"{option} must be {kind}; got {word}.") from None


def _arguments(kind: Callable[..., Any]) -> dict[str, str]:
    """The texts below Args in a docstring."""
    found = re.search(r"^Args:\n((?: {4}.*\n?)+)", inspect.getdoc(kind) or "", re.MULTILINE)
    texts = re.findall(r"^ {4}(\w+): ((?:.*\n?)(?: {8}.*\n?)*)", found[1] if found else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in texts}


def _comments(kind: type) -> dict[str, str]:
    """The comments above or beside the fields of a dataclass and of those that it inherits from."""
    texts: dict[str, str] = {}
    for each in reversed([each for each in kind.__mro__ if is_dataclass(each)]):
        above: list[str] = []
        for line in inspect.getsource(each).splitlines():
            if (comment := re.match(r" {4}# (.*)", line)) is not None:
                above.append(comment[1])
            elif (field := re.match(r" {4}(\w+): .*?(?:  # (.*))?$", line)) is not None:
                texts[field[1]] = field[2] or " ".join(above) or texts.get(field[1], "")
                above = []
            else:
                above = []
    return texts
