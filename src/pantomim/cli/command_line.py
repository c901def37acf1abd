"""The words after a command's name: how they become options, and how messages from below speak of those."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from typing import Annotated, Any, TypeVar, cast

import tyro

from pantomim.cli.console import say, section
from pantomim.cli.help import check_number, examples_of, options_in, readable, show_help
from pantomim.core.names import did_you_mean
from pantomim.verbs import Place

T = TypeVar("T")
LEAVES = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
# A setting in a message; at the beginning of an indented line it is a key of a file.
SETTING = re.compile(r"(?<![\w./-])(?<!^  )[A-Za-z_]\w*(?:\.\w+)+(?![\w/]|\.\w)", re.MULTILINE)


@dataclass
class CommandLine:
    """What was typed: the words of the command so far, such as evaluate linear, and those that follow.

    `options` are those of the command, by how messages from below name them: optim.base_lr, OptimConfig.base_lr.
    """

    command: str
    arguments: list[str]
    options: dict[str, str] = field(default_factory=dict)
    about: str = ""  # what help begins with
    examples: list[str] = field(default_factory=list)  # that help shows

    def __post_init__(self) -> None:
        self.arguments = [{"true": "True", "false": "False"}.get(word, word) for word in self.arguments]

    @property
    def asks_for_help(self) -> bool:
        """Whether anywhere."""
        return not {"-h", "--help", "--help-all"}.isdisjoint(self.arguments)

    def read(self, kind: Callable[..., T], *owners: str, **how: Any) -> T:
        """What a dataclass or a function, whose arguments are the options, makes of the words; `how` is for `tyro.cli`.

        Messages speak of the arguments as those of `kind`, of what it inherits from, of the command, or of `owners`.
        """
        classes = inspect.getmro(kind) if isinstance(kind, type) else (kind,)
        names = [self.command.split()[0], "Dataset", "Encoder", *owners, *(each.__name__ for each in classes)]
        how = {"config": LEAVES, **how}
        if self.asks_for_help and how.get("add_help", True):
            show_help(self, options_in(kind, flags=tyro.conf.FlagConversionOff not in how["config"]))
        words = values_in(self.arguments)
        for name, parameter in inspect.signature(kind).parameters.items():
            marks = getattr(parameter.annotation, "__metadata__", ())
            typed = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
            option = name.upper() if tyro.conf.Positional in marks else f"--{typed.replace('_', '-')}"
            self.options |= {f"{owner}.{name}": option for owner in names}
            check_number(option, parameter.annotation, words.get(typed))
        return tyro.cli(kind, args=self.arguments, prog=f"pantomim {self.command}", **how)

    def choose(self, kinds: Mapping[str, T]) -> T:
        """The alternative that the first word names; without one they are listed, and the command ends."""
        if not self.arguments or self.arguments[0] in ("-h", "--help", "--help-all"):
            section(f"pantomim {self.command}", [(name, summary(kind)) for name, kind in kinds.items()])
            say(f"\npantomim {self.command} NAME --help lists the options of each.")
            sys.exit(0)
        word, *rest = self.arguments
        name = next((known for known in kinds if known.replace("-", "_") == word.replace("-", "_")), None)
        if name is None:
            hint = did_you_mean(word, kinds, f"There are {', '.join(kinds)}.")
            raise ValueError(f"There is no {self.command} {word}.{hint}")
        self.command, self.arguments, self.about = f"{self.command} {name}", rest, about(kinds[name])
        self.examples = examples_of(cast(Any, kinds[name])) or [each.replace("NAME", name) for each in self.examples]
        return kinds[name]

    def in_options(self, message: str) -> str:
        """A message from below, in which settings have the names of this command's options."""
        return readable(SETTING.sub(lambda found: self.options.get(found[0], found[0]), message))


def options_of(verb: Callable[..., Any], without: Iterable[str] = (), **marks: Any) -> Callable[..., dict[str, Any]]:
    """A function whose arguments are those of a verb, and which returns them; `marks` are tyro's, by name.

    What may be given by its place has no option's name; what takes a path takes words here; a config's settings are
    read apart.
    """
    parameters: list[inspect.Parameter] = []
    words: dict[Any, Any] = {Place: str, Place | None: str | None, Sequence[Place]: tuple[str, ...]}
    for name, each in inspect.signature(verb).parameters.items():
        if name not in ("settings", *without):
            kind = words.get(each.annotation, each.annotation)
            mark = marks.get(name, tyro.conf.Positional if each.kind is each.POSITIONAL_OR_KEYWORD else None)
            parameters.append(each.replace(annotation=kind if mark is None else Annotated[kind, mark]))
    shown = inspect.Signature(parameters)

    def options(*places: Any, **named: Any) -> dict[str, Any]:
        bound = shown.bind(*places, **named)
        bound.apply_defaults()
        return dict(bound.arguments)

    options.__name__ = verb.__name__
    options.__doc__ = (inspect.getdoc(verb) or "").replace("\n        ", " ")  # where the text of an argument continues
    options.__signature__ = shown  # type: ignore[attr-defined]
    options.__annotations__ = {each.name: each.annotation for each in parameters}
    return options


Command = Callable[[CommandLine], None]


def typed(*owners: str, also: Callable[[], str] | None = None, **how: Any) -> Callable[[Callable[..., None]], Command]:
    """Makes a command of a function, whose arguments are the options; its help ends with what `also` gives."""

    def decorate(command: Callable[..., None]) -> Command:
        @wraps(command)
        def run(line: CommandLine) -> None:
            if also is not None and line.asks_for_help:
                line.about = f"{line.about} {also()}"
            line.read(command, *owners, **how)

        return run

    return decorate


def summary(kind: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def about(kind: Any) -> str:
    """What is said of a command at the beginning of its help; how it is typed follows there anyway."""
    return summary(kind).partition(": pantomim")[0]


def values_in(arguments: Iterable[str]) -> dict[str, str]:
    """The word behind each option among some words, by its dotted name."""
    parts = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return {option[2:].replace("-", "_"): word for option, word in pairwise(parts) if option.startswith("--")}


def given(arguments: Iterable[str]) -> list[str]:
    """The dotted names of the options among some words."""
    return [word.split("=")[0][2:].replace("-", "_") for word in arguments if word.startswith("--")]
