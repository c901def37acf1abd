"""The table of a study as files: JSON for programs, Markdown for notes, one HTML page that needs nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml
from markupsafe import Markup

from pantomim.analysis.block_facts import BlockFacts, read_block_facts
from pantomim.core.files import replace_file
from pantomim.report.folder import read_run
from pantomim.report.layer_charts import arms_chart
from pantomim.report.page import duration, length
from pantomim.report.pictures import Triplet, png, triplets
from pantomim.report.template import fill_template
from pantomim.study.cells import Study
from pantomim.study.columns import heading, is_share, parts, show, show_difference
from pantomim.study.plan import Analysis, Overrides, merge
from pantomim.study.run import analysis_paths, cell_folder
from pantomim.study.spread import Spread
from pantomim.study.table import Table, contrast_findings, findings, make_table

COST_HEADINGS = ("", "ms a step", "against the reference", "images/s", "pre-training", "evaluations")
GROUP_HEADINGS = ("", "arms", "mean", "largest − smallest", "deviation", "variance")
HELPER_HEADINGS = ("", "trains", "used by", "at its end", "ms a step", "pre-training")
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
MASK_HEADINGS = ("", "hidden (%)", "visible clusters", "visible neighbours", "hidden to nearest visible")


@dataclass(frozen=True)
class Pictures:
    """What the arms hide of the same images, and make of it.

    Args:
        seed: Of the runs that drew them.
        arms: By name, the images three times.
        captions: What one must know to read them; one where all arms agree.
    """

    seed: int
    arms: dict[str, list[Triplet]]
    captions: list[str]


@dataclass(frozen=True)
class Aligned:
    """What decoders make of images without the regressor.

    Args:
        names: Of the images.
        rows: Title, text and pictures as data URIs: the images, what is known of them, then the arms.
        caption: What one must know to read them.
    """

    names: list[str]
    rows: list[tuple[str, str, list[str]]]
    caption: str


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
    headings = ["", *map(heading, table.metrics)]
    lines = [f"# {title(table)}", "", table.summary, "", f"    {table.command}", ""]
    lines += [line for note in notes(table) for line in (f"**{note}**", "")]
    lines += [*_markdown_table(headings, score_rows(table)), "", reading(table), ""]
    lines += [f"Differences to {table.reference}, seed by seed:", ""]
    lines += [*_markdown_table(headings, difference_rows(table)), ""]
    lines += [*(f"- {sentence}" for sentence in findings(table)), ""]
    if table.contrasts:
        lines += ["One arm against another, seed by seed:", ""]
        lines += [*_markdown_table(headings, contrast_rows(table)), ""]
        lines += [*(f"- {sentence}" for sentence in contrast_findings(table)), ""]
    for column, rows in group_tables(table):
        lines += [f"Spread among the arms of a group, {column}:", "", *_markdown_table(GROUP_HEADINGS, rows), ""]
    lines += ["Cost:", "", *_markdown_table(COST_HEADINGS, cost_rows(table)), ""]
    if table.helpers:
        lines += ["Trained for others, and not evaluated:", ""]
        lines += [*_markdown_table(HELPER_HEADINGS, helper_rows(table)), ""]
    if hidden := mask_rows(table):
        lines += ["What is hidden, on average over masks (lengths in patches):", ""]
        lines += [*_markdown_table(MASK_HEADINGS, hidden), ""]
    lines += ["Cells:", "", *_markdown_table(cell_headings(study), cell_rows(study, table)), ""]
    lines += ["What was run:", "", *(f"- {name}: {value}" for name, value in facts(study, table))]
    return "\n".join(lines) + "\n"


def html(study: Study, table: Table, out: Path) -> str:
    """The page: scores, what they show, cost, pictures, and what was run."""
    return fill_template(
        "study.html",
        package="pantomim.study",
        title=title(table),
        table=table,
        notes=notes(table),
        headings=["", *map(heading, table.metrics)],
        scores=score_rows(table),
        best=best_arms(table),
        reading=reading(table),
        differences=difference_rows(table),
        findings=findings(table),
        contrasts=contrast_rows(table),
        contrast_findings=contrast_findings(table),
        groups=group_tables(table),
        group_headings=GROUP_HEADINGS,
        helper_headings=HELPER_HEADINGS,
        helpers=helper_rows(table),
        aligned=aligned_pictures(study, out),
        blocks=block_charts(study, out),
        cost_headings=COST_HEADINGS,
        costs=cost_rows(table),
        mask_headings=MASK_HEADINGS,
        masks=mask_rows(table),
        pictures=arm_pictures(study, out),
        cell_headings=cell_headings(study),
        cells=cell_rows(study, table),
        facts=facts(study, table),
        arms=[(arm, _yaml(settings)) for arm, settings in arm_settings(study).items()],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=next(
            (found["packages"].get("pantomim", "") for found in table.environments if "packages" in found), ""
        ),
        folder=str(out),
    )


def title(table: Table) -> str:
    """Plan and scale."""
    return f"Study {table.study}" + (f", scale {table.scale}" if table.scale else "")


def notes(table: Table) -> list[str]:
    """What is missing: cells, and evaluations that were left out."""
    found = []
    for state in ("failed", "begun", "not begun"):
        cells = [cell for cell in table.cells if cell.state == state]
        if cells:
            named = ", ".join(cell.name + (f" ({cell.error})" if cell.error else "") for cell in cells)
            word = {"failed": "failed", "begun": "begun, not finished", "not begun": "not begun"}[state]
            found.append(f"{len(cells)} of {len(table.cells)} cells {word}: {named}.")
    for name in dict.fromkeys(name for cell in table.cells for name in cell.lacks):
        waiting = [cell.name for cell in table.cells if name in cell.lacks]
        found.append(f"{name} failed, and its run is needed by {', '.join(waiting)}.")
    found += table.warnings
    if table.without:
        found.append(f"Left out on purpose: {', '.join(table.without)}.")
    return found


def reading(table: Table) -> str:
    """How to read the numbers."""
    seeds = ", ".join(map(str, table.seeds))
    return (
        f"Mean ± standard deviation over the seeds {seeds}; n where some are missing. Shares in percent. Differences "
        f"to {table.reference} are taken seed by seed, in percentage points where scores are in percent. A difference "
        f"counts as above or below only if its 95 % interval by Student's t leaves out zero; intervals are not "
        f"corrected for the number of comparisons."
    )


def score_rows(table: Table) -> list[list[str]]:
    """Name and scores of every row."""
    return [
        [row.name, *(show(row.scores[metric], metric, row.planned) for metric in table.metrics)] for row in table.rows
    ]


def best_arms(table: Table) -> list[tuple[int, int]]:
    """The places of the best means among the arms, as (row, column); headings do not count, names do.

    Only of scores: of losses, differences and the like no end is the best.
    """
    places = []
    for column, metric in enumerate(table.metrics, 1):
        if not is_share(metric) or len(parts(metric)) > 1:
            continue
        means = {
            index: spread.mean
            for index, row in enumerate(table.rows)
            if not row.baseline and (spread := row.scores[metric]) is not None
        }
        if len(means) > 1:
            places.append((max(means, key=lambda index: means[index]), column))
    return places


def difference_rows(table: Table) -> list[list[str]]:
    """Name and differences of every row but the reference."""
    return [
        [row.name, *(show_difference(row.differences.get(metric), metric) for metric in table.metrics)]
        for row in table.rows
        if row.baseline or row.arm != table.reference
    ]


def contrast_rows(table: Table) -> list[list[str]]:
    """Name and differences of every contrast."""
    return [
        [
            contrast.name.replace(" - ", " − "),
            *(show_difference(contrast.differences[metric], metric) for metric in table.metrics),
        ]
        for contrast in table.contrasts
    ]


def group_tables(table: Table) -> list[tuple[str, list[list[str]]]]:
    """For every column, in words, how far the arms of each group differ; none without groups."""
    found = []
    for metric in table.metrics if table.groups else ():
        scale = 100.0 if is_share(metric) else 1.0
        rows = []
        for group in table.groups:
            among = group.columns[metric]
            row = [group.name, ", ".join(group.arms)]
            if among is None:
                rows.append([*row, "–", "–", "–", "–"])
                continue
            digits = ".1f" if is_share(metric) else ".3g"
            row += [_plain(spread, scale, digits) for spread in (among.mean, among.range)]
            digits = ".2f" if is_share(metric) else ".3g"
            rows.append([*row, _plain(among.deviation, scale, digits), _plain(among.variance, scale**2, digits)])
        found.append((heading(metric), rows))
    return found


def helper_rows(table: Table) -> list[list[str]]:
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


def cost_rows(table: Table) -> list[list[str]]:
    """What a run of each arm costs."""
    reference = next(row.costs["s_per_step"] for row in table.rows if row.arm == table.reference and not row.baseline)
    return [
        [
            row.name,
            _plain(row.costs["s_per_step"], 1000.0, ".1f"),
            _ratio(row.costs["s_per_step"], reference),
            _plain(row.costs["images_per_s"], 1.0, ",.0f"),
            _time(row.costs["pretrain_s"]),
            _time(row.costs["evaluate_s"]),
        ]
        for row in table.rows
        if not row.baseline
    ]


def cell_headings(study: Study) -> list[str]:
    """Of the list of cells: what each evaluation took has a column of its own."""
    return ["", "state", "ms a step", "pre-training (s)", *(f"{name} (s)" for name in study.evaluations)]


def cell_rows(study: Study, table: Table) -> list[list[str]]:
    """Name, state and cost of every cell."""
    return [
        [
            cell.name,
            cell.state,
            _number(cell.s_per_step, 1000.0),
            _number(cell.pretrain_s),
            *(_number(cell.evaluate_s.get(name)) for name in study.evaluations),
        ]
        for cell in table.cells
    ]


def mask_rows(table: Table) -> list[list[str]]:
    """What each arm hides; empty if no arm says so."""
    return [
        [
            row.name,
            f"{100 * row.masks['ratio']:.1f}",
            f"{row.masks['clusters']:.1f}",
            f"{row.masks['neighbours']:.2f}",
            f"{row.masks['distance']:.2f}",
        ]
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
        packages = environment.get("packages", {})
        versions = [f"{name} {packages[name]}" for name in ("pantomim", "torch", "timm") if name in packages]
        found.append(("Versions", ", ".join([*versions, f"Python {environment.get('python', '?')}"])))
        found.append(("Commit", str(environment.get("git") or "not known")))
        hardware = [environment.get("gpu"), environment.get("cpu")]
        cores = f"{environment.get('cores')} cores, {environment.get('threads')} threads"
        precision = str(environment.get("precision"))
        found.append(("Hardware", ", ".join([*(str(part) for part in hardware if part), cores, precision])))
    return found


def arm_pictures(study: Study, out: Path) -> Pictures | None:
    """The pictures of the first seed of every arm that has them; None if none has."""
    arms, captions = {}, {}
    for cell in study.cells:
        if cell.pictures and (cell_folder(cell, out) / "config.yaml").is_file():
            pictures = read_run(cell_folder(cell, out)).pictures
            if pictures is not None:
                arms[cell.arm] = triplets(pictures)
                captions[cell.arm] = str(pictures.about.get("caption", ""))
    if not arms:
        return None
    agreed = len(set(captions.values())) == 1
    told = list(captions.values())[:1] if agreed else [f"{arm}: {caption}" for arm, caption in captions.items()]
    return Pictures(study.seeds[0], arms, told)


def aligned_pictures(study: Study, out: Path) -> Aligned | None:
    """What the decoders of CAE's arms make of the same images without the regressor; None if no arm has pictures."""
    found = {
        cell.arm: alignment
        for cell in study.cells
        if cell.pictures
        and (cell_folder(cell, out) / "config.yaml").is_file()
        and (alignment := read_run(cell_folder(cell, out)).alignment) is not None
    }
    if not found:
        return None
    first = next(iter(found.values()))
    known = {title: (title, "", shown) for alignment in found.values() for title, _, shown in alignment.rows[1:-1]}
    arms = [(arm, *alignment.rows[-1][1:]) for arm, alignment in found.items()]
    rows = [("original", "", first.rows[0][2]), *known.values(), *arms]
    shown = [(title, text, [png(picture) for picture in pictures]) for title, text, pictures in rows]
    return Aligned(first.items, shown, first.caption)


def block_charts(study: Study, out: Path) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """By analysis, a chart for each group of arms (one for all arms, where there are no groups): a line an arm.

    Of the first seed of each arm, as far as it has been looked at.
    """
    groups = study.plan.compare.groups or {"": study.arms}
    charts = []
    for name, (title, y_label, curve) in CURVES.items():
        paths = {arm: analysis_paths(study.of(arm)[0], out).get(name) for arm in study.arms}
        lines = {arm: curve(read_block_facts(path)) for arm, path in paths.items() if path and path.is_file()}
        if not lines:
            continue
        highest = max(values.max() for values in lines.values())
        shown = [
            (
                group,
                arms_chart({arm: lines[arm] for arm in arms if arm in lines}, highest, y_label, f"{title}, {group}"),
            )
            for group, arms in groups.items()
            if any(arm in lines for arm in arms)
        ]
        charts.append((title, shown))
    return charts


def arm_settings(study: Study) -> dict[str, Overrides]:
    """What each arm changes, at the scale of the study."""
    at = study.plan.scales[study.scale].arms if study.scale else {}
    return {arm: merge(settings, at.get(arm, {})) for arm, settings in study.plan.arm_overrides.items()}


def _by_arm(texts: dict[str, str]) -> str:
    """One text where all arms agree, else each with its arms."""
    different = list(dict.fromkeys(texts.values()))
    if len(different) == 1:
        return different[0]
    return "; ".join(f"{', '.join(arm for arm in texts if texts[arm] == text)}: {text}" for text in different)


def _markdown_table(headings: tuple[str, ...] | list[str], rows: list[list[str]]) -> list[str]:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _plain(spread: Spread | None, scale: float, digits: str) -> str:
    if spread is None:
        return "–"
    text = f"{scale * spread.mean:{digits}}"
    return text if spread.deviation is None else f"{text} ± {scale * spread.deviation:{digits}}"


def _number(value: float | None, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:,.1f}"


def _ratio(spread: Spread | None, reference: Spread | None) -> str:
    return "–" if spread is None or reference is None else f"×{spread.mean / reference.mean:.2f}"


def _time(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return duration(spread.mean) + ("" if spread.deviation is None else f" ± {duration(spread.deviation)}")


def _yaml(overrides: dict[str, object]) -> str:
    return yaml.safe_dump(overrides, sort_keys=False).strip() if overrides else "nothing: the recipe as it is"
