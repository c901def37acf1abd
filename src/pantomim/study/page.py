"""The table of a study as files: JSON for programs, Markdown for notes, one HTML page that needs nothing else."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pantomim.analysis.block_facts import BlockFacts, read_block_facts
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, arms_chart
from pantomim.report.folder import Alignment, RunFolder, read_run
from pantomim.report.html import alignment_strips, duration, fill_template, length, plus_minus, surroundings, triplets
from pantomim.study.cells import Cell, Study
from pantomim.study.columns import heading, is_share, parts, show, show_difference
from pantomim.study.plan import Analysis, Overrides, merge
from pantomim.study.run import analysis_paths, cell_folder
from pantomim.study.spread import Spread
from pantomim.study.table import Table, contrast_findings, findings, make_table

Rows = list[list[str]]
MASK_HEADINGS = ("", "masked (%)", "visible clusters", "visible neighbours", "masked to nearest visible")
CURVES: dict[Analysis, tuple[str, str, Callable[[BlockFacts], np.ndarray]]] = {
    "attention-distance": (
        "How far attention reaches, mean over heads",
        "distance (pixels)",
        lambda facts: facts.of("distance", 0).mean(axis=1),
    ),
    "spectrum": (
        "How few directions an image's tokens lie in: the share of the largest singular value",
        "share of the sum",
        lambda facts: facts.of("shares", 0)[:, 0],
    ),
}


@dataclass(frozen=True)
class Section:
    """Tables (subtitle, headings, rows) and what they show, for both kinds of page; `best` places are (row, column)."""

    id: str
    title: str
    tables: Sequence[tuple[str, Sequence[str], Rows]]
    caption: str = ""
    sentences: Sequence[str] = ()
    best: Sequence[tuple[int, int]] = ()


def write_tables(study: Study, out: Path) -> list[Path]:
    """Write table.json, table.md and table.html from what there is so far.

    Raises:
        ValueError: if a column of the plan is no number of its evaluation.
    """
    table = make_table(study, out)
    texts = {"table.json": table.to_json(), "table.md": markdown(study, table), "table.html": html(study, table, out)}
    for name, text in texts.items():
        replace_file(out / name, text.encode())
    return [out / name for name in texts]


def markdown(study: Study, table: Table) -> str:
    """The table for notes and repositories."""
    lines = [f"# {title(table)}", "", table.summary, "", f"    {table.command}", ""]
    lines += [line for note in notes(table) for line in (f"**{note}**", "")]
    masked = [Section("", "What is masked, on average over masks (lengths in patches)", [("", MASK_HEADINGS, rows)])
              for rows in [mask_rows(table)] if rows]  # fmt: skip
    cells = Section("", "Cells", [("", cell_headings(study), cell_rows(study, table))])
    for section in [*sections(table), *masked, cells]:
        for subtitle, headings, rows in section.tables:
            lines += [f"{section.title}{f', {subtitle}' if subtitle else ''}:", ""]
            lines += [*_markdown_table(headings, rows), ""]
        lines += [section.caption, ""] if section.caption else []
        lines += [*(f"- {sentence}" for sentence in section.sentences), ""] if section.sentences else []
    lines += ["What was run:", "", *(f"- {name}: {value}" for name, value in facts(study, table))]
    return "\n".join(lines) + "\n"


def html(study: Study, table: Table, out: Path) -> str:
    """The page: scores, what they show, cost, pictures, and what was run."""
    runs = _pictured_runs(study, out)
    pictures = {cell.arm: run.pictures for cell, run in runs if run.pictures is not None}
    captions = {arm: str(shown.about.get("caption", "")) for arm, shown in pictures.items()}
    agreed = len(set(captions.values())) == 1
    told = list(captions.values())[:1] if agreed else [f"{arm}: {caption}" for arm, caption in captions.items()]
    return fill_template(
        "study.html",
        kicker="Study",
        title=title(table),
        lead=table.summary,
        table=table,
        notes=notes(table),
        sections=list(sections(table)),
        aligned=_aligned({cell.arm: run.alignment for cell, run in runs if run.alignment is not None}),
        blocks=block_charts(study, out),
        mask_headings=MASK_HEADINGS,
        masks=mask_rows(table),
        pictures={arm: triplets(shown) for arm, shown in pictures.items()},
        picture_caption=f"Runs of seed {study.seeds[0]}. {' '.join(told)}",
        cell_headings=cell_headings(study),
        cells=cell_rows(study, table),
        facts=facts(study, table),
        arms=[(arm, _yaml(settings)) for arm, settings in arm_settings(study).items()],
        folder=str(out),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def title(table: Table) -> str:
    """Plan and scale."""
    return f"Study {table.study}" + (f", scale {table.scale}" if table.scale else "")


def notes(table: Table) -> list[str]:
    """What is missing: cells, and evaluations that were left out."""
    found = []
    for state, words in (("failed", "failed"), ("started", "started, not finished"), ("not started", "not started")):
        cells = [cell.name + (f" ({cell.error})" if cell.error else "") for cell in table.cells if cell.state == state]
        if cells:
            found.append(f"{len(cells)} of {len(table.cells)} cells {words}: {', '.join(cells)}.")
    for name in dict.fromkeys(name for cell in table.cells for name in cell.lacks):
        waiting = [cell.name for cell in table.cells if name in cell.lacks]
        found.append(f"{name} failed, and its run is needed by {', '.join(waiting)}.")
    found += table.warnings
    if table.without:
        found.append(f"Left out on purpose: {', '.join(table.without)}.")
    return found


def sections(table: Table) -> Iterator[Section]:
    """Scores, differences, spread and cost."""
    headings = ["", *map(heading, table.metrics)]
    reading = (
        f"Mean ± standard deviation over the seeds {', '.join(map(str, table.seeds))}; n where some are missing. "
        f"Shares in percent. Differences to {table.reference} are taken seed by seed, in percentage points where "
        f"scores are in percent. A difference counts as above or below only if its 95 % interval by Student's t leaves "
        f"out zero; intervals are not corrected for the number of comparisons."
    )
    scores = [[row.name, *(show(row.scores[m], m, row.planned) for m in table.metrics)] for row in table.rows]
    yield Section("scores", "Scores", [("", headings, scores)], reading, best=best_arms(table))
    against = [
        [row.name, *(show_difference(row.differences.get(metric), metric) for metric in table.metrics)]
        for row in table.rows
        if row.baseline or row.arm != table.reference
    ]
    title = f"Against {table.reference}"
    yield Section("differences", title, [("", headings, against)], sentences=findings(table))
    if table.contrasts:
        rows = [
            [
                contrast.name.replace(" - ", " − "),
                *(show_difference(contrast.differences[metric], metric) for metric in table.metrics),
            ]
            for contrast in table.contrasts
        ]
        caption, title = "The first minus the second, seed by seed.", "One arm against another"
        yield Section("contrasts", title, [("", headings, rows)], caption, contrast_findings(table))
    if table.groups:
        caption = (
            "Among the arms of a group at the same seed, then mean ± standard deviation over seeds; in points and "
            "points² where scores are in percent. Runs that differ in their seed alone differ too, so no group comes "
            "to zero."
        )
        yield Section("spread", "Spread among arms", group_tables(table), caption)
    caption = (
        "Time of a step with waiting for data, without the first step and without saving. The cells of "
        f"{table.reference} also score the baselines."
    )
    titles = ("", "ms a step", "against the reference", "images/s", "pre-training", "evaluations")
    yield Section("cost", "Cost", [("", titles, cost_rows(table))], caption)
    if table.helpers:
        caption = "Not evaluated: these train no encoder. At its end: means over the last tenth of the log."
        titles = ("", "trains", "used by", "at its end", "ms a step", "pre-training")
        yield Section("helpers", "Trained for others", [("", titles, helper_rows(table))], caption)


def best_arms(table: Table) -> list[tuple[int, int]]:
    """The places of the best means among the arms, as (row, column); headings do not count, names do.

    Only of scores: of losses, differences and the like no end is the best.
    """
    places = []
    for column, metric in enumerate(table.metrics, 1):
        if is_share(metric) and len(parts(metric)) == 1:
            found = [(row.scores[metric], place) for place, row in enumerate(table.rows) if not row.baseline]
            means = {place: spread.mean for spread, place in found if spread is not None}
            if len(means) > 1:
                places.append((max(means, key=lambda place: means[place]), column))
    return places


def group_tables(table: Table) -> list[tuple[str, Sequence[str], Rows]]:
    """For every column, in words, how far the arms of each group differ."""
    headings = ("", "arms", "mean", "largest − smallest", "std", "variance")
    found: list[tuple[str, Sequence[str], Rows]] = []
    for metric in table.metrics:
        share = is_share(metric)
        scale, digits, finer = (100.0, ".1f", ".2f") if share else (1.0, ".3g", ".3g")
        rows = []
        for group in table.groups:
            among = group.columns[metric]
            texts = ["–"] * 4
            if among is not None:
                texts = [_plain(among.mean, scale, digits), _plain(among.range, scale, digits)]
                texts += [_plain(among.std, scale, finer), _plain(among.variance, scale**2, finer)]
            rows.append([group.name, ", ".join(group.arms), *texts])
        found.append((heading(metric), headings, rows))
    return found


def helper_rows(table: Table) -> Rows:
    """What the arms that are not evaluated are for, and what they came to."""
    return [
        [
            helper.name,
            helper.method,
            ", ".join(helper.users) or "–",
            ", ".join(
                f"{name.replace('_', ' ')} {_plain(spread, 1.0, '.4g')}" for name, spread in helper.logged.items()
            )
            or "–",
            _plain(helper.costs["s_per_step"], 1000.0, ".1f"),
            _time(helper.costs["pretrain_s"]),
        ]
        for helper in table.helpers
    ]


def cost_rows(table: Table) -> Rows:
    """What a run of each arm costs."""
    arms = [row for row in table.rows if not row.baseline]
    reference = next(row.costs["s_per_step"] for row in arms if row.arm == table.reference)

    def ratio(step: Spread | None) -> str:
        return "–" if step is None or reference is None else f"×{step.mean / reference.mean:.2f}"

    return [
        [
            row.name,
            _plain(row.costs["s_per_step"], 1000.0, ".1f"),
            ratio(row.costs["s_per_step"]),
            _plain(row.costs["images_per_s"], 1.0, ",.0f"),
            _time(row.costs["pretrain_s"]),
            _time(row.costs["evaluate_s"]),
        ]
        for row in arms
    ]


def cell_headings(study: Study) -> list[str]:
    """Of the list of cells: what each evaluation took has a column of its own."""
    return ["", "state", "ms a step", "pre-training (s)", *(f"{name} (s)" for name in study.evaluations)]


def cell_rows(study: Study, table: Table) -> Rows:
    """Name, state and cost of every cell."""

    def seconds(value: float | None, scale: float = 1.0) -> str:
        return "–" if value is None else f"{scale * value:,.1f}"

    return [
        [
            cell.name,
            cell.state,
            seconds(cell.s_per_step, 1000.0),
            seconds(cell.pretrain_s),
            *(seconds(cell.evaluate_s.get(name)) for name in study.evaluations),
        ]
        for cell in table.cells
    ]


def mask_rows(table: Table) -> Rows:
    """What each arm masks; empty if no arm says so."""
    digits = {"ratio": ".1%", "clusters": ".1f", "neighbours": ".2f", "distance": ".2f"}
    return [
        [row.name, *(f"{row.masks[name]:{digit}}".rstrip("%") for name, digit in digits.items())]
        for row in table.rows
        if row.masks
    ]


def facts(study: Study, table: Table) -> list[tuple[str, str]]:
    """What was run, by name."""
    runs = {cell.arm: cell.run for cell in study.cells}
    lengths = {
        arm: f"{length({'steps': run.duration.steps, 'epochs': run.duration.epochs})} of {run.batch_size} images"
        for arm, run in runs.items()
    }
    found = [
        ("Recipe", _by_arm({arm: run.recipe for arm, run in runs.items()})),
        *((f"Input {name}", value) for name, value in table.inputs.items()),
        ("Length", _by_arm(lengths)),
        ("Arms", ", ".join(study.arms)),
        ("Seeds", ", ".join(map(str, table.seeds))),
    ]
    evaluations = {name: config for cell in study.cells for name, config in cell.evaluations.items()}
    for name, config in evaluations.items():
        limits = [
            f"{config.images:,} images to learn from" if config.images else "all images to learn from",
            f"{config.test_images:,} test images" if config.test_images else "all test images",
        ]
        found.append((f"Evaluation {name}", f"{config.name} on {config.data}, {', '.join(limits)}"))
    for environment in table.environments:
        found += [*surroundings(environment).items(), ("Commit", str(environment.get("git") or "not known"))]
    return found


def block_charts(study: Study, out: Path) -> list[tuple[str, list[Chart]]]:
    """By analysis, a chart for each group of arms (one for all arms, where there are no groups): a line an arm.

    Of the first seed of each arm, as far as it has been looked at.
    """
    groups = study.plan.compare.groups or {"": study.arms}
    charts = []
    for name, (title, y_label, curve) in CURVES.items():
        paths = {arm: analysis_paths(study.of(arm)[0], out).get(name) for arm in study.arms}
        lines = {arm: curve(read_block_facts(path)) for arm, path in paths.items() if path and path.is_file()}
        highest = max((values.max() for values in lines.values()), default=0.0)
        grouped = {group: {arm: lines[arm] for arm in arms if arm in lines} for group, arms in groups.items()}
        shown = [
            Chart(group, arms_chart(own, highest, y_label, f"{title}, {group}"))
            for group, own in grouped.items()
            if own
        ]
        charts += [(title, shown)] if shown else []
    return charts


def arm_settings(study: Study) -> dict[str, Overrides]:
    """What each arm changes, at the scale of the study."""
    at = study.plan.scales[study.scale].arms if study.scale else {}
    return {arm: merge(settings, at.get(arm, {})) for arm, settings in study.plan.arm_overrides.items()}


def _pictured_runs(study: Study, out: Path) -> list[tuple[Cell, RunFolder]]:
    """The first seed of every arm that has pictures."""
    folders = [(cell, cell_folder(cell, out)) for cell in study.cells if cell.pictures]
    return [(cell, read_run(folder)) for cell, folder in folders if (folder / "config.yaml").is_file()]


def _aligned(found: dict[str, Alignment]) -> Alignment | None:
    """What the decoders of CAE's arms make of the same images without the regressor; None if no arm has pictures."""
    if not found:
        return None
    first = next(iter(found.values()))
    known = {title: (title, "", shown) for alignment in found.values() for title, _, shown in alignment.rows[1:-1]}
    arms = [(arm, *alignment.rows[-1][1:]) for arm, alignment in found.items()]
    return alignment_strips(
        Alignment([("original", "", first.rows[0][2]), *known.values(), *arms], first.items, first.caption)
    )


def _by_arm(texts: dict[str, str]) -> str:
    """One text where all arms agree, else each with its arms."""
    different = list(dict.fromkeys(texts.values()))
    if len(different) == 1:
        return different[0]
    return "; ".join(f"{', '.join(arm for arm in texts if texts[arm] == text)}: {text}" for text in different)


def _markdown_table(headings: Sequence[str], rows: Rows) -> list[str]:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _plain(spread: Spread | None, scale: float, digits: str) -> str:
    return "–" if spread is None else plus_minus(spread.mean, spread.std, digits, scale)


def _time(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return duration(spread.mean) + ("" if spread.std is None else f" ± {duration(spread.std)}")


def _yaml(overrides: dict[str, Any]) -> str:
    return yaml.safe_dump(overrides, sort_keys=False).strip() if overrides else "nothing: the recipe as it is"
