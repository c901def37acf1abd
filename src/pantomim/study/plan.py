"""A plan: which runs to compare, on which seeds, and what is measured of each; a YAML file with these fields."""

import difflib
import itertools
import re
from collections.abc import Collection
from dataclasses import field, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from pantomim.config import Duration, from_dict
from pantomim.core.frozen import frozen

SET_BY_THE_STUDY = ("encoder", "out", "seed", "contenders")  # of evaluations
LOG = "log"  # the evaluation that is none: what the runs logged, such as log.loss
MINUS = " - "
Analysis = Literal["alignment", "attention-distance", "spectrum"]
Overrides = dict[str, Any]


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise ValueError(f"must be of letters, digits, _, ., + and -, to be part of a file name; got {name!r}.")
    return name


def _checked_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"must be different numbers from 0 on, at least one; got {seeds}.")
    return seeds


Name = Annotated[str, AfterValidator(_checked_name)]
Seeds = Annotated[tuple[int, ...], AfterValidator(_checked_seeds)]


@frozen
class Arm:
    """What one arm is: the settings in which it differs, and whatever of the plan does not hold for it."""

    base: str | None = None  # another recipe or bare method than the plan's
    size: str | None = None  # of the encoder, if that is a bare method
    duration: Duration | None = None  # the warm-up keeps its share; 0 steps: the encoder as its seed draws it
    seeds: Seeds | None = None  # such as a single one for a tokenizer that all cells share
    overrides: Overrides = field(default_factory=dict)  # on top of those of all runs

    @classmethod
    def of(cls, settings: Overrides, where: str) -> "Arm":
        """From a plan, where what the run is made of stands beside its settings.

        Raises:
            ValueError: if base, size, duration or seeds are none.
        """
        own = [item.name for item in fields(cls) if item.name in settings and item.name != "overrides"]
        rest = {key: value for key, value in settings.items() if key not in own}
        return from_dict(cls, {**{key: settings[key] for key in own}, "overrides": rest}, where)


@frozen
class Scale:
    """The same plan for another machine; what is left out stays as in the plan, settings lie on top of its own."""

    base: str | None = None
    size: str | None = None
    duration: Duration | None = None
    seeds: Seeds | None = None
    overrides: Overrides = field(default_factory=dict)
    arms: dict[str, Overrides] = field(default_factory=dict)
    evaluations: dict[str, Overrides] = field(default_factory=dict)


@frozen
class Compare:
    """What the table shows.

    A column is EVALUATION.METRIC, such as knn.top1, or the difference of two of them, such as
    "attentive.top1 - linear.top1"; log.NAME is what the runs logged (the mean of the last tenth of the log),
    ANALYSIS.NAME a number of an analysis.
    """

    metrics: tuple[str, ...]  # the columns
    reference: str  # the arm from which the others' differences are taken, seed by seed
    contrasts: tuple[str, ...] = ()  # further differences between arms, as "ARM - ARM"
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # arms whose spread is asked for


@frozen
class Plan:
    """A comparison: arms x seeds runs, each evaluated in the same ways.

    In evaluations and overrides "{data}" or "{NAME}" stands for an input of this name; "{NAME:DEFAULT}" for the default
    where none is given, and "{NAME:}" for nothing. An evaluation that lacks an input without default is left out.
    "{run:ARM}" stands for the run folder of that arm at the same seed, or at its only one.

    Overrides are nested as in config.yaml. A part is replaced as a whole if another `kind` of it is named, and so is a
    duration; all else is changed where it is named. `base`, `size`, `duration` and `seeds` (see `Arm`) may stand among
    those of an arm. An arm that trains no encoder, such as a tokenizer, is there for others: it is not evaluated.
    """

    name: Name  # for folders and titles
    summary: str  # the question that is asked, in a paragraph
    base: str  # a recipe's full name, or a bare method
    evaluations: dict[Name, Overrides]  # by a name of one's choice, the protocol and its options
    compare: Compare
    seeds: Seeds = (0, 1, 2)  # of weights, order, crops, masks, and of the evaluations
    size: str | None = None  # of the encoder, if the base is a bare method
    duration: Duration | None = None  # instead of the recipe's; the warm-up keeps its share
    overrides: Overrides = field(default_factory=dict)  # of every run
    arms: dict[Name, Overrides | None] = field(default_factory=dict)  # the settings in which the runs differ
    axes: dict[str, dict[Name, Overrides | None]] = field(default_factory=dict)  # or choices: all A-B are arms
    baselines: tuple[Literal["untrained", "pixels"], ...] = ("untrained", "pixels")  # once for each kind of encoder
    analyses: tuple[Analysis, ...] = ()  # of each cell
    pictures: Annotated[int, Field(ge=0)] = 0  # held-out images to reconstruct in the first seed of each arm
    scales: dict[Name, Scale] = field(default_factory=dict)  # for other machines; the first one unless another is named

    def __post_init__(self) -> None:
        problems = [*self._arm_problems(), *self._evaluation_problems(), *self._compare_problems()]
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def arm_overrides(self) -> dict[str, Overrides]:
        """The settings of every arm, by name; combinations of axes are spelt out, the last axis running fastest."""
        if self.arms:
            return {name: overrides or {} for name, overrides in self.arms.items()}
        combined = {}
        for choices in itertools.product(*(axis.items() for axis in self.axes.values())):
            merged: Overrides = {}
            for _, overrides in choices:
                merged = merge(merged, overrides or {})
            combined["-".join(name for name, _ in choices)] = merged
        return combined

    def _every_arm(self) -> list[tuple[str, str, Overrides]]:
        """Where the settings of an arm are, its name, and what they are."""
        found = [(f"Plan.arms.{name}", name, settings) for name, settings in self.arm_overrides.items()]
        for scale, at in self.scales.items():
            found += [(f"Plan.scales.{scale}.arms.{name}", name, settings) for name, settings in at.arms.items()]
        return found

    def _arm_problems(self) -> list[str]:
        if bool(self.arms) == bool(self.axes) or not all(self.axes.values()):
            return ["Plan must have either arms or axes, and choices on every axis; fill in one of the two."]
        arms = list(self.arm_overrides)
        problems = []
        if len(arms) < len(list(itertools.product(*self.axes.values()))):
            problems.append("Plan.axes must give every combination a name of its own; rename choices.")
        problems += _unknown([("Compare.reference", self.compare.reference)], "be one of the arms", arms)
        problems += _unknown([(where, name) for where, name, _ in self._every_arm()], "be one of the arms", arms)
        everywhere = [
            self.overrides,
            *(settings for _, _, settings in self._every_arm()),
            *(scale.overrides for scale in self.scales.values()),
        ]
        if any("seed" in (overrides.get("runtime") or {}) for overrides in everywhere):
            problems.append("Plan.overrides must leave runtime.seed to Plan.seeds. Name the seeds there.")
        return problems

    def _evaluation_problems(self) -> list[str]:
        changed = [(f"Plan.scales.{at}", name) for at, scale in self.scales.items() for name in scale.evaluations]
        given = [*self.evaluations.items(), *(item for s in self.scales.values() for item in s.evaluations.items())]
        return [
            *_unknown(changed, "change evaluations of the plan", list(self.evaluations)),
            *(
                f"Plan.evaluations.{name} must leave {key} to the study; got {settings[key]}. Take it out."
                for name, settings in given
                for key in SET_BY_THE_STUDY
                if key in settings
            ),
            *(
                f"Plan.evaluations must leave the name {name} to what the study itself looks at; rename it."
                for name in self.evaluations
                if name in (LOG, *self.analyses)
            ),
        ]

    def _compare_problems(self) -> list[str]:
        known, arms = [*self.evaluations, *self.analyses, LOG], list(self.arm_overrides)
        problems = []
        for metric in (part for column in self.compare.metrics for part in column.split(MINUS)):
            evaluation, _, number = metric.partition(".")
            if evaluation not in known or not number:
                problems.append(
                    f"Compare.metrics must be EVALUATION.METRIC, of the evaluations {', '.join(known)}; got {metric}."
                    f"{nearest(evaluation, known) if evaluation not in known else ''}"
                )
        if not self.compare.metrics:
            problems.append("Compare.metrics must name at least one column, such as knn.top1.")
        for columns in (column for column in self.compare.metrics if column.count(MINUS) > 1):
            problems.append(f"Compare.metrics must be numbers or differences of two; got {columns}.")
        for pair in self.compare.contrasts:
            if pair.count(MINUS) != 1:
                problems.append(f"Compare.contrasts must be ARM - ARM; got {pair}.")
        problems += _unknown([(f"Compare.{where}", name) for where, name in compared_arms(self)], "name arms", arms)
        problems += [
            f"Compare.groups.{group} must name two arms or more, each once; got {', '.join(names) or 'none'}."
            for group, names in self.compare.groups.items()
            if len(set(names)) < max(2, len(names))
        ]
        return problems


def compared_arms(plan: Plan) -> list[tuple[str, str]]:
    """The arms that contrasts and groups name, and where."""
    named = [("contrasts", name) for pair in plan.compare.contrasts for name in pair.split(MINUS)]
    return named + [(f"groups.{group}", name) for group, names in plan.compare.groups.items() for name in names]


def merge(base: Overrides, overrides: Overrides) -> Overrides:
    """Nested settings with others on top; a part of another kind, or a duration, is replaced as a whole."""
    merged = dict(base)
    for key, value in overrides.items():
        old = base.get(key)
        into = isinstance(old, dict) and isinstance(value, dict) and not _replaces(old, value)
        merged[key] = merge(old, value) if into else value  # type: ignore[arg-type]
    return merged


def shipped_plans() -> dict[str, Plan]:
    """The plans that come with the package, by name."""
    folder = resources.files("pantomim.study").joinpath("plans")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {
        file.name.removesuffix(".yaml"): _read(file.read_text(encoding="utf-8"), f"the plan {file.name}")
        for file in files
    }


def load_plan(name: str) -> Plan:
    """A plan by the name of a shipped one, or from the user's own file.

    Raises:
        ValueError: if there is none, or it is not valid; with every problem, an unknown key with its nearest neighbour.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"Study.plan must be a file that can be read; got {name} ({error}).") from None
        return _read(text, name)
    plans = shipped_plans()
    if name not in plans:
        raise ValueError(
            f"Study.plan must be one of {', '.join(plans)}, or a file FILE.yaml; got {name}.{nearest(name, plans)}"
        )
    return plans[name]


def nearest(name: str, known: Collection[str]) -> str:
    """What was probably meant, as a sentence; empty if nothing is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def _unknown(named: list[tuple[str, str]], rule: str, known: list[str]) -> list[str]:
    return [
        f"{where} must {rule} ({', '.join(known)}); got {name}.{nearest(name, known)}"
        for where, name in named
        if name not in known
    ]


def _read(text: str, where: str) -> Plan:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} must be YAML; got {error}.") from None
    return from_dict(Plan, values, where)


def _replaces(old: Overrides, new: Overrides) -> bool:
    other_kind = "kind" in new and new["kind"] != old.get("kind")
    duration = bool(old) and bool(new) and old.keys() | new.keys() <= {"steps", "epochs"}
    return other_kind or duration
