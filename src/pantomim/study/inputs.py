"""What "{NAME}" in a plan stands for: `--data SRC` and `--input NAME=SRC`, found, checked and filled in."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pantomim.study.plan import Plan

RUN = "run"  # {run:ARM} is the folder of another cell, not an input: see `needs`
PLACEHOLDER = re.compile(r"\{(?!run:)(?P<name>\w+)(?::(?P<default>.*))?\}")  # {NAME}, or {NAME:DEFAULT}


def read_inputs(data: str | None, named: Collection[str]) -> dict[str, str]:
    """What `--data SRC` and `--input NAME=SRC` give.

    Raises:
        ValueError: if an input has no name, or a name is given twice.
    """
    inputs = {} if data is None else {"data": data}
    for text in named:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"Study.inputs must be NAME=SRC; got {text}. Give --input NAME=SRC.")
        if name in inputs:
            raise ValueError(f"Study.inputs must name {name} once; got {inputs[name]} and {value}. Leave one out.")
        inputs[name] = value
    return inputs


def check_inputs(plan: Plan, evaluations: dict[str, Any], arms: dict[str, Any], inputs: Mapping[str, str]) -> None:
    """See that the inputs are known, and that they are enough for the arms and for an evaluation.

    Raises:
        ValueError: naming the option that gives each missing input, or the inputs that there are.
    """
    everywhere: list[Any] = [plan.overrides, plan.arm_overrides, plan.evaluations]
    everywhere += [[scale.overrides, scale.arms, scale.evaluations] for scale in plan.scales.values()]
    known = {"data": True} | placeholders(everywhere)
    check_known("inputs", inputs, known)
    whom = {"the arms": missing(arms, inputs)}
    if all(missing(settings, inputs) for settings in evaluations.values()):
        whom |= {f"evaluation {name}": missing(settings, inputs) for name, settings in evaluations.items()}
    needed = dict.fromkeys(name for lacking in whom.values() for name in lacking)
    problems = [
        f"Study.inputs must name {name}, for {', '.join(who for who in whom if name in whom[who])}; got none. "
        f"Add {option(name)}."
        for name in needed
    ]
    if problems:
        raise ValueError("\n".join(problems))


def check_known(what: str, names: Collection[str], known: Collection[str]) -> None:
    """Refuse a name that there is not, and name its nearest neighbour.

    Raises:
        ValueError: naming those there are.
    """
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(
                f"Study.{what} must be of {', '.join(known) or 'nothing: the plan has none'}; got {name}."
                + (f" Did you mean {close[0]}?" if close else "")
            )


def missing(tree: Any, inputs: Mapping[str, str]) -> tuple[str, ...]:
    """The names in braces that must be given and are not."""
    return tuple(name for name, needed in placeholders(tree).items() if needed and name not in inputs)


def option(name: str) -> str:
    """What gives an input."""
    return "--data SRC" if name == "data" else f"--input {name}=SRC"


def placeholders(tree: Any) -> dict[str, bool]:
    """The names in braces, in order, and whether they must be given: somewhere they have no default."""
    needed: dict[str, bool] = {}
    for text in texts(tree):
        if match := PLACEHOLDER.fullmatch(text):
            needed[match["name"]] = needed.get(match["name"], False) or match["default"] is None
    return needed


def fill(tree: Any, inputs: Mapping[str, str]) -> Any:
    """The same settings with what the names in braces stand for."""
    if isinstance(tree, dict):
        return {key: fill(value, inputs) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [fill(item, inputs) for item in tree]
    match = PLACEHOLDER.fullmatch(tree) if isinstance(tree, str) else None
    return tree if match is None else inputs.get(match["name"], match["default"] or None)


def texts(tree: Any) -> Iterator[str]:
    """Every text in nested settings."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from texts(item)
    elif isinstance(tree, str):
        yield tree
