"""The numbers of a study: mean and deviation over seeds, differences to the reference seed by seed, cost."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from pantomim.report.folder import RunFolder, read_run
from pantomim.report.scores import SHARE, label, leaves
from pantomim.study.cells import Cell, Study
from pantomim.study.run import Record, State, cell_folder, read_record, result_paths, state

BASELINES = {"untrained": "untrained twin", "pixels": "raw pixels"}
COSTS = ("s_per_step", "images_per_s", "pretrain_s", "evaluate_s")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A number at several seeds.

    Args:
        by_seed: Its values.
        mean: Their mean.
        deviation: Their standard deviation (n - 1); None for a single one.
    """

    by_seed: dict[int, float]
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, by_seed: Mapping[int, float]) -> "Spread | None":
        """Of these values; None if there are none."""
        if not by_seed:
            return None
        values = list(by_seed.values())
        return cls(dict(by_seed), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean by Student's t; None for a single value."""
        n = len(self.by_seed)
        if self.deviation is None:
            return None
        return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * self.deviation / math.sqrt(n)

    @property
    def side(self) -> int:
        """1 or -1 if the 95 % interval of the mean lies above or below zero, else 0."""
        half = self.half_width
        return 0 if half is None or abs(self.mean) <= half else (1 if self.mean > 0 else -1)


@dataclass(frozen=True)
class Row:
    """An arm, or a baseline.

    Args:
        name: In words.
        arm: The arm; of a baseline, the one in whose cells it was scored.
        baseline: Whether it is one.
        scores: By column; None where nothing was measured.
        differences: To the reference, over the seeds that both have; none in the row of the reference itself.
        costs: By name (`COSTS`); none of a baseline.
        masks: What the masker leaves visible, if it was looked at.
    """

    name: str
    arm: str
    baseline: bool
    scores: dict[str, Spread | None]
    differences: dict[str, Spread | None]
    costs: dict[str, Spread | None]
    masks: dict[str, float] | None = None


@dataclass(frozen=True)
class CellRow:
    """One cell: how far it has come, and what it cost.

    Args:
        index: Its number.
        name: Of its folder.
        arm: What is changed.
        seed: Of its run.
        state: How far it has come.
        error: Why it failed.
        s_per_step: As in `Record`; None before its end.
        pretrain_s: The same.
        evaluate_s: Time of each evaluation that is in its record, by name.
    """

    index: int
    name: str
    arm: str
    seed: int
    state: State
    error: str | None
    s_per_step: float | None
    pretrain_s: float | None
    evaluate_s: dict[str, float]


@dataclass(frozen=True)
class Table:
    """All that the page shows but pictures.

    Args:
        study: Its name.
        summary: The question.
        base: The recipe.
        scale: Name of the scale, if the plan has any.
        reference: The arm from which differences are taken.
        metrics: The columns.
        rows: Arms in the order of the plan, then baselines.
        cells: Every cell.
        seeds: Those that were planned.
        inputs: What was trained and evaluated on.
        without: Evaluations that were left out on purpose.
        warnings: What else was left out, and the option that brings it; a sentence each.
        command: What carries out all of it.
        environments: Versions, commit and hardware of the runs; more than one where they differ.
    """

    study: str
    summary: str
    base: str
    scale: str | None
    reference: str
    metrics: tuple[str, ...]
    rows: list[Row]
    cells: list[CellRow]
    seeds: tuple[int, ...]
    inputs: dict[str, str]
    without: tuple[str, ...]
    warnings: list[str]
    command: str
    environments: list[dict[str, Any]]

    @property
    def unfinished(self) -> list[CellRow]:
        """The cells whose numbers are not all there."""
        return [cell for cell in self.cells if cell.state != "finished"]

    def to_json(self) -> str:
        """For other programs."""
        return json.dumps(asdict(self), indent=2) + "\n"


def make_table(study: Study, out: Path) -> Table:
    """What there is so far; a number counts from the moment its own evaluation is there.

    Raises:
        ValueError: if a column is no number of its evaluation.
    """
    runs = {
        cell.index: read_run(folder)
        for cell in study.cells
        if ((folder := cell_folder(cell, out)) / "config.yaml").is_file()
    }
    results = {cell.index: _read_results(cell, out) for cell in study.cells}
    records = {cell.index: read_record(cell, out) for cell in study.cells}
    reference = _scores(study, study.plan.compare.reference, "trained", results)
    rows = []
    for arm in study.arms:
        scores = _scores(study, arm, "trained", results)
        differences = {} if arm == study.plan.compare.reference else _differences(scores, reference)
        mine = [record for cell in study.cells if cell.arm == arm and (record := records[cell.index])]
        masks = next((record.masks for record in mine if record.masks), None)
        rows.append(Row(arm, arm, False, scores, differences, _costs(study, arm, records), masks))
    owners = list(dict.fromkeys(study.owners.values()))
    for baseline in study.plan.baselines:
        for arm in owners:
            name = BASELINES[baseline] + (f" of {arm}" if len(owners) > 1 else "")
            scores = _scores(study, arm, baseline, results)
            rows.append(Row(name, arm, True, scores, _differences(scores, reference), {}))
    cells = [_cell_row(cell, records[cell.index], state(cell, out)) for cell in study.cells]
    return Table(
        study=study.plan.name,
        summary=" ".join(study.plan.summary.split()),
        base=study.cells[0].run.recipe,
        scale=study.scale,
        reference=study.plan.compare.reference,
        metrics=study.metrics,
        rows=rows,
        cells=cells,
        seeds=study.seeds,
        inputs=study.inputs,
        without=study.without,
        warnings=study.warnings,
        command=study.command(out),
        environments=_environments(list(runs.values())),
    )


def is_share(metric: str) -> bool:
    """Whether a column is shown in percent."""
    return any(SHARE.fullmatch(part) for part in metric.split(".")[1:])


def findings(table: Table) -> list[str]:
    """What the differences show, a sentence a column; what can be chance over the seeds is not said to differ.

    Arms with fewer than two seeds that the reference has as well are named once if they are the same in all columns.
    """
    told: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    for metric in table.metrics:
        groups: dict[int, list[str]] = {1: [], 0: [], -1: []}
        unknown[metric] = []
        for row in table.rows:
            if row.baseline or row.arm == table.reference:
                continue
            difference = row.differences.get(metric)
            if difference is None or difference.deviation is None:
                unknown[metric].append(row.name)
            else:
                groups[difference.side].append(f"{row.name} ({show_difference(difference, metric)})")
        told[metric] = [
            f"{words}: {', '.join(groups[side])}"
            for side, words in ((1, "above"), (-1, "below"), (0, "not told apart from chance"))
            if groups[side]
        ]
    everywhere = next(iter(unknown.values()), [])
    if any(names != everywhere for names in unknown.values()):
        everywhere = []
        for metric, names in unknown.items():
            told[metric] += [f"fewer than two seeds: {', '.join(names)}"] if names else []
    sentences = [
        f"{heading(metric)}, against {table.reference}: {'; '.join(parts)}." for metric, parts in told.items() if parts
    ]
    note = f"Fewer than two seeds to set against {table.reference}, so nothing is said of: {', '.join(everywhere)}."
    return [*sentences, note] if everywhere else sentences


def heading(metric: str) -> str:
    """A column in words."""
    evaluation, _, number = metric.partition(".")
    return f"{evaluation}, {label(number)}" + (" (%)" if is_share(metric) else "")


def show(spread: Spread | None, metric: str, planned: int) -> str:
    """Mean and deviation; the number of seeds where it is not the planned one."""
    if spread is None:
        return "–"
    scale, digits = (100.0, ".1f") if is_share(metric) else (1.0, ".4g")
    text = f"{scale * spread.mean:{digits}}"
    if spread.deviation is not None:
        text += f" ± {scale * spread.deviation:{digits}}"
    n = len(spread.by_seed)
    return text if n == planned else f"{text} (n = {n})"


def show_difference(difference: Spread | None, metric: str) -> str:
    """The same of a difference, with its sign."""
    if difference is None:
        return "–"
    scale, digits = (100.0, ".1f") if is_share(metric) else (1.0, ".3g")
    text = f"{scale * difference.mean:+{digits}}".replace("-", "−")
    return text if difference.deviation is None else f"{text} ± {scale * difference.deviation:{digits}}"


def _scores(
    study: Study, arm: str, who: str, results: dict[int, dict[str, dict[str, Any]]]
) -> dict[str, Spread | None]:
    found: dict[str, Spread | None] = {}
    for metric in study.metrics:
        evaluation, _, number = metric.partition(".")
        by_seed = {}
        for cell in study.cells:
            result = results[cell.index].get(evaluation)
            if cell.arm != arm or result is None or who not in result:
                continue
            value = _number(metric, number, result[who])
            if value is not None:
                by_seed[cell.seed] = value
        found[metric] = Spread.of(by_seed)
    return found


def _number(metric: str, name: str, scores: dict[str, Any]) -> float | None:
    """A score; None if it is there but no finite number."""
    numbers = dict(leaves(scores))
    value = numbers.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        known = ", ".join(key for key, item in numbers.items() if isinstance(item, float))
        raise ValueError(f"Compare.metrics must name numbers of their evaluation; got {metric}. It has {known}.")
    return float(value) if math.isfinite(value) else None


def _differences(scores: dict[str, Spread | None], reference: dict[str, Spread | None]) -> dict[str, Spread | None]:
    found: dict[str, Spread | None] = {}
    for metric, ours in scores.items():
        theirs = reference[metric]
        both = ours.by_seed.keys() & theirs.by_seed.keys() if ours and theirs else set()
        found[metric] = Spread.of({seed: ours.by_seed[seed] - theirs.by_seed[seed] for seed in sorted(both)})  # type: ignore[union-attr]
    return found


def _costs(study: Study, arm: str, records: dict[int, Record | None]) -> dict[str, Spread | None]:
    values: dict[str, dict[int, float]] = {name: {} for name in COSTS}
    for cell in study.cells:
        record = records[cell.index]
        if cell.arm != arm or record is None or record.state != "finished":
            continue
        for name in COSTS:
            value = sum(record.evaluate_s.values()) if name == "evaluate_s" else getattr(record, name)
            if value is not None:
                values[name][cell.seed] = value
    return {name: Spread.of(by_seed) for name, by_seed in values.items()}


def _cell_row(cell: Cell, record: Record | None, now: State) -> CellRow:
    record = record or Record("failed")  # says nothing
    return CellRow(
        index=cell.index,
        name=cell.name,
        arm=cell.arm,
        seed=cell.seed,
        state=now,
        error=record.error,
        s_per_step=record.s_per_step,
        pretrain_s=record.pretrain_s,
        evaluate_s=record.evaluate_s,
    )


def _read_results(cell: Cell, out: Path) -> dict[str, dict[str, Any]]:
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in result_paths(cell, out).items()
        if path.is_file()
    }


def _environments(runs: list[RunFolder]) -> list[dict[str, Any]]:
    """The different ones among the runs' environments, without what always differs."""
    keys = ("packages", "python", "git", "cpu", "cores", "threads", "gpu", "device", "precision")
    found: list[dict[str, Any]] = []
    for run in runs:
        kept = {key: run.environment[key] for key in keys if key in run.environment}
        if kept and kept not in found:
            found.append(kept)
    return found
