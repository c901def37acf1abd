"""Names in braces in a plan: "{NAME}" is what an input gives, "{run:ARM}" the run folder of that arm's cell."""

import re
from collections.abc import Callable, Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pantomim.study.plan import Plan, refuse, unknown

INPUT = re.compile(r"\{(?!run:)(?P<name>\w+)(?::(?P<default>.*))?\}")  # {NAME}, or {NAME:DEFAULT}
RUN_OF = re.compile(r"\{run:(?P<arm>[^{}]*)\}")


def read_inputs(data: str | None, named: Collection[str]) -> dict[str, str]:
    """The inputs by name: the data, and what is given as NAME=SRC."""
    inputs = {} if data is None else {"data": data}
    for text in named:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"Study.input must be NAME=SRC; got {text}. Name each one.")
        if name in inputs:
            raise ValueError(f"Study.input must name {name} once; got {inputs[name]} and {value}. Leave one out.")
        inputs[name] = value
    return inputs


def input_problems(
    plan: Plan, evaluations: dict[str, Any], arms: dict[str, Any], inputs: Mapping[str, str]
) -> list[str]:
    """Inputs that nothing in the plan asks for, and those that the arms or all evaluations lack."""
    everywhere: list[Any] = [plan.overrides, plan.arm_overrides, plan.evaluations]
    everywhere += [[scale.overrides, scale.arms, scale.evaluations] for scale in plan.scales.values()]
    whom = {"the arms": missing(arms, inputs)}
    if all(missing(settings, inputs) for settings in evaluations.values()):
        whom |= {f"evaluation {name}": missing(settings, inputs) for name, settings in evaluations.items()}
    return unknown([("Study.input", name) for name in inputs], "inputs", {"data": True} | placeholders(everywhere)) + [
        f"Study.input must name {name}, for {', '.join(who for who in whom if name in whom[who])}; got none. "
        f"Add the input {name}=SRC."
        for name in dict.fromkeys(name for lacking in whom.values() for name in lacking)
    ]


def missing(tree: Any, inputs: Mapping[str, str]) -> tuple[str, ...]:
    """The inputs that must be given and are not."""
    return tuple(name for name, needed in placeholders(tree).items() if needed and name not in inputs)


def placeholders(tree: Any) -> dict[str, bool]:
    """The inputs by name, in order, and whether they must be given: somewhere they have no default."""
    needed: dict[str, bool] = {}
    for match in filter(None, map(INPUT.fullmatch, texts(tree))):
        needed[match["name"]] = needed.get(match["name"], False) or match["default"] is None
    return needed


def fill(tree: Any, inputs: Mapping[str, str]) -> Any:
    """The same settings with what the inputs are."""

    def filled(text: str) -> str | None:
        match = INPUT.fullmatch(text)
        return text if match is None else inputs.get(match["name"], match["default"] or None)

    return replace_texts(tree, filled)


def needed_arms(settings: Any) -> tuple[str, ...]:
    """The arms whose runs the settings name, each once."""
    return tuple(dict.fromkeys(match["arm"] for text in texts(settings) for match in RUN_OF.finditer(text)))


def check_needs(arms: Mapping[str, Any]) -> None:
    """See that every arm that is used exists, and that none needs itself in the end; all settings are given by arm."""
    needs = {arm: needed_arms(settings) for arm, settings in arms.items()}
    used = [(f"{{run:ARM}} in Plan.arms.{arm}", other) for arm, others in needs.items() for other in others]
    refuse(unknown(used, "arms", arms))
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ValueError(f"Plan.arms must not need each other in a circle; got {circle}. Break it.") from None


def with_runs(settings: Any, folders: Mapping[str, Path]) -> Any:
    """The same settings with the folders of the runs that they use, by arm."""
    return replace_texts(settings, lambda text: RUN_OF.sub(lambda match: str(folders[match["arm"]]), text))


def moved(written: Any, planned: Any, folders: Mapping[str, Path]) -> Any:
    """The settings that a run wrote down, with the folders of the runs that they use where these are now.

    `planned` are the same settings with "{run:ARM}".
    """
    if isinstance(written, dict) and isinstance(planned, dict):
        return {key: moved(value, planned.get(key), folders) for key, value in written.items()}
    return with_runs(planned, folders) if isinstance(planned, str) and RUN_OF.search(planned) else written


def replace_texts(tree: Any, change: Callable[[str], Any]) -> Any:
    """The same nested settings with every text changed."""
    if isinstance(tree, dict):
        return {key: replace_texts(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [replace_texts(item, change) for item in tree]
    return change(tree) if isinstance(tree, str) else tree


def texts(tree: Any) -> list[str]:
    """Every text in nested settings."""
    found: list[str] = []
    replace_texts(tree, found.append)
    return found
