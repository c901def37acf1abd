"""The table of a study as files: JSON for programs, Markdown for notes, one HTML page that needs nothing else."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pantomim.analysis.block_facts import BlockFacts, read_block_facts
from pantomim.analysis.pictures import PictureRows, Row
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, arms_chart
from pantomim.report.folder import read_run
from pantomim.report.html import duration, fill_template, length, surroundings
from pantomim.report.measures import Measure, score_chart
from pantomim.report.scores import Score
from pantomim.report.spread import ABSENT, Spread, show_plain
from pantomim.study.cells import Study
from pantomim.study.columns import heading, is_share, parts, show, show_difference
from pantomim.study.plan import Analysis, merge
from pantomim.study.run import analysis_paths, cell_folder, lease_of
from pantomim.study.table import Columns, Table, contrast_findings, findings, make_table

Rows = list[list[str]]
MASKED = {  # heading, and how the number of `Record.masks` is written
    "ratio": ("masked (%)", ".1%"),
    "clusters": ("visible clusters", ".1f"),
    "neighbours": ("visible neighbours", ".2f"),
    "distance": ("masked to nearest visible", ".2f"),
}
CURVES: dict[Analysis, tuple[str, str, Callable[[BlockFacts], np.ndarray]]] = {
    "attention-distance": (
        "How far attention reaches, mean over heads",
        "distance (pixels)",
        lambda facts: facts.of("distance", 0).mean(axis=1),
    ),
    "spectrum": (
        "Spectrum of patch tokens: the share of the largest singular value",
        "share of the sum",
        lambda facts: facts.of("shares", 0)[:, 0],
    ),
}


@dataclass(frozen=True)
class Section:
    """Tables (subtitle, headings, rows) and what they show, for both kinds of page; `best` places are (row, column).

    What one must know to read it, by `id`, is in captions.html.
    """

    id: str
    title: str
    tables: Sequence[tuple[str, Sequence[str], Rows]]
    sentences: Sequence[str] = ()
    best: Sequence[tuple[int, int]] = ()


def write_tables(study: Study, out: Path) -> list[Path]:
    """Write table.json, table.md and table.html from what there is so far."""
    table = make_table(study, out)
    measured, names = measures(table), [row.name for row in table.rows]
    page: dict[str, Any] = {
        "title": f"Study {table.study}" + (f", scale {table.scale}" if table.scale else ""),
        "lead": next((measure.finding(names) for measure in measured), "No score is there yet."),
        "about": table.summary,
        "table": table,
        "notes": list(notes(table)),
        "sections": list(sections(table)),
        "masks": mask_table(table),
        "guided": guided(study),
        "cells": cell_table(study, table),
        "facts": list(facts(study, table)),
    }
    dots = [score_chart(measure, names) for measure in measured]
    texts = {
        "table.json": json.dumps(asdict(table), indent=2) + "\n",
        "table.md": fill_template("study.md", **page),
        "table.html": fill_template("study.html", **page, **pictures(study, out), dots=dots),
    }
    with lease_of(out):
        for name, text in texts.items():
            replace_file(out / name, text.encode())
    return [out / name for name in texts]


def measures(table: Table) -> list[Measure]:
    """The scores among the columns, by the places of the rows."""
    found = []
    for metric in table.metrics:
        spreads = {place: spread for place, row in enumerate(table.rows) if (spread := row.scores[metric]) is not None}
        scores = {place: {seed: Score(value) for seed, value in of.by_seed.items()} for place, of in spreads.items()}
        arms = {place: of for place, of in scores.items() if not table.rows[place].baseline}
        others = [place for place in scores if place not in arms]
        rivals = {table.rows[place].name: {place: list(scores[place].values())} for place in others}
        if arms and is_share(metric) and len(parts(metric)) == 1:
            found.append(Measure(heading(metric).removesuffix(" (%)"), scores=arms, rivals=rivals))
    return found


def pictures(study: Study, out: Path) -> dict[str, Any]:
    """What only the HTML page has: curves, pictures of the first seed of every arm, and the arms' settings."""
    folders = {cell.arm: cell_folder(cell, out) for cell in study.cells if cell.pictures}
    runs = {arm: read_run(folder) for arm, folder in folders.items() if (folder / "config.yaml").is_file()}
    shown = {arm: run.pictures for arm, run in runs.items() if run.pictures is not None}
    captions = {arm: str(found.about.get("caption", "")) for arm, found in shown.items()}
    agreed = len(set(captions.values())) == 1
    told = list(captions.values())[:1] if agreed else [f"{arm}: {caption}" for arm, caption in captions.items()]
    at_scale = study.plan.scales[study.scale].arms if study.scale else {}
    arms = {arm: merge(own, at_scale.get(arm, {})) for arm, own in study.plan.arm_overrides.items()}
    return {
        "aligned": _aligned({arm: run.views["alignment"] for arm, run in runs.items() if "alignment" in run.views}),
        "blocks": list(block_charts(study, out)),
        "pictures": {arm: found.entries for arm, found in shown.items()},
        "picture_caption": f"Runs of seed {study.seeds[0]}. {' '.join(told)}",
        "arms": {arm: yaml.safe_dump(own, sort_keys=False).strip() if own else "" for arm, own in arms.items()},
        "folder": str(out),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def notes(table: Table) -> Iterator[str]:
    """What is missing: cells, and evaluations that were left out."""
    for state, words in (("failed", "failed"), ("started", "started, not finished"), ("not started", "not started")):
        if cells := [cell for cell in table.cells if cell.state == state]:
            names = ", ".join(cell.name + (f" ({cell.error})" if cell.error else "") for cell in cells)
            yield f"{len(cells)} of {len(table.cells)} cells {words}: {names}."
    for name in dict.fromkeys(name for cell in table.cells for name in cell.lacks):
        waiting = ", ".join(cell.name for cell in table.cells if name in cell.lacks)
        yield f"{name} failed, and its run is needed by {waiting}."
    yield from table.warnings
    if table.without:
        yield f"Left out on purpose: {', '.join(table.without)}."


def sections(table: Table) -> Iterator[Section]:
    """Scores, differences, spread and cost."""
    headings = ["", *map(heading, table.metrics)]
    scores = [[row.name, *(show(row.scores[m], m, row.planned) for m in table.metrics)] for row in table.rows]
    yield Section("scores", "Scores", [("", headings, scores)], best=best_rows(table))

    def compared(name: str, differences: Columns) -> list[str]:
        return [name, *(show_difference(differences.get(metric), metric) for metric in table.metrics)]

    rows = [compared(row.name, row.differences) for row in table.rows if row.baseline or row.arm != table.reference]
    yield Section("differences", f"Against {table.reference}", [("", headings, rows)], findings(table))
    if table.contrasts:
        rows = [compared(each.name.replace(" - ", " − "), each.differences) for each in table.contrasts]
        yield Section("contrasts", "One arm against another", [("", headings, rows)], contrast_findings(table))
    if table.groups:
        yield Section("spread", "Spread among arms", [(heading(m), *group_table(table, m)) for m in table.metrics])
    costs = ("", "ms a step", "against the reference", "images/s", "pre-training", "evaluations")
    yield Section("cost", "Cost", [("", costs, cost_rows(table))])
    if table.helpers:
        titles = ("", "trains", "used by", "at its end", "ms a step", "pre-training")
        yield Section("helpers", "Auxiliary runs", [("", titles, helper_rows(table))])


def best_rows(table: Table) -> list[tuple[int, int]]:
    """The places of the best means, baselines among them, as (row, column); headings do not count, names do.

    Only of scores: of losses, differences and the like no end is the best.
    """
    places = []
    for column, metric in enumerate(table.metrics, 1):
        scored = ((place, row.scores[metric]) for place, row in enumerate(table.rows))
        means = {place: spread.mean for place, spread in scored if spread is not None}
        if len(means) > 1 and is_share(metric) and len(parts(metric)) == 1:
            places.append((max(means, key=means.__getitem__), column))
    return places


def group_table(table: Table, metric: str) -> tuple[Sequence[str], Rows]:
    """How far the arms of each group differ in a column."""
    scale, digits, finer = (100.0, ".1f", ".2f") if is_share(metric) else (1.0, ".3g", ".3g")
    rows = []
    for group in table.groups:
        texts = [ABSENT] * 4
        if (among := group.columns[metric]) is not None:
            texts = [show_plain(among.mean, digits, scale), show_plain(among.range, digits, scale)]
            texts += [show_plain(among.std, finer, scale), show_plain(among.variance, finer, scale**2)]
        rows.append([group.name, ", ".join(group.arms), *texts])
    return ("", "arms", "mean", "largest − smallest", "std", "variance"), rows


def helper_rows(table: Table) -> Rows:
    """What the arms that are not evaluated are for, and what they came to."""
    rows = []
    for helper in table.helpers:
        logged = [f"{name.replace('_', ' ')} {show_plain(spread, '.4g')}" for name, spread in helper.logged.items()]
        costs = [show_plain(helper.costs["s_per_step"], ".1f", 1000.0), _time(helper.costs["pretrain_s"])]
        rows.append(
            [helper.name, helper.method, ", ".join(helper.users) or ABSENT, ", ".join(logged) or ABSENT, *costs]
        )
    return rows


def cost_rows(table: Table) -> Rows:
    """What a run of each arm costs."""
    arms = [row for row in table.rows if not row.baseline]
    reference = next(row.costs["s_per_step"] for row in arms if row.arm == table.reference)
    rows = []
    for row in arms:
        step = row.costs["s_per_step"]
        ratio = ABSENT if step is None or reference is None else f"×{step.mean / reference.mean:.2f}"
        speed = show_plain(row.costs["images_per_s"], ",.0f")
        times = [_time(row.costs[name]) for name in ("pretrain_s", "evaluate_s")]
        rows.append([row.name, show_plain(step, ".1f", 1000.0), ratio, speed, *times])
    return rows


def cell_table(study: Study, table: Table) -> tuple[Sequence[str], Rows]:
    """Name, state and cost of every cell; what each evaluation took has a column of its own."""

    def text(value: float | None, scale: float = 1.0) -> str:
        return ABSENT if value is None else f"{scale * value:,.1f}"

    rows = []
    for cell in table.cells:
        times = [cell.pretrain_s, *map(cell.evaluate_s.get, study.evaluations)]
        rows.append([cell.name, cell.state, text(cell.s_per_step, 1000.0), *map(text, times)])
    return ("", "state", "ms a step", "pre-training (s)", *(f"{name} (s)" for name in study.evaluations)), rows


def mask_table(table: Table) -> tuple[Sequence[str], Rows]:
    """What each arm masks; without rows if no arm says so."""
    rows = [
        [row.name, *(f"{row.masks[name]:{digits}}".rstrip("%") for name, (_, digits) in MASKED.items())]
        for row in table.rows
        if row.masks
    ]
    return ("", *(words for words, _ in MASKED.values())), rows


def guided(study: Study) -> list[str]:
    """The arms whose masks depend on the image, so that `mask_table` lacks them."""
    maskers = {cell.arm: getattr(cell.run.method, "masker", None) for cell in study.cells}
    return [arm for arm, masker in maskers.items() if getattr(masker, "guided", False)]


def facts(study: Study, table: Table) -> Iterator[tuple[str, str]]:
    """What was run, by name."""
    runs = {cell.arm: cell.run for cell in study.cells}
    lengths = {
        arm: f"{length({'steps': run.duration.steps, 'epochs': run.duration.epochs})} of {run.batch_size} images"
        for arm, run in runs.items()
    }
    yield "Recipe", _by_arm({arm: run.recipe for arm, run in runs.items()})
    yield from ((f"Input {name}", value) for name, value in table.inputs.items())
    yield "Length", _by_arm(lengths)
    yield "Arms", ", ".join(study.arms)
    yield "Seeds", ", ".join(map(str, table.seeds))
    evaluations = {name: config for cell in study.cells for name, config in cell.evaluations.items()}
    for name, config in evaluations.items():
        learn, test = (f"{count:,}" if count else "all" for count in (config.images, config.test_images))
        used = f"{learn} images to learn from, {test} test images"
        yield f"Evaluation {name}", f"{config.name} on {config.data}, {used}"
    for environment in table.environments:
        yield from surroundings(environment).items()
        yield "Commit", str(environment.get("git") or "not known")


def block_charts(study: Study, out: Path) -> Iterator[tuple[str, list[Chart]]]:
    """By analysis, a chart for each group of arms (one for all arms, where there are no groups): a line an arm.

    Of the first seed of each arm, as far as it has been looked at.
    """
    groups = study.plan.compare.groups or {"": study.arms}
    for name, (title, y_label, curve) in CURVES.items():
        paths = {arm: analysis_paths(study.of(arm)[0], out).get(name) for arm in study.arms}
        lines = {arm: curve(read_block_facts(path)) for arm, path in paths.items() if path and path.is_file()}
        highest = max((values.max() for values in lines.values()), default=0.0)
        charts = [
            Chart(group, arms_chart(own, highest, y_label, f"{title}, {group}"))
            for group, arms in groups.items()
            if (own := {arm: lines[arm] for arm in arms if arm in lines})
        ]
        if charts:
            yield title, charts


def _aligned(found: dict[str, PictureRows]) -> PictureRows | None:
    """What the decoders of CAE's arms make of the same images without the regressor; None if no arm has pictures."""
    if not found:
        return None
    first = next(iter(found.values()))
    known = {row.title: replace(row, text="") for each in found.values() for row in each.rows[1:-1]}
    arms = [replace(each.rows[-1], title=arm) for arm, each in found.items()]
    return replace(first, rows=(Row("original", "", first.rows[0].pictures), *known.values(), *arms))


def _by_arm(texts: dict[str, str]) -> str:
    """One text where all arms agree, else each with its arms."""
    different = list(dict.fromkeys(texts.values()))
    if len(different) == 1:
        return different[0]
    return "; ".join(f"{', '.join(arm for arm in texts if texts[arm] == text)}: {text}" for text in different)


def _time(spread: Spread | None) -> str:
    return " ± ".join(duration(part) for part in (spread.mean, spread.std) if part is not None) if spread else ABSENT
