"""One page about several runs, made from their folders: who is ahead, curves, scores, pictures, what differs, cost.

Runs that differ in their seed alone are one arm. Every sentence follows from the numbers.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pantomim.config import leaves
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, Curve, arm_style, runs_chart
from pantomim.report.folder import RunFolder, Triplets, look_up, read_run
from pantomim.report.html import fill_template, surroundings, text_of
from pantomim.report.measures import Arm, Measure, Rows, listed, read_measures, score_chart, score_rows
from pantomim.report.page import CURVES, logged, measured, source_name, target_moves, total_seconds, warnings
from pantomim.report.scores import read_results, verdict
from pantomim.report.spread import ABSENT, show_plain
from pantomim.report.stages import is_chain, stage_folders

MOST_FIELDS = 20  # of the config that are shown at once
DRAWN = ("loss", "held_out_loss", "held_out_rankme")
# Losses of runs that differ in nothing else are of one task.
SAME_TASK: tuple[str, ...] = ("recipe", "method.decoder", "optim", "batch_size", "duration", "runtime", "init")
SAME_TASK += ("method.encoder.width", "method.encoder.depth", "method.encoder.heads", "method.encoder.drop")


def make_comparison(arms: Sequence[Arm], out: Path, drawn: Mapping[Path, Triplets], notes: Sequence[str] = ()) -> Path:
    """Write the page; `drawn` are reconstructions of the same images, by run, and `notes` what else is to be known."""
    replace_file(out, render(arms, notes, drawn).encode(errors="replace"))
    return out


def read_arms(runs: Sequence[Path]) -> tuple[list[Arm], list[str]]:
    """The runs as arms, in the order in which they are named, and what is to be known of them."""
    notes, groups, given = [], list[dict[int, RunFolder]](), set[Path]()
    if not runs:
        raise ValueError("compare.runs must name run folders; got none. Add some, such as runs/first runs/second.")
    for path in runs:
        path = path if path.name not in ("", "..") else path.resolve()
        if is_chain(path):
            stages = stage_folders(path)
            notes.append(f"{path.name} is a chain of runs: its stage {len(stages) - 1} is compared.")
            path = stages[-1] if stages else path
        if path.resolve() in given:  # named twice
            continue
        given.add(path.resolve())
        run = read_run(path)
        seed, rest = look_up(run.config, "runtime.seed", 0), _without_seed(run)
        home = next((of for of in groups if seed not in of and _without_seed(next(iter(of.values()))) == rest), None)
        if home is None:
            groups.append(home := {})
        home[seed] = run
    names = _names([[run.path for run in of.values()] for of in groups])
    return [Arm(name, dict(sorted(of.items()))) for name, of in zip(names, groups, strict=True)], notes


def render(arms: Sequence[Arm], notes: Sequence[str], drawn: Mapping[Path, Triplets]) -> str:
    """The page as HTML."""
    measures = list(read_measures(arms, same_task(arms)))
    first, names = lead(arms, measures), [arm.name for arm in arms]
    found = [measure.finding(names) for measure in measures if measure.main and measure.better]
    folders = {arm.name: drawn[run.path] for arm in arms for run in arm.runs.values() if run.path in drawn}
    shown = {name: found.entries for name, found in folders.items()}
    runs = [run for arm in arms for run in arm.runs.values()]
    told = [f"{run.path.name}: {each}" for run in runs for each in warnings(run, read_results(run.evaluations))]
    return fill_template(
        "compare.html",
        title=f"{len(runs)} runs compared" if len(runs) > 1 else f"{arms[0].name} by itself",
        lead=first,
        notes=[*notes, *told],
        overview=[[_chip(number, arm), *row] for number, (arm, row) in enumerate(zip(arms, states(arms), strict=True))],
        findings=[sentence for sentence in found if not first.startswith(sentence)],
        dots=[score_chart(measure, names, numbered=True) for measure in measures if measure.main],
        more=[score_chart(measure, names, numbered=True) for measure in measures if not measure.main],
        scores=score_rows(names, measures),
        every=[["arm", "run", "seed", "score", "value"], *every_score(arms, measures)],
        curves=[chart for name in DRAWN for chart in curves(arms, name)],
        same_task=same_task(arms),
        pictures=shown,
        picture_caption=" ".join(dict.fromkeys(str(found.about.get("caption", "")) for found in folders.values())),
        differences=[["", *names], *([name, *map(text_of, values)] for name, *values in differing(arms))],
        most_fields=MOST_FIELDS,
        costs=cost_rows(arms),
        seeded=any(len(arm.runs) > 1 for arm in arms),
        single=any(len(arm.runs) == 1 for arm in arms),
        folder=_shared_folder([run.path for run in runs]),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def lead(arms: Sequence[Arm], measures: Sequence[Measure]) -> str:
    """The finding of the page: of the score that most arms have, else of the held-out loss where it can be compared."""
    ranked, names = [measure for measure in measures if measure.main and measure.better], [arm.name for arm in arms]
    if len(arms) == 1:
        results = read_results(arms[0].first.evaluations)
        if len(arms[0].runs) == 1:
            return verdict(results[0]) if results else "One run without a score: there is nothing to compare yet."
        return ranked[0].finding(names) if ranked else "One arm without a score: there is nothing to compare yet."
    if not ranked:
        why = "no loss on held-out images, either" if same_task(arms) else "their losses are of different tasks"
        return f"Who is ahead cannot be said: no score is on record for these runs, and {why}. Evaluate them."
    best = max(ranked, key=lambda measure: (measure.share, len(measure.spreads)))
    without = [arm.name for number, arm in enumerate(arms) if number not in best.spreads]
    return best.finding(names) + (f" Without this score: {listed(without)}." if without else "")


def curves(arms: Sequence[Arm], name: str) -> Iterator[Chart]:
    """A quantity over images seen and over wall time, of all runs that logged it."""
    heading, y_label, options = CURVES.get(name, ("Loss on held-out images", "loss", {}))
    runs = [(number, run) for number, arm in enumerate(arms) for run in arm.runs.values() if run.metrics.has(name)]
    longest = max((total_seconds(run) or 0.0 for _, run in runs), default=0.0)
    unit, seconds = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)
    for x_label, column, scale in (("images seen", None, 1.0), (f"wall time ({unit})", "time_s", seconds)):
        shown = []
        for number, run in runs:
            steps, values = logged(run.metrics, name)
            batch = run.config.get("batch_size")
            at = run.metrics.columns.get(column) if column else run.metrics.steps * batch if batch else None
            if at is not None:
                at = at[np.isin(run.metrics.steps, steps)] / scale
                there = np.isfinite(at) & np.isfinite(values)
                if there.any():
                    curve = Curve(arms[number].name, y_label, at[there], values[there], x_label=x_label, **options)
                    shown.append((number, curve))
        if shown:
            title = f"{heading} over {x_label}"
            yield Chart(title, runs_chart(shown, f"{title}. {' '.join(str(curve) for _, curve in shown)}"))


def same_task(arms: Sequence[Arm]) -> bool:
    """Whether losses of all arms are of one task, so that they can be compared."""
    fixed = not any(target_moves(arm.first.config) for arm in arms)
    return fixed and all(name.startswith(SAME_TASK) for name, *_ in differing(arms))


def differing(arms: Sequence[Arm]) -> list[list[Any]]:
    """The fields of the config that are not the same in all arms, each with the value in every arm."""
    flat = [leaves(_without_seed(arm.first)) for arm in arms]
    names = dict.fromkeys(name for each in flat for name in each)
    rows = [[name, *(each.get(name) for each in flat)] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def cost_rows(arms: Sequence[Arm]) -> Rows:
    """What a run of each arm took; mean and std over its seeds."""
    rows = [["", "images seen", "wall time (min)", "images/s", "parameters (M)", "hardware"]]
    for arm in arms:
        seen = arm.spread(_seen)
        minutes = arm.spread(lambda run: None if (total := total_seconds(run)) is None else total / 60)
        speed = arm.spread(lambda run: measured(run, "images_per_s", "images_per_s", np.nanmedian))
        size = arm.spread(lambda run: run.num_parameters and run.num_parameters / 1e6)
        told = zip((seen, minutes, speed, size), (",.0f", ".3g", ",.0f", ".2f"), strict=True)
        hardware = dict.fromkeys(surroundings(run.environment).get("Hardware", ABSENT) for run in arm.runs.values())
        rows.append([arm.name, *(show_plain(spread, digits) for spread, digits in told), "; ".join(hardware)])
    shared = {row[-1] for row in rows[1:]}
    return [row[:-1] for row in rows] if len(shared) == 1 else rows


def every_score(arms: Sequence[Arm], measures: Sequence[Measure]) -> Iterator[list[str]]:
    """Each score of each run, unrounded."""
    for measure in measures:
        for number, of in measure.scores.items():
            for seed, score in of.items():
                run = str(arms[number].runs[seed].path)
                yield [arms[number].name, run, str(seed), measure.heading, str(score.value)]


def states(arms: Sequence[Arm]) -> Iterator[list[str]]:
    """Of each arm its seeds, what it is, how far it came, and how many evaluations it has."""
    for arm in arms:
        told = []
        for run in arm.runs.values():
            steps = int(run.metrics.steps[-1]) if len(run.metrics.steps) else 0
            planned = look_up(run.config, "duration.steps")
            of = f" of {planned:,}" if isinstance(planned, int) else ""
            told.append("finished" if run.finished else f"unfinished: step {steps:,}{of}")
        scored = sum(bool(run.evaluations) for run in arm.runs.values())
        evaluated = "none" if not scored else "" if scored == len(arm.runs) else f"{scored} of {len(arm.runs)} runs"
        evaluated = evaluated or ", ".join(dict.fromkeys(map(str, arm.first.evaluations)))
        recipe = f"{arm.first.config.get('recipe', '?')} on {source_name(arm.first)}"
        yield [", ".join(map(str, arm.runs)), recipe, ", ".join(dict.fromkeys(told)), evaluated]


def _chip(number: int, arm: Arm) -> Markup:
    """The number and the name of an arm, with a stroke of its line."""
    stroke = f'<path class="arm" style="{arm_style(number)}" d="M1 5H27"/>'
    picture = f'<svg class="chip" viewBox="0 0 28 10" aria-hidden="true">{stroke}</svg>'
    return Markup("{} {} {}").format(Markup(picture), number + 1, arm.name)


def _without_seed(run: RunFolder) -> dict[str, Any]:
    runtime = {name: value for name, value in look_up(run.config, "runtime", {}).items() if name != "seed"}
    return run.config | {"runtime": runtime}


def _names(paths: Sequence[Sequence[Path]]) -> list[str]:
    """What tells arms apart: the name of the folder, with those above as it takes; of several their start."""
    every = [path for of in paths for path in of]
    depth = next(n for n in range(1, 99) if len({path.parts[-n:] for path in every}) == len(every))
    labels = [["/".join(path.parts[-max(depth, 1 + path.name.startswith("stage-")) :]) for path in of] for of in paths]
    starts = [os.path.commonprefix(of) for of in labels]  # noqa: RUF071 - of words, not of paths
    shared = [re.sub(r"[-_./ ]*(s|seed)?[-_./ ]*$", "", start) for start in starts]
    return [
        of[0] if len(of) == 1 else start if start and shared.count(start) == 1 else f"{of[0]} and {len(of) - 1} more"
        for of, start in zip(labels, shared, strict=True)
    ]


def _shared_folder(paths: Sequence[Path]) -> str:
    """Where runs lie, as seen from here if it is below."""
    shared, here = Path(os.path.commonpath([path.resolve() for path in paths])), Path.cwd()
    return str(shared.relative_to(here) if shared.is_relative_to(here) and shared != here else shared)


def _seen(run: RunFolder) -> int | None:
    batch, steps = run.config.get("batch_size"), run.metrics.steps
    return int(steps[-1]) * batch if batch and len(steps) else None
