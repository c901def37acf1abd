"""From a plan to numbered cells: an arm at a seed, with the config of its run and of every evaluation."""

import difflib
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pantomim.config import Duration, Pretrain, from_dict, to_dict, with_duration
from pantomim.evaluate.protocols import Evaluate
from pantomim.recipes import prepare
from pantomim.study.plan import Plan, Scale, merge

PLACEHOLDER = re.compile(r"\{(?P<name>\w+)(?::(?P<default>.*))?\}")  # {NAME}, or {NAME:DEFAULT}
ENCODER = "RUN"  # stands in an evaluation's config for the run folder of its cell


@dataclass(frozen=True)
class Cell:
    """One run and its evaluations.

    Args:
        index: Its number, from 0; seed by seed, so that early cells already make a comparison.
        arm: What is changed.
        seed: Of the run and of its evaluations.
        run: The config of the run.
        evaluations: By name; the encoder is filled in when they are carried out.
        pictures: Held-out images to reconstruct.
    """

    index: int
    arm: str
    seed: int
    run: Pretrain
    evaluations: dict[str, Evaluate]
    pictures: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.index:02d}-{self.arm}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A plan with all that was left open filled in.

    Args:
        plan: What was planned.
        source: What the user called the plan: its name or its file.
        scale: Name of the scale; None if the plan has none.
        inputs: What "{NAME}" stands for.
        without: Evaluations that were left out on purpose.
        lacking: Evaluations that are left out because inputs are not given, and the names of these.
        seeds: Those of the scale or of the plan.
        cells: All of them, by index.
        owners: For each arm, the one in whose cells the baselines of its encoder are scored.
    """

    plan: Plan
    source: str
    scale: str | None
    inputs: dict[str, str]
    without: tuple[str, ...]
    lacking: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    owners: dict[str, str]

    @property
    def arms(self) -> tuple[str, ...]:
        """In the order of the plan."""
        return tuple(self.owners)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns, without those of evaluations that were left out."""
        left_out = {*self.without, *self.lacking}
        return tuple(name for name in self.plan.compare.metrics if name.partition(".")[0] not in left_out)

    @property
    def warnings(self) -> list[str]:
        """What is left out because an input is not given, and the options that bring it."""
        return [
            f"Left out: evaluation {name}, for want of its input {', '.join(inputs)}. Add "
            f"{' '.join(map(_option, inputs))} to have it; what is finished stays."
            for name, inputs in self.lacking.items()
        ]

    def command(self, out: Path) -> str:
        """What carries out all of it."""
        words = ["pantomim", "study", self.source]
        for name, value in self.inputs.items():
            words += ["--data", value] if name == "data" else ["--input", f"{name}={value}"]
        words += ["--scale", self.scale] if self.scale else []
        words += [word for name in self.without for word in ("--without", name)]
        return shlex.join([*words, "--out", str(out)])

    def settings(self) -> dict[str, Any]:
        """All that decides the numbers, as plain values: two studies with the same settings are the same study."""
        runs = {cell.arm: to_dict(cell.run) for cell in self.cells}
        evaluations = {cell.arm: cell.evaluations for cell in self.cells}
        return {
            "study": self.plan.name,
            "scale": self.scale,
            "inputs": dict(self.inputs),
            "without": [*self.without, *self.lacking],
            "seeds": list(self.seeds),
            "reference": self.plan.compare.reference,  # its cells are those that also score the baselines
            "arms": {arm: _without_seed(run) for arm, run in runs.items()},
            "evaluations": {
                arm: {name: _plain(config) for name, config in configs.items()} for arm, configs in evaluations.items()
            },
        }


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


def expand(
    plan: Plan,
    inputs: Mapping[str, str],
    *,
    source: str | None = None,
    scale: str | None = None,
    without: Collection[str] = (),
) -> Study:
    """All cells of a plan, every config checked; nothing is read but what a bare method asks of the data.

    An evaluation whose inputs are not given is left out; the study says so (`Study.warnings`).

    Args:
        plan: What to compare.
        inputs: What "{NAME}" stands for; "data" is what `--data` names.
        source: What the user called the plan; its name by default.
        scale: Which of its scales; None: the first, if there are any.
        without: Evaluations to leave out.

    Raises:
        ValueError: if there is no such scale or evaluation, an input is unknown, one is missing that the arms or all
            evaluations need (with the option that gives it), or a config is not valid.
    """
    _check_known("scale", [scale] if scale else [], plan.scales)
    _check_known("without", without, plan.evaluations)
    scale = scale or next(iter(plan.scales), None)
    at = plan.scales[scale] if scale else Scale()
    evaluations = {
        name: merge(settings, at.evaluations.get(name, {}))
        for name, settings in plan.evaluations.items()
        if name not in without
    }
    if not evaluations:
        raise ValueError("Study.without must leave an evaluation; got all of them. Leave fewer out.")
    arms = {arm: merge(merge(plan.overrides, at.overrides), own) for arm, own in plan.arm_overrides.items()}
    _check_inputs(plan, evaluations, arms, inputs)
    lacking = {name: missing for name in evaluations if (missing := _missing(evaluations[name], inputs))}
    evaluations = {name: settings for name, settings in evaluations.items() if name not in lacking}
    used = {name: inputs[name] for name in inputs if name in {"data", *_placeholders([evaluations, arms])}}
    filled = {arm: _fill(overrides, used) for arm, overrides in arms.items()}
    base = _base(plan, at, used.get("data"))
    seeds = at.seeds or plan.seeds
    runs = {arm: _run(plan, base, arm, overrides) for arm, overrides in filled.items()}
    owners = _owners(runs, plan.compare.reference)
    cells: list[Cell] = []
    for seed in seeds:
        for arm, values in runs.items():
            seeded = merge(values, {"runtime": {"seed": seed}})
            contenders = ("trained", *(plan.baselines if owners[arm] == arm else ()))
            configs = {
                name: _evaluation(plan, name, _fill(settings, used), seed, contenders)
                for name, settings in evaluations.items()
            }
            run = from_dict(Pretrain, seeded, f"arm {arm} of study {plan.name}")
            cells.append(Cell(len(cells), arm, seed, run, configs, plan.pictures if seed == seeds[0] else 0))
    return Study(plan, source or plan.name, scale, used, tuple(without), lacking, seeds, tuple(cells), owners)


def _base(plan: Plan, at: Scale, data: str | None) -> dict[str, Any]:
    """The values of the recipe, at the length of the scale or of the plan."""
    config = prepare(at.base or plan.base, data=data, size=at.size or plan.size).config
    length: Duration | None = at.duration or plan.duration
    return to_dict(config if length is None else with_duration(config, length))


def _run(plan: Plan, base: dict[str, Any], arm: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The values of an arm's runs; a wrong key is told in the name of that arm."""
    run = from_dict(Pretrain, merge(base, overrides), f"arm {arm} of study {plan.name}")
    if not run.data.source:
        raise ValueError(f"Study.inputs must name the images of {plan.base}; got none. Add --data SRC.")
    return to_dict(run)


def _evaluation(plan: Plan, name: str, settings: dict[str, Any], seed: int, contenders: tuple[str, ...]) -> Evaluate:
    values = {**settings, "encoder": ENCODER, "seed": seed, "contenders": contenders}
    return from_dict(Evaluate, values, f"evaluation {name} of study {plan.name}")


def _owners(runs: dict[str, dict[str, Any]], reference: str) -> dict[str, str]:
    """For each arm the first one with the same encoder, the reference being the first of all."""
    owners: dict[str, str] = {}
    encoders = {arm: values["method"].get("encoder") for arm, values in runs.items()}
    first = [reference, *(arm for arm in runs if arm != reference)]
    for arm in runs:
        owners[arm] = next(other for other in first if encoders[other] == encoders[arm])
    return owners


def _check_known(option: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(
                f"Study.{option} must be of {', '.join(known) or 'nothing: the plan has none'}; got {name}."
                + (f" Did you mean {close[0]}?" if close else "")
            )


def _check_inputs(plan: Plan, evaluations: dict[str, Any], arms: dict[str, Any], inputs: Mapping[str, str]) -> None:
    """See that the inputs are known, and that they are enough for the arms and for an evaluation.

    Raises:
        ValueError: naming the option that gives each missing input, or the inputs that there are.
    """
    everywhere: list[Any] = [plan.overrides, plan.arm_overrides, plan.evaluations]
    everywhere += [[scale.overrides, scale.evaluations] for scale in plan.scales.values()]
    known = {"data": True} | _placeholders(everywhere)
    _check_known("inputs", inputs, known)
    whom = {"the arms": _missing(arms, inputs)}
    if all(_missing(settings, inputs) for settings in evaluations.values()):
        whom |= {f"evaluation {name}": _missing(settings, inputs) for name, settings in evaluations.items()}
    needed = dict.fromkeys(name for missing in whom.values() for name in missing)
    problems = [
        f"Study.inputs must name {name}, for {', '.join(who for who in whom if name in whom[who])}; got none. "
        f"Add {_option(name)}."
        for name in needed
    ]
    if problems:
        raise ValueError("\n".join(problems))


def _missing(tree: Any, inputs: Mapping[str, str]) -> tuple[str, ...]:
    """The names in braces that must be given and are not."""
    return tuple(name for name, needed in _placeholders(tree).items() if needed and name not in inputs)


def _option(name: str) -> str:
    """What gives an input."""
    return "--data SRC" if name == "data" else f"--input {name}=SRC"


def _placeholders(tree: Any) -> dict[str, bool]:
    """The names in braces, in order, and whether they must be given: somewhere they have no default."""
    needed: dict[str, bool] = {}
    for match in _found(tree):
        needed[match["name"]] = needed.get(match["name"], False) or match["default"] is None
    return needed


def _found(tree: Any) -> Iterator[re.Match[str]]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from _found(item)
    elif isinstance(tree, str) and (match := PLACEHOLDER.fullmatch(tree)):
        yield match


def _fill(tree: Any, inputs: Mapping[str, str]) -> Any:
    if isinstance(tree, dict):
        return {key: _fill(value, inputs) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_fill(item, inputs) for item in tree]
    match = PLACEHOLDER.fullmatch(tree) if isinstance(tree, str) else None
    return tree if match is None else inputs.get(match["name"], match["default"] or None)


def _without_seed(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "runtime": {key: value for key, value in run["runtime"].items() if key != "seed"}}


def _plain(config: Evaluate) -> dict[str, Any]:
    return {key: value for key, value in to_dict(config).items() if key not in ("encoder", "out", "seed", "device")}
