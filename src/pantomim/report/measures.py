"""Scores of several arms, each of one run or of runs that differ in the seed alone: read, ranked, put into words."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pantomim.report.charts import Chart, Dots, dots_chart
from pantomim.report.folder import RunFolder, look_up
from pantomim.report.page import FIGURES, logged
from pantomim.report.scores import (
    CONTENDERS,
    NO_BREAK_SPACE,
    RIVALS,
    Result,
    Score,
    draw_variance,
    image_variance,
    noise,
    points,
    reach,
    read_results,
)
from pantomim.report.spread import Spread, difference, show_plain

MOST_NAMED = 3  # arms in a sentence
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
    rivals: dict[str, dict[int, list[Score]]] = field(default_factory=dict)  # by arm; of networks of several sizes

    @cached_property
    def spreads(self) -> dict[int, Spread]:
        """By arm."""
        found = {arm: Spread.of({seed: each.value for seed, each in of.items()}) for arm, of in self.scores.items()}
        return {arm: spread for arm, spread in found.items() if spread is not None}

    def text(self, spread: Spread | None) -> str:
        """Mean and std."""
        words = show_plain(spread, *((".1f", 100.0) if self.share else (".3g", 1.0)))
        return f"{words}{NO_BREAK_SPACE}%" if self.share and spread is not None else words

    def half(self, arm: int) -> float | None:
        """Half of the interval of an arm's mean: over its seeds or, of a single run, over test images and draws."""
        if (half := self.spreads[arm].half_width) is not None:
            return half
        (score,) = self.scores[arm].values()
        sampled, drawn = image_variance(score, self.num_images), draw_variance(score)
        return reach(([] if sampled is None else [(sampled, math.inf)]) + ([] if drawn is None else [drawn]))

    def gap(self, one: int, other: int) -> tuple[float, float | None, str]:
        """The difference of two arms, half of its 95 % interval where there is one, and what that is over."""
        ours, theirs = self.spreads[one], self.spreads[other]
        if (paired := difference(ours, theirs)) is not None and paired.std is not None:
            return paired.mean, paired.half_width, f"paired over {len(paired.by_seed)} seeds"
        apart, single = ours.mean - theirs.mean, len(ours.by_seed) == len(theirs.by_seed) == 1
        if single and self.share:
            pair = (next(iter(self.scores[one].values())), next(iter(self.scores[other].values())))
            return apart, noise(pair, self.num_images), "one run each: over test images, not over seeds"
        widths = [(spread.half_width, math.sqrt(len(spread.by_seed))) for spread in (ours, theirs)]
        far = max((half * root for half, root in widths if half is not None), default=None)  # of a further seed
        half = None if far is None else math.hypot(*(far if half is None else half for half, _ in widths))
        return apart, half, "not the same seeds"

    def is_ahead(self, one: int, other: int) -> bool:
        """Whether an arm is better than another beyond chance."""
        apart, half, _ = self.gap(one, other)
        return half is not None and self.better * apart > half and (not self.share or round(abs(apart), 3) > 0)

    def finding(self, names: Sequence[str]) -> str:
        """Which arm is ahead, in one or two sentences."""
        best, *rest = sorted(self.spreads, key=lambda arm: -(self.better or 1) * self.spreads[arm].mean)
        name, score = names[best], self.text(self.spreads[best])
        if not rest:
            return f"{self.heading}: only {name} has it, {score}.{self._unbeaten(best)}"
        beaten = [arm for arm in rest if self.is_ahead(best, arm)]
        if unsure := [arm for arm in rest if arm not in beaten]:
            apart, half, how = self.gap(best, unsure[0])
            over = how if half is not None else "nothing says what can be chance"
            also = f" It is ahead of {listed([names[arm] for arm in beaten])}." if beaten else ""
            return (
                f"{self.heading}: {name} is best with {score}, but cannot be told apart from "
                f"{listed([f'{names[arm]} ({self.text(self.spreads[arm])})' for arm in unsure])} "
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
            f"{names[rest[0]]} (95 % interval {ends}; {how}){more}.{self._unbeaten(best)}"
        )

    def baselines(self, who: str) -> dict[int, Spread]:
        """A rival's scores, by arm."""
        found = {arm: Spread.of(dict(enumerate(each.value for each in of))) for arm, of in self.rivals[who].items()}
        return {arm: spread for arm, spread in found.items() if spread is not None}

    def baseline(self, who: str) -> tuple[str, float | None]:
        """A rival's score in words, and its mean, if all arms have the same one: from the lowest to the highest."""
        found = sorted(self.baselines(who).values(), key=lambda of: of.mean) if who in self.rivals else []
        if not found or round(found[-1].mean - found[0].mean, 3) == 0:
            most = max(found, key=lambda of: len(of.by_seed), default=None)
            return self.text(most), None if most is None else most.mean
        return f"{self.text(found[0])} to {self.text(found[-1])}", None

    def _unbeaten(self, best: int) -> str:
        """Baselines that the best arm does not reach, its own where it has one, as a sentence."""
        found = {who: self.baselines(who) for who in self.rivals}
        means = {who: of.get(best, next(iter(of.values()), None)) for who, of in found.items()}
        above = [
            f"{RIVALS.get(who, who)} ({self.text(mean)})"
            for who, mean in means.items()
            if mean is not None and mean.mean >= self.spreads[best].mean
        ]
        return f" None is above {' or '.join(above)}." if above else ""

    def rows(self, names: Sequence[str]) -> list[Dots]:
        """Arms in the order of the page, then baselines."""
        scale = 100.0 if self.share else 1.0
        rows = []
        for arm, spread in sorted(self.spreads.items()):
            half = self.half(arm)
            values = [scale * value for value in spread.by_seed.values()]
            rows.append(Dots(names[arm], arm, values, None if half is None else scale * half))
        rows += [
            Dots(CONTENDERS.get(who, who), None, sorted({scale * each.value for of in found.values() for each in of}))
            for who, found in self.rivals.items()
        ]
        return rows


def read_measures(arms: Sequence[Arm], losses_compare: bool = False) -> Iterator[Measure]:
    """Scores, those that most arms have first; then figures without labels and, where these compare, losses."""
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
                        measure.rivals.setdefault(who, {}).setdefault(number, []).append(rival)
    for (heading, how), measure in sorted(found.items(), key=lambda item: -len(item[1].scores)):
        others = [dict(other) for name, other in found if name == heading]
        apart = [name for name, value in how if any(other.get(name) != value for other in others)]
        words = ", ".join(f"{name.rpartition('.')[2]} {str(dict(how)[name])[:12]}" for name in apart)
        yield replace(measure, heading=f"{heading} ({words})") if words else measure
    yield from _figures(arms)
    scores: dict[int, dict[int, Score]] = {}
    for number, arm in enumerate(arms if losses_compare else ()):
        done = {seed: run.metrics for seed, run in arm.runs.items() if run.finished}
        logs = {seed: metrics for seed, metrics in done.items() if metrics.has("held_out_loss")}
        for seed, metrics in logs.items():
            scores.setdefault(number, {})[seed] = Score(float(logged(metrics, "held_out_loss")[1][-1]))
    if scores:
        yield Measure("Loss on held-out images", share=False, better=-1, scores=scores)


def _figures(arms: Sequence[Arm]) -> Iterator[Measure]:
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


def score_chart(measure: Measure, names: Sequence[str], *, numbered: bool = False) -> Chart:
    """A row of dots an arm."""
    chart = dots_chart(measure.rows(names), "%" * measure.share, measure.heading, numbered=numbered)
    return Chart(measure.heading, chart)


def _how(result: Result) -> tuple[tuple[str, str], ...]:
    """What else must agree for scores to be comparable."""
    exact = ["data.num_test", "data.test_split", "labels_per_class"]
    exact += [f"data.key.{part}{of}" for part in ("", "test.") for of in ("identity", "mask_files")]
    found = {k: v for k, v in result.details.items() if k in exact or k.startswith("settings.")}
    found.pop("settings.against", None)  # what else was compared changes no score
    return tuple(sorted(found.items()))


def score_rows(names: Sequence[str], measures: Sequence[Measure]) -> tuple[Rows, list[tuple[int, int]]]:
    """A row an arm or baseline, a column a score, the headings first; the places of the best means of each column."""
    rows = [["", *(measure.heading for measure in measures)]]
    rows += [[name, *(m.text(m.spreads.get(number)) for m in measures)] for number, name in enumerate(names)]
    best = []
    means = [{number: spread.mean for number, spread in measure.spreads.items()} for measure in measures]
    for who in RIVALS:
        of = [measure.baseline(who) for measure in measures]
        if any(who in measure.rivals for measure in measures):
            place = len(rows) - 1
            rows.append([CONTENDERS[who], *(words for words, _ in of)])
            for column, (_, mean) in enumerate(of):
                means[column] |= {place: mean} if mean is not None else {}
    for column, (measure, found) in enumerate(zip(measures, means, strict=True), 1):
        if measure.better and len(found) > 1:
            best.append((max(found, key=lambda row: measure.better * found[row]), column))
    return rows, best


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    if more > 1:
        return f"{', '.join(names[:MOST_NAMED])} and {more} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
