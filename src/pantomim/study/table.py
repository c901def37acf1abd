"""The numbers of a study: mean and deviation over seeds, differences to the reference seed by seed, cost."""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pantomim.engine.record import read_metrics
from pantomim.report.folder import RunFolder, read_run
from pantomim.report.scores import leaves
from pantomim.study.analyses import read_numbers
from pantomim.study.cells import Cell, Study
from pantomim.study.columns import heading, parts, show_difference
from pantomim.study.plan import LOG, MINUS
from pantomim.study.run import Record, State, analysis_paths, cell_folder, has_run, read_record, result_paths, state
from pantomim.study.spread import AmongArms, Spread, difference

BASELINES = {"untrained": "untrained twin", "pixels": "raw pixels"}
COSTS = ("s_per_step", "images_per_s", "pretrain_s", "evaluate_s")
OF_THE_ENGINE = ("step", "lr", "images_per_s", "data_wait_s", "grad_norm", "memory_gib", "time_s")
Results = dict[int, dict[str, dict[str, Any]]]  # by cell, evaluation and contender


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
        planned: How many seeds it is to have.
    """

    name: str
    arm: str
    baseline: bool
    scores: dict[str, Spread | None]
    differences: dict[str, Spread | None]
    costs: dict[str, Spread | None]
    masks: dict[str, float] | None = None
    planned: int = 0


@dataclass(frozen=True)
class Contrast:
    """One arm against another.

    Args:
        name: "ARM - ARM".
        differences: By column, over the seeds that both have.
    """

    name: str
    differences: dict[str, Spread | None]


@dataclass(frozen=True)
class Group:
    """How far the arms of a group differ.

    Args:
        name: Of the group.
        arms: In it.
        columns: By column.
    """

    name: str
    arms: tuple[str, ...]
    columns: dict[str, AmongArms | None]


@dataclass(frozen=True)
class Helper:
    """An arm that is there for others and not evaluated.

    Args:
        name: The arm.
        method: What it trains.
        users: The arms that use its runs.
        logged: What its runs logged at their end.
        costs: As those of a row.
    """

    name: str
    method: str
    users: tuple[str, ...]
    logged: dict[str, Spread | None]
    costs: dict[str, Spread | None]


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
        lacks: Cells that failed and whose runs it needs.
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
    lacks: tuple[str, ...] = ()


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
        contrasts: Further differences between arms.
        groups: How far the arms of each group differ.
        helpers: The arms that are not evaluated.
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
    contrasts: list[Contrast]
    groups: list[Group]
    helpers: list[Helper]
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
    scores = {arm: _scores(study, arm, "trained", results) for arm in study.arms}
    reference = scores[study.plan.compare.reference]
    rows = []
    for arm in study.arms:
        differences = {} if arm == study.plan.compare.reference else _differences(scores[arm], reference)
        mine = [record for cell in study.of(arm) if (record := records[cell.index])]
        masks = next((record.masks for record in mine if record.masks), None)
        costs, planned = _costs(study, arm, records), len(study.of(arm))
        rows.append(Row(arm, arm, False, scores[arm], differences, costs, masks, planned))
    for baseline in study.plan.baselines:
        owners = list(dict.fromkeys(study.owners[baseline].values()))
        for arm in owners:
            name = BASELINES[baseline] + (f" of {arm}" if len(owners) > 1 else "")
            found = _scores(study, arm, baseline, results)
            rows.append(Row(name, arm, True, found, _differences(found, reference), {}, None, len(study.of(arm))))
    pairs = [pair.split(MINUS) for pair in study.plan.compare.contrasts]
    states = {cell.name: state(cell, out) for cell in study.cells}
    cells = [_cell_row(cell, records[cell.index], states) for cell in study.cells]
    return Table(
        study=study.plan.name,
        summary=" ".join(study.plan.summary.split()),
        base=", ".join(dict.fromkeys(cell.run.recipe for cell in study.cells if cell.arm in study.arms)),
        scale=study.scale,
        reference=study.plan.compare.reference,
        metrics=study.metrics,
        rows=rows,
        contrasts=[
            Contrast(f"{first}{MINUS}{second}", _differences(scores[first], scores[second])) for first, second in pairs
        ],
        groups=[
            Group(name, arms, {column: AmongArms.of([scores[arm][column] for arm in arms]) for column in study.metrics})
            for name, arms in study.plan.compare.groups.items()
        ],
        helpers=[_helper(study, arm, results, records) for arm in study.helpers],
        cells=cells,
        seeds=study.seeds,
        inputs=study.inputs,
        without=study.without,
        warnings=study.warnings,
        command=study.command(out),
        environments=_environments(list(runs.values())),
    )


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
            if row.scores[metric] is None and parts(metric)[0][0] in (LOG, "alignment"):
                continue  # other methods have no such number
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


def contrast_findings(table: Table) -> list[str]:
    """What the contrasts show, a sentence each."""
    sentences = []
    for contrast in table.contrasts:
        first, second = contrast.name.split(MINUS)
        told: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for column, found in contrast.differences.items():
            if found is not None and found.deviation is not None:
                told[found.side].append(f"{heading(column)} ({show_difference(found, column)})")
        words = ((1, "above in"), (-1, "below in"), (0, "not told apart from chance in"))
        parted = [f"{word} {'; '.join(told[side])}" for side, word in words if told[side]]
        if parted:
            sentences.append(f"{first}, against {second}: {'. It is '.join(parted)}.")
    return sentences


def _scores(study: Study, arm: str, who: str, results: Results) -> dict[str, Spread | None]:
    found: dict[str, Spread | None] = {}
    for column in study.metrics:
        spreads = [_spread(study, arm, who, *metric, results) for metric in parts(column)]
        found[column] = spreads[0] if len(spreads) == 1 else difference(*spreads)
    return found


def _spread(study: Study, arm: str, who: str, evaluation: str, number: str, results: Results) -> Spread | None:
    by_seed = {}
    for cell in study.of(arm):
        scores = results[cell.index].get(evaluation, {}).get(who)
        if scores is not None and (value := _number(study, evaluation, number, scores, results)) is not None:
            by_seed[cell.seed] = value
    return Spread.of(by_seed)


def _number(study: Study, evaluation: str, name: str, scores: dict[str, Any], results: Results) -> float | None:
    """A score; None if it is there but no finite number, or if only other methods log it."""
    numbers = dict(leaves(scores))
    value = numbers.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        of_others = [found.get(evaluation, {}).get("trained", {}) for found in results.values()]
        if evaluation in (LOG, *study.plan.analyses) and any(name in theirs for theirs in of_others):
            return None
        known = ", ".join(key for key, item in numbers.items() if isinstance(item, float))
        raise ValueError(
            f"Compare.metrics must name numbers of their evaluation; got {evaluation}.{name}. It has {known}."
        )
    return float(value) if math.isfinite(value) else None


def _differences(scores: dict[str, Spread | None], reference: dict[str, Spread | None]) -> dict[str, Spread | None]:
    return {column: difference(ours, reference[column]) for column, ours in scores.items()}


def _helper(study: Study, arm: str, results: Results, records: dict[int, Record | None]) -> Helper:
    cells = study.of(arm)
    names = {cell.name for cell in cells}
    users = dict.fromkeys(cell.arm for cell in study.cells if names & set(cell.needs.values()))
    logs = {cell.seed: log["trained"] for cell in cells if (log := results[cell.index].get(LOG))}
    logged = dict.fromkeys(name for log in logs.values() for name in log if name not in OF_THE_ENGINE)
    return Helper(
        arm,
        cells[0].run.method.kind,
        tuple(users),
        {name: Spread.of({seed: log[name] for seed, log in logs.items() if name in log}) for name in logged},
        _costs(study, arm, records),
    )


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


def _cell_row(cell: Cell, record: Record | None, states: dict[str, State]) -> CellRow:
    record = record or Record("failed")  # says nothing
    return CellRow(
        index=cell.index,
        name=cell.name,
        arm=cell.arm,
        seed=cell.seed,
        state=states[cell.name],
        error=record.error,
        s_per_step=record.s_per_step,
        pretrain_s=record.pretrain_s,
        evaluate_s=record.evaluate_s,
        lacks=tuple(name for name in cell.needs.values() if states[name] == "failed"),
    )


def _read_results(cell: Cell, out: Path) -> dict[str, dict[str, Any]]:
    """Of its evaluations and analyses, and what its run logged at its end."""
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in result_paths(cell, out).items()
        if path.is_file()
    }
    for name, path in analysis_paths(cell, out).items():
        if numbers := read_numbers(name, path):
            found[name] = {"trained": numbers}
    if has_run(cell, out) and (log := read_metrics(cell_folder(cell, out) / "metrics.jsonl")):
        found[LOG] = {"trained": _last_tenth(log)}
    return found


def _last_tenth(log: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every number over the last tenth of the logged steps: one batch alone says little."""
    last = log[-max(1, len(log) // 10) :]
    there = {name: [line[name] for line in last if line.get(name) is not None] for name in last[-1]}
    return {name: statistics.fmean(values) for name, values in there.items() if values}


def _environments(runs: list[RunFolder]) -> list[dict[str, Any]]:
    """The different ones among the runs' environments, without what always differs."""
    keys = ("packages", "python", "git", "cpu", "cores", "threads", "gpu", "device", "precision")
    found: list[dict[str, Any]] = []
    for run in runs:
        kept = {key: run.environment[key] for key in keys if key in run.environment}
        if kept and kept not in found:
            found.append(kept)
    return found
