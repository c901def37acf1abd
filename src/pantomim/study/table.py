"""The numbers of a study: mean and std over seeds, differences to the reference seed by seed, cost."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pantomim.config import leaves
from pantomim.core.reading import read_json
from pantomim.engine.record import read_metrics
from pantomim.evaluate.base import read_scored
from pantomim.report.folder import read_run
from pantomim.report.scores import CONTENDERS
from pantomim.report.spread import Spread, difference
from pantomim.study.cells import Cell, Study
from pantomim.study.columns import AmongArms, heading, parts, show_difference
from pantomim.study.plan import LOG, MINUS
from pantomim.study.run import Record, State, analysis_paths, cell_folder, has_run, read_record, result_paths, state

COSTS = ("s_per_step", "images_per_s", "pretrain_s", "evaluate_s")
OF_THE_ENGINE = ("step", "lr", "images_per_s", "data_wait_s", "grad_norm", "memory_gib", "time_s")
Results = dict[str, dict[str, dict[str, Any]]]  # by cell, evaluation and contender
Records = dict[str, Record | None]  # by cell
Columns = dict[str, Spread | None]  # None where nothing was measured


@dataclass(frozen=True)
class Row:
    """An arm, or a baseline."""

    name: str
    arm: str  # of a baseline, the one in whose cells it was scored
    baseline: bool
    scores: Columns
    differences: Columns  # to the reference, over the seeds that both have; none in its own row
    costs: Columns  # by name; none of a baseline
    masks: dict[str, float] | None = None  # what the masker leaves visible, if it was looked at
    planned: int = 0  # how many seeds it is to have


@dataclass(frozen=True)
class Contrast:
    """One arm against another, "ARM - ARM", over the seeds that both have."""

    name: str
    differences: Columns


@dataclass(frozen=True)
class Group:
    """How far the arms of a group differ."""

    name: str
    arms: tuple[str, ...]
    columns: dict[str, AmongArms | None]


@dataclass(frozen=True)
class Helper:
    """An arm that is there for others and not evaluated."""

    name: str
    method: str
    users: tuple[str, ...]
    logged: Columns  # at the end of its runs
    costs: Columns


@dataclass(frozen=True)
class CellRow:
    """One cell: how far it has come, and what it cost (as in `Record`)."""

    index: int
    name: str
    arm: str
    seed: int
    state: State
    error: str | None
    s_per_step: float | None
    pretrain_s: float | None
    evaluate_s: dict[str, float]
    lacks: tuple[str, ...] = ()  # cells that failed and whose runs it needs


@dataclass(frozen=True)
class Table:
    """All that the page shows but pictures."""

    study: str
    summary: str
    base: str
    scale: str | None
    reference: str
    metrics: tuple[str, ...]
    rows: list[Row]  # arms in the order of the plan, then baselines
    contrasts: list[Contrast]
    groups: list[Group]
    helpers: list[Helper]
    cells: list[CellRow]
    seeds: tuple[int, ...]  # those that were planned
    inputs: dict[str, str]
    without: tuple[str, ...]  # evaluations that were left out on purpose
    warnings: list[str]  # what else was left out
    command: str  # carries out all of it
    environments: list[dict[str, Any]]  # more than one where runs differ in versions, commit or hardware


def make_table(study: Study, out: Path) -> Table:
    """What there is so far; a number counts from the moment its own evaluation is there."""
    results = {cell.name: _read_results(cell, out) for cell in study.cells}
    records = {cell.name: read_record(cell, out) for cell in study.cells}
    states = {cell.name: state(cell, out) for cell in study.cells}
    scores = {arm: _scores(study, arm, "trained", results) for arm in study.arms}
    compare, reference = study.plan.compare, scores[study.plan.compare.reference]
    rows = []
    for arm, own in scores.items():
        differences = {} if arm == compare.reference else _differences(own, reference)
        masks = [record.masks for cell in study.of(arm) if (record := records[cell.name]) and record.masks]
        costs, planned = _costs(study, arm, records), len(study.of(arm))
        rows.append(Row(arm, arm, False, own, differences, costs, masks[0] if masks else None, planned))
    for baseline in study.plan.baselines:
        owners = list(dict.fromkeys(study.owners[baseline].values()))
        for arm in owners:
            name = CONTENDERS[baseline].lower() if len(owners) == 1 else f"{arm}, {baseline}"
            own = _scores(study, arm, baseline, results)
            rows.append(Row(name, arm, True, own, _differences(own, reference), {}, None, len(study.of(arm))))
    pairs = [(pair, *pair.split(MINUS)) for pair in compare.contrasts]
    return Table(
        study=study.plan.name,
        summary=" ".join(study.plan.summary.split()),
        base=", ".join(dict.fromkeys(cell.run.recipe for cell in study.cells if cell.arm in study.arms)),
        scale=study.scale,
        reference=compare.reference,
        metrics=study.metrics,
        rows=rows,
        contrasts=[Contrast(name, _differences(scores[one], scores[other])) for name, one, other in pairs],
        groups=[
            Group(name, arms, {column: AmongArms.of([scores[arm][column] for arm in arms]) for column in study.metrics})
            for name, arms in compare.groups.items()
        ],
        helpers=[_helper(study, arm, results, records) for arm in study.helpers],
        cells=[_cell_row(cell, records[cell.name], states) for cell in study.cells],
        seeds=study.seeds,
        inputs=study.inputs,
        without=study.without,
        warnings=study.warnings,
        command=study.command(out),
        environments=_environments([cell_folder(cell, out) for cell in study.cells]),
    )


def findings(table: Table) -> list[str]:
    """What the differences show, a sentence a column; what can be chance over the seeds does not count as a difference.

    Arms with fewer than two seeds that the reference has as well are named once if they are the same in all columns.
    """
    arms = [row for row in table.rows if not row.baseline and row.arm != table.reference]
    told: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    for metric in table.metrics:
        # Other methods than an arm's own log no such number, and are not looked at in this way.
        may_lack = parts(metric)[0][0] in (LOG, "alignment")
        found = {row.name: row.differences[metric] for row in arms if row.scores[metric] or not may_lack}
        told[metric] = _sides({name: (name, metric, spread) for name, spread in found.items()}, ", ", ": ")
        unknown[metric] = [name for name, spread in found.items() if spread is None or spread.std is None]
    same = next(iter(unknown.values()), [])
    everywhere = same if all(names == same for names in unknown.values()) else []
    sentences = []
    for metric, words in told.items():
        if unknown[metric] and not everywhere:
            words += [f"fewer than two seeds: {', '.join(unknown[metric])}"]
        if words:
            sentences.append(f"{heading(metric)}, against {table.reference}: {'; '.join(words)}.")
    note = (
        f"Fewer than two seeds to set against {table.reference}, so nothing is claimed about: {', '.join(everywhere)}."
    )
    return [*sentences, note] if everywhere else sentences


def contrast_findings(table: Table) -> list[str]:
    """What the contrasts show, a sentence each."""
    sentences = []
    for contrast in table.contrasts:
        first, second = contrast.name.split(MINUS)
        named = {column: (heading(column), column, spread) for column, spread in contrast.differences.items()}
        if told := _sides(named, "; ", " in "):
            sentences.append(f"{first}, against {second}: {'. It is '.join(told)}.")
    return sentences


def _sides(named: Mapping[str, tuple[str, str, Spread | None]], between: str, after: str) -> list[str]:
    """Which of some differences (name, column, spread) lie above zero, below, or cannot be told apart from chance."""
    words = {1: "above", -1: "below", 0: "not told apart from chance"}
    found = {
        side: [
            f"{name} ({show_difference(spread, column)})"
            for name, column, spread in named.values()
            if spread is not None and spread.std is not None and spread.side == side
        ]
        for side in words
    }
    return [f"{words[side]}{after}{between.join(names)}" for side, names in found.items() if names]


def _scores(study: Study, arm: str, who: str, results: Results) -> Columns:
    found: Columns = {}
    for column in study.metrics:
        spreads = [_spread(study, arm, who, *metric, results) for metric in parts(column)]
        found[column] = spreads[0] if len(spreads) == 1 else difference(*spreads)
    return found


def _spread(study: Study, arm: str, who: str, evaluation: str, number: str, results: Results) -> Spread | None:
    by_seed = {}
    for cell in study.of(arm):
        scores = results[cell.name].get(evaluation, {}).get(who)
        if scores is not None and (value := _number(study, evaluation, number, scores, results)) is not None:
            by_seed[cell.seed] = value
    return Spread.of(by_seed)


def _number(study: Study, evaluation: str, name: str, scores: dict[str, Any], results: Results) -> float | None:
    """A score; None if it is there but no finite number, or if only other methods log it."""
    numbers = leaves(scores)
    value = numbers.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    of_others = [found.get(evaluation, {}).get("trained", {}) for found in results.values()]
    if evaluation in (LOG, *study.plan.analyses) and any(name in theirs for theirs in of_others):
        return None
    known = ", ".join(key for key, item in numbers.items() if isinstance(item, float))
    raise ValueError(f"Compare.metrics must name numbers of their evaluation; got {evaluation}.{name}. It has {known}.")


def _differences(scores: Columns, reference: Columns) -> Columns:
    return {column: difference(ours, reference[column]) for column, ours in scores.items()}


def _helper(study: Study, arm: str, results: Results, records: Records) -> Helper:
    cells = study.of(arm)
    names = {cell.name for cell in cells}
    users = dict.fromkeys(cell.arm for cell in study.cells if names & set(cell.needs.values()))
    logs = {cell.seed: log["trained"] for cell in cells if (log := results[cell.name].get(LOG))}
    logged = dict.fromkeys(name for log in logs.values() for name in log if name not in OF_THE_ENGINE)
    spreads = {name: Spread.of({seed: log[name] for seed, log in logs.items() if name in log}) for name in logged}
    return Helper(arm, cells[0].run.method.kind, tuple(users), spreads, _costs(study, arm, records))


def _costs(study: Study, arm: str, records: Records) -> Columns:
    found = {cell.seed: record for cell in study.of(arm) if (record := records[cell.name])}
    finished = {seed: record for seed, record in found.items() if record.state == "finished"}
    costs = {seed: vars(it) | {"evaluate_s": sum(it.evaluate_s.values())} for seed, it in finished.items()}
    by_name = {name: {seed: cost[name] for seed, cost in costs.items()} for name in COSTS}
    return {name: Spread.of({s: v for s, v in values.items() if v is not None}) for name, values in by_name.items()}


def _cell_row(cell: Cell, record: Record | None, states: dict[str, State]) -> CellRow:
    record = record or Record("failed")  # without a record all of it is empty
    known = {name: getattr(record, name) for name in ("error", "s_per_step", "pretrain_s", "evaluate_s")}
    lacks = tuple(name for name in cell.needs.values() if states[name] == "failed")
    return CellRow(cell.index, cell.name, cell.arm, cell.seed, states[cell.name], **known, lacks=lacks)


def _read_results(cell: Cell, out: Path) -> dict[str, dict[str, Any]]:
    """Of its evaluations and analyses, and what its run logged at its end."""
    paths = {name: path for name, path in result_paths(cell, out).items() if path.is_file()}
    found = {name: read_scored(path) for name, path in paths.items()}
    agreement = analysis_paths(cell, out).get("alignment")  # the only analysis with numbers for a table
    if agreement is not None and agreement.is_file():
        found["alignment"] = {"trained": read_json(agreement, dict[str, Any], "Remove it, and resume the study.")}
    if has_run(cell, out) and (log := read_metrics(cell_folder(cell, out) / "metrics.jsonl")):
        found[LOG] = {"trained": _last_tenth(log)}
    return found


def _last_tenth(log: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every number over the last tenth of the logged steps: one batch alone says little."""
    last = log[-max(1, len(log) // 10) :]
    there = {name: [line[name] for line in last if line.get(name) is not None] for name in last[-1]}
    return {name: statistics.fmean(values) for name, values in there.items() if values}


def _environments(folders: list[Path]) -> list[dict[str, Any]]:
    """The different ones among the runs' environments, without what always differs."""
    keys = ("packages", "python", "git", "cpu", "cores", "threads", "gpu", "device", "precision")
    found: list[dict[str, Any]] = []
    for folder in folders:
        environment = read_run(folder).environment if (folder / "config.yaml").is_file() else {}
        kept = {key: environment[key] for key in keys if key in environment}
        if kept and kept not in found:
            found.append(kept)
    return found
