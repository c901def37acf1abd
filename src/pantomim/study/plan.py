"""A plan: which runs to compare, on which seeds, and what is measured of each; a YAML file with these fields."""

import difflib
import itertools
import re
from dataclasses import field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from pantomim.config import Duration, from_dict
from pantomim.core.frozen import frozen

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
SET_BY_THE_STUDY = ("encoder", "out", "seed", "contenders")  # fields of `Evaluation` that no plan may set
LOG = "log"  # the evaluation that is none: what the runs logged, such as log.loss
MINUS = " - "
Analysis = Literal["alignment", "attention-distance", "spectrum"]
Overrides = dict[str, Any]


@frozen
class Arm:
    """What one arm is: the settings in which it differs, and whatever of the plan does not hold for it.

    Args:
        base: Another recipe or bare method than the plan's.
        size: Size of the encoder, if that is a bare method.
        duration: Another length; the warm-up keeps its share. 0 steps: the encoder as its seed draws it.
        seeds: Other seeds, such as a single one for a tokenizer that all cells share.
        overrides: Settings of its runs, on top of those of all runs.
    """

    base: str | None = None
    size: str | None = None
    duration: Duration | None = None
    seeds: tuple[int, ...] | None = None
    overrides: Overrides = field(default_factory=dict)

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
    """The same plan for another machine; what is left out stays as in the plan.

    Args:
        base: Another recipe.
        size: Size of the encoder, if the base is a bare method.
        duration: Length of each run; the warm-up keeps its share.
        seeds: Other seeds.
        overrides: Settings of every run, on top of the plan's.
        arms: By the name of an arm, settings on top of the plan's.
        evaluations: By the name of an evaluation, settings on top of the plan's.
    """

    base: str | None = None
    size: str | None = None
    duration: Duration | None = None
    seeds: tuple[int, ...] | None = None
    overrides: Overrides = field(default_factory=dict)
    arms: dict[str, Overrides] = field(default_factory=dict)
    evaluations: dict[str, Overrides] = field(default_factory=dict)


@frozen
class Compare:
    """What the table shows.

    Args:
        metrics: The columns, as EVALUATION.METRIC, such as knn.top1, or as the difference of two of them, such as
            "attentive.top1 - linear.top1"; log.NAME is what the runs logged (the mean of the last tenth of the log),
            ANALYSIS.NAME a number of an analysis.
        reference: The arm from which the others' differences are taken, seed by seed.
        contrasts: Further differences between arms, as "ARM - ARM".
        groups: By a name of one's choice, arms whose spread is asked for, such as the students of several teachers.
    """

    metrics: tuple[str, ...]
    reference: str
    contrasts: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)


@frozen
class Plan:
    """A comparison: arms x seeds runs, each evaluated in the same ways.

    Args:
        name: For folders and titles.
        summary: The question that is asked, in a paragraph.
        base: A recipe's full name, or a bare method.
        evaluations: By a name of one's choice, settings of `pantomim evaluate`. A text "{data}" or "{NAME}", here and
            in overrides, stands for what `--data` or `--input NAME=SRC` gives; "{NAME:DEFAULT}" for the default where
            nothing is given, and "{NAME:}" for nothing. An evaluation that lacks what has no default is left out.
        compare: What the table shows.
        seeds: Of weights, order, crops, masks, and of the evaluations.
        size: Size of the encoder, if the base is a bare method.
        duration: Length of each run, instead of the recipe's; the warm-up keeps its share.
        overrides: Settings of every run, nested as in config.yaml. A part is replaced as a whole if another `kind` of
            it is named, and so is a duration; all else is changed where it is named.
        arms: By name, the settings in which the runs differ; `base`, `size`, `duration` and `seeds` (see `Arm`) may
            stand among them. In a setting, "{run:ARM}" stands for the run folder of that arm at the same seed, or at
            its only one. An arm that trains no encoder, such as a tokenizer, is there for others: it is not evaluated.
        axes: Instead of `arms`: by name, choices with their settings; every combination is an arm, named A-B.
        baselines: Scored once, in the cells of the reference arm, and again for arms with another encoder.
        analyses: Of each cell: how far attention reaches and how fast the spectrum of tokens falls, block by block; how
            far CAE's regressor and encoder agree.
        pictures: Held-out images to reconstruct in the first seed of each arm (CAE: without its regressor); 0: none.
        scales: By name, the same plan for other machines; the first one is used if none is asked for.
    """

    name: str
    summary: str
    base: str
    evaluations: dict[str, Overrides]
    compare: Compare
    seeds: tuple[int, ...] = (0, 1, 2)
    size: str | None = None
    duration: Duration | None = None
    overrides: Overrides = field(default_factory=dict)
    arms: dict[str, Overrides | None] = field(default_factory=dict)
    axes: dict[str, dict[str, Overrides | None]] = field(default_factory=dict)
    baselines: tuple[Literal["untrained", "pixels"], ...] = ("untrained", "pixels")
    analyses: tuple[Analysis, ...] = ()
    pictures: int = 0
    scales: dict[str, Scale] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [
            *self._naming_problems(),
            *self._arm_problems(),
            *self._evaluation_problems(),
            *self._column_problems(),
        ]
        for owner, seeds in self._seeds():
            if seeds is not None and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
                problems.append(f"{owner}.seeds must be different numbers from 0 on, at least one; got {seeds}.")
        if self.pictures < 0:
            problems.append(f"Plan.pictures must not be negative; got {self.pictures}.")
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

    def _seeds(self) -> list[tuple[str, tuple[int, ...] | None]]:
        """All that are named, and where."""
        found = [("Plan", self.seeds), *((f"Plan.scales.{name}", scale.seeds) for name, scale in self.scales.items())]
        for where, name, settings in self._every_arm():
            if settings.get("seeds") is not None:
                found.append((where, Arm.of(settings, f"arm {name}").seeds))
        return found

    def _every_arm(self) -> list[tuple[str, str, Overrides]]:
        """Where the settings of an arm are, its name, and what they are."""
        found = [(f"Plan.arms.{name}", name, settings) for name, settings in self.arm_overrides.items()]
        for scale, at in self.scales.items():
            found += [(f"Plan.scales.{scale}.arms.{name}", name, settings) for name, settings in at.arms.items()]
        return found

    def _naming_problems(self) -> list[str]:
        names = {
            "name": [self.name],
            "arms": list(self.arms),
            "axes": [choice for axis in self.axes.values() for choice in axis],
            "evaluations": list(self.evaluations),
            "scales": list(self.scales),
        }
        return [
            f"Plan.{where} must be named by letters, digits, _, ., + and -, to be part of a file name; got {name!r}."
            for where, given in names.items()
            for name in given
            if not NAME.fullmatch(name)
        ]

    def _arm_problems(self) -> list[str]:
        if bool(self.arms) == bool(self.axes) or not all(self.axes.values()):
            return ["Plan must have either arms or axes, and choices on every axis; fill in one of the two."]
        arms = list(self.arm_overrides)
        problems = []
        if len(arms) < len(list(itertools.product(*self.axes.values()))):
            problems.append("Plan.axes must give every combination a name of its own; rename choices.")
        if self.compare.reference not in arms:
            problems.append(
                f"Compare.reference must be one of the arms ({', '.join(arms)}); got {self.compare.reference}."
                f"{_nearest(self.compare.reference, arms)}"
            )
        problems += [
            f"{where} must be one of the arms ({', '.join(arms)}); got {name}.{_nearest(name, arms)}"
            for where, name, _ in self._every_arm()
            if name not in arms
        ]
        everywhere = [
            self.overrides,
            *(settings for _, _, settings in self._every_arm()),
            *(scale.overrides for scale in self.scales.values()),
        ]
        if any("seed" in (overrides.get("runtime") or {}) for overrides in everywhere):
            problems.append("Plan.overrides must leave runtime.seed to Plan.seeds. Name the seeds there.")
        return problems

    def _evaluation_problems(self) -> list[str]:
        known = list(self.evaluations)
        problems = [
            f"Plan.scales.{scale} must change evaluations of the plan; got {name}.{_nearest(name, known)}"
            for scale, settings in self.scales.items()
            for name in settings.evaluations
            if name not in known
        ]
        given = [*self.evaluations.items(), *(item for s in self.scales.values() for item in s.evaluations.items())]
        problems += [
            f"Plan.evaluations.{name} must leave {key} to the study; got {settings[key]}. Take it out."
            for name, settings in given
            for key in SET_BY_THE_STUDY
            if key in settings
        ]
        taken = [name for name in self.evaluations if name in (LOG, *self.analyses)]
        problems += [
            f"Plan.evaluations must leave the name {name} to what the study itself looks at; rename it."
            for name in taken
        ]
        return problems

    def _column_problems(self) -> list[str]:
        known, arms = [*self.evaluations, *self.analyses, LOG], list(self.arm_overrides)
        problems = []
        for metric in (part for column in self.compare.metrics for part in column.split(MINUS)):
            evaluation, _, number = metric.partition(".")
            if evaluation not in known or not number:
                problems.append(
                    f"Compare.metrics must be EVALUATION.METRIC, of the evaluations {', '.join(known)}; got {metric}."
                    f"{_nearest(evaluation, known) if evaluation not in known else ''}"
                )
        if not self.compare.metrics:
            problems.append("Compare.metrics must name at least one column, such as knn.top1.")
        for columns in (column for column in self.compare.metrics if column.count(MINUS) > 1):
            problems.append(f"Compare.metrics must be numbers or differences of two; got {columns}.")
        for pair in self.compare.contrasts:
            if pair.count(MINUS) != 1:
                problems.append(f"Compare.contrasts must be ARM - ARM; got {pair}.")
        named = [("contrasts", name) for pair in self.compare.contrasts for name in pair.split(MINUS)]
        named += [(f"groups.{group}", name) for group, names in self.compare.groups.items() for name in names]
        problems += [
            f"Compare.{where} must name arms ({', '.join(arms)}); got {name}.{_nearest(name, arms)}"
            for where, name in named
            if name not in arms
        ]
        problems += [
            f"Compare.groups.{group} must name two arms or more, each once; got {', '.join(names) or 'none'}."
            for group, names in self.compare.groups.items()
            if len(set(names)) < max(2, len(names))
        ]
        return problems


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
            f"Study.plan must be one of {', '.join(plans)}, or a file FILE.yaml; got {name}."
            f"{_nearest(name, list(plans))}"
        )
    return plans[name]


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


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
