"""A plan: which runs to compare, on which seeds, and what is measured of each; a YAML file with these fields."""

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pantomim.config import Duration, from_dict
from pantomim.core.frozen import frozen
from pantomim.core.names import did_you_mean
from pantomim.core.reading import read_yaml

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


@frozen
class Scale(Arm):
    """The same plan for another machine; what is left out stays as in the plan, settings lie on top of its own."""

    arms: dict[str, Overrides] = field(default_factory=dict)
    evaluations: dict[str, Overrides] = field(default_factory=dict)


@frozen
class Compare:
    """What the table shows; a column is EVALUATION.METRIC, log.NAME or ANALYSIS.NAME, or the difference of two."""

    metrics: tuple[str, ...]  # the columns
    reference: str  # the arm from which the others' differences are taken, seed by seed
    contrasts: tuple[str, ...] = ()  # further differences between arms, as "ARM - ARM"
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # arms whose spread is asked for

    @property
    def named_arms(self) -> list[tuple[str, str]]:
        """All arms that it names, after the place where it does."""
        pairs = [("Compare.contrasts", name) for pair in self.contrasts for name in pair.split(MINUS)]
        groups = [(f"Compare.groups.{group}", name) for group, names in self.groups.items() for name in names]
        return [("Compare.reference", self.reference), *pairs, *groups]


@frozen
class Plan:
    """A comparison: arms x seeds runs, each evaluated in the same ways; docs/study.md says how one is written.

    Overrides are nested as in config.yaml. Beside those of an arm may stand what `Arm` has.
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
        refuse(self._problems())

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

    def _problems(self) -> Iterator[str]:
        """What no type can tell: names that must exist, and those that must not."""
        if bool(self.arms) == bool(self.axes) or not all(self.axes.values()):
            yield "Plan must have either arms or axes, and choices on every axis; fill in one of the two."
            return
        arms, scales = self.arm_overrides, self.scales.items()
        if self.axes and len(arms) < math.prod(map(len, self.axes.values())):
            yield "Plan.axes must give every combination another name; rename choices."
        changed = [(f"Plan.scales.{name}.arms", arm) for name, scale in scales for arm in scale.arms]
        yield from unknown([*self.compare.named_arms, *changed], "arms", arms)
        changed = [(f"Plan.scales.{name}.evaluations", key) for name, scale in scales for key in scale.evaluations]
        yield from unknown(changed, "evaluations", self.evaluations)
        everywhere = [self.overrides, *arms.values()]
        everywhere += [overrides for _, scale in scales for overrides in (scale.overrides, *scale.arms.values())]
        if any("seed" in (overrides.get("runtime") or {}) for overrides in everywhere):
            yield "Plan.overrides must leave runtime.seed to Plan.seeds. Name the seeds there."
        for given in (self.evaluations, *(scale.evaluations for _, scale in scales)):
            for name, key in itertools.product(given, SET_BY_THE_STUDY):
                if key in given[name]:
                    yield f"Plan.evaluations.{name} must leave {key} to the study; got {given[name][key]}. Take it out."
        for name in {LOG, *self.analyses} & {*self.evaluations}:
            yield f"Plan.evaluations must leave the name {name} to what the study itself looks at; rename it."
        yield from self._column_problems()

    def _column_problems(self) -> Iterator[str]:
        compare, known = self.compare, [*self.evaluations, *self.analyses, LOG]
        if not compare.metrics:
            yield "Compare.metrics must name at least one column, such as knn.top1."
        for column in compare.metrics:
            metrics = column.split(MINUS)
            if len(metrics) > 2 or not all(metric.partition(".")[2] for metric in metrics):
                yield f"Compare.metrics must be EVALUATION.METRIC, or a difference of two; got {column}."
            scored = [("Compare.metrics", metric.partition(".")[0]) for metric in metrics]
            yield from unknown(scored, "evaluations", known)
        for pair in compare.contrasts:
            if pair.count(MINUS) != 1:
                yield f"Compare.contrasts must be ARM - ARM; got {pair}."
        for group, arms in compare.groups.items():
            if len(set(arms)) < max(2, len(arms)):
                given = ", ".join(arms) or "none"
                yield f"Compare.groups.{group} must name two arms or more, each once; got {given}."


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
    return {path.stem: _read(path) for path in sorted(Path(__file__).with_name("plans").glob("*.yaml"))}


def load_plan(name: str) -> Plan:
    """A plan by the name of a shipped one, or from the user's own file; `ValueError` names every problem of it."""
    if Path(name).suffix in (".yaml", ".yml"):
        return _read(Path(name))
    plans = shipped_plans()
    if name not in plans:
        raise ValueError(
            f"Study.plan must be one of {', '.join(plans)}, or a file FILE.yaml; got {name}.{did_you_mean(name, plans)}"
        )
    return plans[name]


def unknown(named: Iterable[tuple[str, str]], what: str, known: Collection[str]) -> list[str]:
    """A sentence for each name, after the place where it is given, that is none of the known ones."""
    there = ", ".join(known) or "but the plan has none"
    return [
        f"{where} must be one of the {what}, {there}; got {name}.{did_you_mean(name, known)}"
        for where, name in named
        if name not in known
    ]


def refuse(problems: Iterable[str]) -> None:
    """Raise `ValueError` with all problems, if there are any."""
    if text := "\n".join(problems):
        raise ValueError(text)


def _read(path: Path) -> Plan:
    return from_dict(Plan, read_yaml(path, "Give a plan for Study.plan."), str(path))


def _replaces(old: Overrides, new: Overrides) -> bool:
    other_kind = "kind" in new and new["kind"] != old.get("kind")
    duration = bool(old) and bool(new) and old.keys() | new.keys() <= {"steps", "epochs"}
    return other_kind or duration
