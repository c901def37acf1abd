"""One page about several runs, made from their folders: who is ahead, curves, scores, pictures, what differs, cost.

Runs that differ in their seed alone are one arm. Every sentence follows from the numbers.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.stats import ttest_ind

from pantomim.config import leaves
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, Curve, Dots, arm_style, dots_chart, runs_chart
from pantomim.report.folder import RunFolder, Triplets, look_up, read_run
from pantomim.report.html import fill_template, surroundings, text_of
from pantomim.report.page import CURVES, FIGURES, logged, measured, source_name, total_seconds, warnings
from pantomim.report.scores import (
    CONTENDERS,
    NO_BREAK_SPACE,
    NOISE_STDS,
    RIVALS,
    Result,
    Score,
    image_variance,
    noise,
    points,
    read_results,
    verdict,
)
from pantomim.report.spread import ABSENT, CONFIDENCE, Spread, difference, show_plain
from pantomim.report.stages import is_chain, stage_folders

MOST_NAMED = 3  # arms in a sentence
MOST_FIELDS = 20  # of the config that are shown at once
DRAWN = ("loss", "held_out_loss", "held_out_rankme")
# Where one of these differs, losses are of different tasks.
TASK = ("method.kind", "method.target", "method.masker", "method.tokenizer", "method.teacher", "data.source")
Rows = list[list[str]]


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed alone."""

    name: str
    runs: dict[int, RunFolder]  # by seed

    @property
    def first(self) -> RunFolder:
        """The run that stands for all."""
        return next(iter(self.runs.values()))

    def spread(self, number: Any) -> Spread | None:
        """A number of each run, where it has one."""
        found = {seed: number(run) for seed, run in self.runs.items()}
        return Spread.of({seed: float(value) for seed, value in found.items() if value is not None})


@dataclass(frozen=True)
class Measure:
    """A number that some of the arms have, measured in the same way."""

    heading: str
    share: bool = True
    main: bool = True  # whether it stands for its evaluation
    better: int = 1  # 1: the higher the better; -1: the lower; 0: neither
    num_images: int | None = None
    scores: dict[int, dict[int, Score]] = field(default_factory=dict)  # by arm and seed
    rivals: dict[str, list[Score]] = field(default_factory=dict)

    @cached_property
    def spreads(self) -> dict[int, Spread]:
        """By arm."""
        found = {arm: Spread.of({seed: each.value for seed, each in of.items()}) for arm, of in self.scores.items()}
        return {arm: spread for arm, spread in found.items() if spread is not None}

    @property
    def ranked(self) -> list[int]:
        """The arms, the best first."""
        return sorted(self.spreads, key=lambda arm: -(self.better or 1) * self.spreads[arm].mean)

    def text(self, spread: Spread | None) -> str:
        """Mean and std."""
        words = show_plain(spread, *((".1f", 100.0) if self.share else (".3g", 1.0)))
        return f"{words}{NO_BREAK_SPACE}%" if self.share and spread is not None else words

    def half(self, arm: int) -> float | None:
        """Half of the interval of an arm's mean: over its seeds or, of a single run, over test images and draws."""
        if (half := self.spreads[arm].half_width) is not None:
            return half
        (score,) = self.scores[arm].values()
        parts = [image_variance(score, self.num_images), score.std and score.std**2 / max(len(score.draws), 1)]
        known = [part for part in parts if part is not None]
        return NOISE_STDS * math.sqrt(sum(known)) if known else None

    def gap(self, one: int, other: int) -> tuple[float, float | None, str]:
        """The difference of two arms, half of its 95 % interval where there is one, and what that is over."""
        ours, theirs = self.spreads[one], self.spreads[other]
        if (paired := difference(ours, theirs)) is not None and paired.std is not None:
            return paired.mean, paired.half_width, f"paired over {len(paired.by_seed)} seeds"
        apart = ours.mean - theirs.mean
        few, many = sorted((ours, theirs), key=lambda spread: len(spread.by_seed))
        count = len(many.by_seed)
        if len(few.by_seed) > 1:
            interval = ttest_ind(
                list(ours.by_seed.values()), list(theirs.by_seed.values()), equal_var=False
            ).confidence_interval(CONFIDENCE)
            return apart, float(interval.high - interval.low) / 2, "over different seeds"
        if many.half_width is not None:  # where a further run of several like it would land
            return apart, many.half_width * math.sqrt(count + 1), f"one run against the spread of {count}"
        pair = (next(iter(self.scores[one].values())), next(iter(self.scores[other].values())))
        half = noise(pair, self.num_images) if self.share else None
        return apart, half, "one run each: over test images, not over seeds"

    def is_ahead(self, one: int, other: int) -> bool:
        """Whether an arm is better than another beyond chance."""
        apart, half, _ = self.gap(one, other)
        return half is not None and self.better * apart > half and (not self.share or round(abs(apart), 3) > 0)

    def finding(self, arms: Sequence[Arm]) -> str:
        """Who is ahead, in one or two sentences."""
        best, *rest = self.ranked
        name, score = arms[best].name, self.text(self.spreads[best])
        if not rest:
            return f"{self.heading}: only {name} has it, {score}.{self._unbeaten(best)}"
        beaten = [arm for arm in rest if self.is_ahead(best, arm)]
        if unsure := [arm for arm in rest if arm not in beaten]:
            apart, half, how = self.gap(best, unsure[0])
            over = how if half is not None else "one run each, and nothing says what can be chance"
            also = f" It is ahead of {_listed([arms[arm].name for arm in beaten])}." if beaten else ""
            return (
                f"{self.heading}: {name} is best with {score}, but cannot be told apart from "
                f"{_listed([f'{arms[arm].name} ({self.text(self.spreads[arm])})' for arm in unsure])} "
                f"({over}).{also}{self._unbeaten(best)}"
            )
        apart, half, how = self.gap(best, rest[0])
        low, high = sorted(self.better * (apart + sign * (half or 0.0)) for sign in (-1, 1))
        size, ends = f"{abs(apart):.3g}", f"{low:.3g} to {high:.3g}"
        if self.share:
            size, ends = points(apart), f"{100 * low:.1f} to {100 * high:.1f}"
        more = f", and ahead of the other {len(rest) - 1}" if len(rest) > 1 else ""
        return (
            f"{self.heading}: {name} is ahead with {score}, {size} {'above' if apart > 0 else 'below'} "
            f"{arms[rest[0]].name} (95 % interval {ends}; {how}){more}.{self._unbeaten(best)}"
        )

    def _unbeaten(self, best: int) -> str:
        """Baselines that the best arm does not reach, as a sentence."""
        means = {who: Spread.of(dict(enumerate(score.value for score in found))) for who, found in self.rivals.items()}
        above = [
            f"{RIVALS[who]} ({self.text(mean)})"
            for who, mean in means.items()
            if mean is not None and mean.mean >= self.spreads[best].mean
        ]
        return f" No arm is above {' or '.join(above)}." if above else ""

    def rows(self, arms: Sequence[Arm]) -> list[Dots]:
        """Arms in the order of the page, then baselines."""
        scale = 100.0 if self.share else 1.0
        rows = []
        for arm, spread in sorted(self.spreads.items()):
            half = self.half(arm)
            values = [scale * value for value in spread.by_seed.values()]
            rows.append(Dots(arms[arm].name, arm, values, None if half is None else scale * half))
        rows += [
            Dots(CONTENDERS[who], None, sorted({scale * score.value for score in found}))
            for who, found in self.rivals.items()
        ]
        return rows


def make_comparison(arms: Sequence[Arm], out: Path, drawn: Mapping[Path, Triplets], notes: Sequence[str] = ()) -> Path:
    """Write the page; `drawn` are reconstructions of the same images, by run, and `notes` what else is to be known."""
    replace_file(out, render(arms, notes, drawn).encode(errors="replace"))
    return out


def read_arms(runs: Sequence[Path]) -> tuple[list[Arm], list[str]]:
    """The runs as arms, in the order in which they are named, and what is to be known of them."""
    notes, groups = [], list[dict[int, RunFolder]]()
    folders = list(dict.fromkeys(path.resolve() for path in runs))
    if not folders:
        raise ValueError("compare.runs must name run folders; got none. Add some, such as runs/first runs/second.")
    for path in folders:
        if is_chain(path):
            stages = stage_folders(path)
            notes.append(f"{path.name} is a chain of runs: its stage {len(stages) - 1} is compared.")
            path = stages[-1] if stages else path
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
    measures = list(read_measures(arms))
    first = lead(arms, measures)
    found = [measure.finding(arms) for measure in measures if measure.main and measure.better]
    folders = {arm.name: drawn[run.path] for arm in arms for run in arm.runs.values() if run.path in drawn}
    shown = {name: found.entries for name, found in folders.items()}
    told = [
        f"{run.path.name}: {warning}"
        for arm in arms
        for run in arm.runs.values()
        for warning in warnings(run, read_results(run.evaluations))
    ]
    count = sum(len(arm.runs) for arm in arms)
    return fill_template(
        "compare.html",
        title=f"{count} runs compared" if count > 1 else f"{arms[0].name} by itself",
        lead=first,
        notes=[*notes, *told],
        overview=[[_chip(number, arm), *row] for number, (arm, row) in enumerate(zip(arms, states(arms), strict=True))],
        findings=[sentence for sentence in found if not first.startswith(sentence)],
        dots=[_dots(measure, arms) for measure in measures if measure.main],
        more=[_dots(measure, arms) for measure in measures if not measure.main],
        scores=score_rows(arms, measures),
        every=[["arm", "run", "seed", "score", "value"], *every_score(arms, measures)],
        curves=[chart for name in DRAWN for chart in curves(arms, name)],
        same_task=same_task(arms),
        pictures=shown,
        picture_caption=" ".join(dict.fromkeys(str(found.about.get("caption", "")) for found in folders.values())),
        differences=config_rows(arms),
        most_fields=MOST_FIELDS,
        costs=cost_rows(arms),
        seeded=any(len(arm.runs) > 1 for arm in arms),
        single=any(len(arm.runs) == 1 for arm in arms),
        folder=os.path.commonpath([run.path for arm in arms for run in arm.runs.values()]),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def lead(arms: Sequence[Arm], measures: Sequence[Measure]) -> str:
    """The finding of the page: of the score that most arms have, else of the held-out loss where it can be compared."""
    ranked = [measure for measure in measures if measure.main and measure.better]
    if len(arms) == 1:
        results = read_results(arms[0].first.evaluations)
        if len(arms[0].runs) == 1:
            return verdict(results[0]) if results else "One run without a score: there is nothing to compare yet."
        return ranked[0].finding(arms) if ranked else "One arm without a score: there is nothing to compare yet."
    if not ranked:
        why = "no loss on held-out images, either" if same_task(arms) else "their losses are of different tasks"
        return f"Who is ahead cannot be said: no score is on record for these runs, and {why}. Evaluate them."
    best = max(ranked, key=lambda measure: (measure.share, len(measure.spreads)))
    without = [arm.name for number, arm in enumerate(arms) if number not in best.spreads]
    return best.finding(arms) + (f" Without this score: {_listed(without)}." if without else "")


def read_measures(arms: Sequence[Arm]) -> Iterator[Measure]:
    """Scores, those that most arms have first; then figures without labels, and the loss of the same task."""
    found: dict[tuple[Any, ...], Measure] = {}
    for number, arm in enumerate(arms):
        for seed, run in arm.runs.items():
            for result in read_results(run.evaluations):
                for row in result.main_rows if "trained" in result.headline.found else ():
                    if (score := row.found.get("trained")) is None:
                        continue
                    name = result.details.get("name", result.data)
                    key = (f"{result.protocol}, {row.label}, {name}", _how(result))
                    new = Measure(key[0], main=row is result.headline, num_images=result.images_of(row))
                    measure = found.setdefault(key, new)
                    measure.scores.setdefault(number, {})[seed] = score
                    for who, rival in row.rivals.items():
                        measure.rivals.setdefault(who, []).append(rival)
    for (heading, how), measure in sorted(found.items(), key=lambda item: -len(item[1].scores)):
        others = [dict(other) for name, other in found if name == heading]
        apart = [name for name, value in how if any(other.get(name) != value for other in others)]
        words = ", ".join(f"{name.rpartition('.')[2]} {str(dict(how)[name])[:12]}" for name in apart)
        yield replace(measure, heading=f"{heading} ({words})") if words else measure
    yield from _figures(arms)
    if same_task(arms):
        losses = {number: arm.spread(_held_out_loss) for number, arm in enumerate(arms)}
        scores = {n: {s: Score(v) for s, v in each.by_seed.items()} for n, each in losses.items() if each is not None}
        if scores:
            yield Measure("Loss on held-out images", share=False, better=-1, scores=scores)


def _figures(arms: Sequence[Arm]) -> Iterator[Measure]:
    """Figures of features that needed no labels, image sets apart."""
    found: dict[tuple[str, str], Measure] = {}
    for number, arm in enumerate(arms):
        for seed, run in arm.runs.items():
            for values in run.evaluations.values():
                for figure, words in FIGURES.items() if values.get("protocol") == "label-free" else ():
                    if isinstance(value := look_up(values, f"trained.{figure}"), float):
                        name = str(values.get("name", values.get("dataset", "")))
                        new = Measure(f"{words}, {name}", share=False, main=False, better=0)
                        found.setdefault((figure, name), new).scores.setdefault(number, {})[seed] = Score(value)
    yield from found.values()


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
    return not any(name.startswith(TASK) for name, *_ in differing(arms))


def differing(arms: Sequence[Arm]) -> list[list[Any]]:
    """The fields of the config that are not the same in all arms, each with the value in every arm."""
    flat = [leaves(_without_seed(arm.first)) for arm in arms]
    names = dict.fromkeys(name for each in flat for name in each)
    rows = [[name, *(each.get(name) for each in flat)] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def config_rows(arms: Sequence[Arm]) -> Rows:
    """The same for reading: a row a field, a column an arm, the headings first."""
    rows = [[name, *map(text_of, values)] for name, *values in differing(arms)]
    return [["", *(arm.name for arm in arms)], *rows]


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


def score_rows(arms: Sequence[Arm], measures: Sequence[Measure]) -> tuple[Rows, list[tuple[int, int]]]:
    """A row an arm or baseline, a column a score, the headings first; the places of the best means of each column."""
    rows = [["", *(measure.heading for measure in measures)]]
    rows += [[arm.name, *(m.text(m.spreads.get(number)) for m in measures)] for number, arm in enumerate(arms)]
    best = []
    means = [{number: spread.mean for number, spread in measure.spreads.items()} for measure in measures]
    for place, who in enumerate(RIVALS, len(arms)):
        of = [Spread.of(dict(enumerate(score.value for score in m.rivals.get(who, ())))) for m in measures]
        if any(of):
            rows.append([CONTENDERS[who], *(m.text(spread) for m, spread in zip(measures, of, strict=True))])
            for column, spread in enumerate(of):
                means[column] |= {place: spread.mean} if spread is not None else {}
    for column, (measure, found) in enumerate(zip(measures, means, strict=True), 1):
        if measure.better and len(found) > 1:
            best.append((max(found, key=lambda row: measure.better * found[row]), column))
    return rows, best


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


def _dots(measure: Measure, arms: Sequence[Arm]) -> Chart:
    return Chart(measure.heading, dots_chart(measure.rows(arms), "%" if measure.share else "", measure.heading))


def _chip(number: int, arm: Arm) -> Markup:
    """The number and the name of an arm, with a stroke of its line."""
    stroke = f'<path class="arm" style="{arm_style(number)}" d="M1 5H27"/>'
    picture = f'<svg class="chip" viewBox="0 0 28 10" aria-hidden="true">{stroke}</svg>'
    return Markup("{} {} {}").format(Markup(picture), number + 1, arm.name)


def _without_seed(run: RunFolder) -> dict[str, Any]:
    runtime = {name: value for name, value in look_up(run.config, "runtime", {}).items() if name != "seed"}
    return run.config | {"runtime": runtime}


def _names(paths: Sequence[Sequence[Path]]) -> list[str]:
    """What tells arms apart: the name of the folder, with as many of those above as it takes; of several their start."""
    every = [path for of in paths for path in of]
    depth = next(n for n in range(1, 99) if len({path.parts[-n:] for path in every}) == len(every))
    labels = [["/".join(path.parts[-depth:]) for path in of] for of in paths]
    starts = [os.path.commonprefix(of) for of in labels]  # noqa: RUF071 - of words, not of paths
    shared = [re.sub(r"[-_./ ]*(s|seed)?[-_./ ]*$", "", start) for start in starts]
    return [
        of[0] if len(of) == 1 else start if start and shared.count(start) == 1 else f"{of[0]} and {len(of) - 1} more"
        for of, start in zip(labels, shared, strict=True)
    ]


def _how(result: Result) -> tuple[tuple[str, str], ...]:
    """What else must agree for scores to be comparable."""
    exact = ("data.num_test", "data.test_split", "data.key.test.identity", "labels_per_class")
    found = {k: v for k, v in result.details.items() if k in exact or k.startswith("settings.")}
    return tuple(sorted(found.items()))


def _held_out_loss(run: RunFolder) -> float | None:
    return float(logged(run.metrics, "held_out_loss")[1][-1]) if run.metrics.has("held_out_loss") else None


def _seen(run: RunFolder) -> int | None:
    batch, steps = run.config.get("batch_size"), run.metrics.steps
    return int(steps[-1]) * batch if batch and len(steps) else None


def _listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    if more > 1:
        return f"{', '.join(names[:MOST_NAMED])} and {more} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
