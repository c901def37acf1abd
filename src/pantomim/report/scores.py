"""Evaluation results as tables and as sentences: the trained encoder beside the same one untrained and raw pixels.

Every sentence follows from the numbers: where the trained encoder is not ahead, it says so.
"""

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pantomim.config import leaves
from pantomim.core.intervals import half_interval
from pantomim.report.html import plus_minus

CONTENDERS = {"trained": "Trained encoder", "untrained": "Same encoder, untrained", "pixels": "Raw pixels"}
RIVALS = {"untrained": "the same encoder untrained", "pixels": "raw pixels"}  # in a sentence
PROTOCOLS = {
    "linear": "Linear probe",
    "linear-mae": "Linear probe (MAE's protocol)",
    "knn": "k-nearest neighbours",
    "attentive": "Attentive probe",
    "attentive-batch-statistics": "Attentive probe (test images normalised batch by batch)",
    "finetune": "Fine-tuning",
    "segmentation": "Linear segmentation",
}
METRICS = {
    "top1": "top-1 accuracy", "top5": "top-5 accuracy", "top1_per_class": "mean accuracy over classes",
    "by_k": "top-1 accuracy", "miou": "mean IoU", "iou": "IoU", "pixel_accuracy": "pixel accuracy",
    "class": "class token", "cls": "class token", "mean": "mean of patches",
}  # fmt: skip
SHARE = re.compile(r"(?:top\d+|miou|iou|accuracy|pixel_accuracy)(?:_.+)?|k\d+")
CHOICES = ("chosen", "validation")  # how a result came about: no score of its own
STD = re.compile(r"(.+)_(?:std|deviation)")
ERROR = re.compile(r"(.+)_error")  # standard error over test images, where the evaluation measured it
NUM_IMAGES = ("num_test", "num_test_images", "num_images", "test_images")  # of those that are scored
NOISE_STDS = 2.0
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Score:
    """A share, its std and each repetition where repeated; `error`: its standard error over draws of test images."""

    value: float
    std: float | None = None
    draws: tuple[float, ...] = ()
    error: float | None = None

    @property
    def text(self) -> str:
        """In percent, one decimal."""
        if not math.isfinite(self.value):
            return "not a number"
        return f"{plus_minus(self.value, self.std, '.1f', 100.0)} %".replace(" ", NO_BREAK_SPACE)

    @property
    def percent(self) -> float:
        """For the length of a bar: within 0 and 100."""
        return min(max(100 * self.value, 0.0), 100.0) if math.isfinite(self.value) else 0.0


@dataclass(frozen=True)
class Row:
    """One metric of all contenders; None where it was not measured."""

    metric: str
    label: str
    scores: dict[str, Score | None]

    @property
    def found(self) -> dict[str, Score]:
        """The scores that are numbers."""
        return {who: score for who, score in self.scores.items() if score and math.isfinite(score.value)}

    @property
    def best(self) -> set[str]:
        """Who is best as far as the printed digits tell; nobody if only one was measured."""
        printed = {who: round(score.value, 3) for who, score in self.found.items()}
        return {who for who, value in printed.items() if value == max(printed.values())} if len(printed) > 1 else set()

    @property
    def rivals(self) -> dict[str, Score]:
        """Whom the trained encoder has to beat."""
        return {who: score for who, score in self.found.items() if who != "trained"}

    @property
    def lead(self) -> float | None:
        """Trained minus the best other, as a share."""
        return min(map(self.ahead_of, self.rivals)) if "trained" in self.found and self.rivals else None

    def ahead_of(self, rival: str) -> float:
        """Trained minus this other, as a share."""
        return self.found["trained"].value - self.rivals[rival].value


@dataclass(frozen=True)
class Result:
    """One file of eval/; the first of its rows, one a metric, stands for the result."""

    stem: str  # its name without the ending
    protocol: str  # what was measured, in words
    data: str
    rows: list[Row]
    num_images: int | None  # how many were scored, if it says so
    details: dict[str, str]  # everything else in the file, flat

    @property
    def headline(self) -> Row:
        """The metric that stands for the result."""
        return self.rows[0]

    @property
    def main_rows(self) -> list[Row]:
        """The scores that stand on their own."""
        rows = [row for row in self.rows[1:] if "." not in row.metric and len(row.found) > 1]
        return [self.headline, *rows]

    @property
    def other_rows(self) -> list[Row]:
        """The scores behind them: every k, say."""
        return [row for row in self.rows if row not in self.main_rows]

    def noise(self, rival: str) -> float | None:
        """Differences of the headline to a rival up to this share can be chance; None if the file does not tell."""
        ours, theirs = self.headline.scores["trained"], self.headline.scores[rival]
        return None if ours is None or theirs is None else noise((ours, theirs), self.images_of(self.headline))

    def images_of(self, row: Row) -> int | None:
        """Of how many images a score is a share; a mean IoU is none."""
        return None if row.metric == "miou" else self.num_images

    @property
    def largest_noise(self) -> float | None:
        """The largest `noise` of the headline."""
        return max((noise for who in self.headline.rivals if (noise := self.noise(who)) is not None), default=None)

    def rank(self, rival: str) -> int:
        """1: the trained encoder is ahead of a rival; -1: behind; 0: the difference can be chance, or does not show."""
        lead = self.headline.ahead_of(rival)
        shows = abs(lead) > (self.noise(rival) or 0.0) and round(abs(lead), 3) > 0
        return (1 if lead > 0 else -1) if shows else 0

    @property
    def is_ahead(self) -> bool:
        """Whether the trained encoder is ahead of everyone it was compared with, beyond chance."""
        return self.headline.lead is not None and all(self.rank(who) > 0 for who in self.headline.rivals)

    def standing(self, rival: str) -> str:
        """How far above or below a rival the trained encoder is, in words."""
        lead, name = self.headline.ahead_of(rival), RIVALS[rival]
        apart = f"{points(lead)} {'above' if lead > 0 else 'below'}"
        return f"{apart} {name}" if round(abs(lead), 3) else f"level with {name}"


def noise(pair: tuple[Score, Score], num_images: int | None) -> float | None:
    """Differences of two scores of the same images up to this share can be chance; None if that is not known.

    Half of a 95 % interval of the difference, from the test images (by the standard errors that the file gives, or
    by their number) and from the repetitions, paired where they can be. Scores on the same images vary together, so
    the former errs on the side of caution.
    """
    ours, theirs = pair
    sampled = [variance for score in pair if (variance := image_variance(score, num_images)) is not None]
    parts = [(sum(sampled), math.inf)] if len(sampled) == len(pair) else []
    if len(ours.draws) == len(theirs.draws) > 1:
        differences = [a - b for a, b in zip(ours.draws, theirs.draws, strict=True)]
        parts.append((statistics.variance(differences) / len(differences), len(differences) - 1))
    else:
        parts += [part for score in pair if (part := draw_variance(score)) is not None]
    return reach(parts)


def reach(parts: Sequence[tuple[float, float]]) -> float | None:
    """As `half_interval`, at least two standard deviations; None of none."""
    return max(NOISE_STDS * math.sqrt(sum(part for part, _ in parts)), half_interval(parts)) if parts else None


def draw_variance(score: Score) -> tuple[float, float] | None:
    """Of the mean of a score over its repetitions, and its degrees of freedom; of one by itself where it tells none."""
    if score.std is None:
        return None
    count = len(score.draws)
    return (score.std**2 / count, count - 1) if count > 1 else (score.std**2, math.inf)


def image_variance(score: Score, num_images: int | None) -> float | None:
    """Of a score over draws of the test images, from its standard error, else from their number."""
    if score.error is not None:
        return score.error**2
    share = min(max(score.value, 0.0), 1.0)
    return share * (1 - share) / num_images if num_images else None


def read_results(evaluations: dict[str, dict[str, Any]]) -> list[Result]:
    """The results that hold a score, in a fixed order: linear probe, then k-NN, then others, full labels before few."""
    results = [result for stem, values in evaluations.items() if (result := read_result(stem, values))]
    others = {result.stem: [not result.stem.startswith(first) for first in ("linear", "knn")] for result in results}
    return sorted(results, key=lambda result: (bool(_few_labels(result.details)), others[result.stem], result.stem))


def read_result(stem: str, values: dict[str, Any]) -> Result | None:
    """A result file; None if no contender has a score in it."""
    scores = {who: _shares(values.get(who)) for who in CONTENDERS}
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    if not names:
        return None
    names.sort(key=lambda name: name.count("."))  # the file's own headline first, then the details
    rows = [Row(name, label(name), {who: scores[who].get(name) for who in CONTENDERS}) for name in names]
    flat = leaves(values)
    details = {name: _plain(value) for name, value in flat.items() if name.split(".")[0] not in CONTENDERS}
    protocol, labels = str(values.get("protocol", stem.partition("-")[0])), _few_labels(details)
    protocol = PROTOCOLS.get(protocol, protocol) + (f", {labels} labels per class" if labels else "")
    data = details.get("dataset") or details.get("data") or details.get("data.name") or stem.partition("-")[2]
    counts = [value for count in NUM_IMAGES for name, value in flat.items() if name.rpartition(".")[2] == count]
    num_images = next((value for value in counts if isinstance(value, int) and value > 0), None)
    return Result(stem, protocol, data, rows, num_images, details)


def score_table(rows: list[Row]) -> tuple[list[list[str]], list[tuple[int, int]]]:
    """Metric, scores and lead of every row, and the places of the best scores."""
    texts = []
    for row in rows:
        scores = [score.text if (score := row.scores[who]) else "–" for who in CONTENDERS]
        lead = "–" if row.lead is None else f"{100 * row.lead:+.1f}".replace("-", "−")
        texts.append([row.label, *scores, lead])
    places = itertools.product(range(len(rows)), enumerate(CONTENDERS, 1))
    return texts, [(place, column) for place, (column, who) in places if who in rows[place].best]


def is_share(name: str) -> bool:
    """Whether a metric, by its dotted name, is shown in percent."""
    return any(SHARE.fullmatch(part) for part in name.split("."))


def label(name: str) -> str:
    """A metric's dotted name in words."""
    words = []
    for part in name.split("."):
        metric, _, view = part.partition("_")
        if part in METRICS:
            words.append(METRICS[part])
        elif metric in METRICS and view:
            words.append(f"{METRICS[metric]}, {METRICS.get(view, view.replace('_', ' '))}")
        else:
            words.append(re.sub(r"^k(\d+)$", r"k = \1", part).replace("_", " "))
    return ", ".join(words)


def points(share: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{abs(100 * share):.1f}{NO_BREAK_SPACE}points"


def verdict(result: Result) -> str:
    """How the trained encoder stands, in one sentence."""
    row, where = result.headline, f"{result.protocol} on {result.data}"
    if "trained" not in row.found:
        return f"{where}: there is no score of the trained encoder."
    score = f"{row.found['trained'].text} {row.label}"
    if not row.rivals:
        return f"{where}: {score}, with nothing measured beside it to compare."
    against = [
        f"{result.standing(who)} ({rival.text}{'' if result.rank(who) else '; can be chance'})"
        for who, rival in row.rivals.items()
    ]
    return f"{where}: {score}, {' and '.join(against)}."


def summary(results: list[Result]) -> str:
    """The headline: is the trained encoder ahead in the first result or not, and do the others agree?"""
    first, others = results[0], results[1:]
    row = first.headline
    if row.lead is None:
        return "There is nothing to compare the trained encoder with."
    against = [first.standing(who) + ("" if first.rank(who) else " (which can be chance)") for who in row.rivals]
    score = f"{row.found['trained'].text}, {' and '.join(against)}."
    if not first.is_ahead:
        opening = "is not ahead" if any(first.rank(who) < 0 for who in row.rivals) else "is not clearly ahead"
        return f"The trained encoder {opening}: it scores {score}"
    dissent = [result.protocol for result in others if result.headline.lead is not None and not result.is_ahead]
    but = f" It is not clearly ahead of both in: {', '.join(dissent)}." if dissent else ""
    return f"The trained encoder scores {score}{but}"


def _few_labels(details: dict[str, str]) -> str:
    stated = [value for name, value in details.items() if name.rpartition(".")[2] == "labels_per_class"]
    return next((value for value in stated if value not in ("", "all")), "")


def _shares(tree: Any) -> dict[str, Score]:
    """Every score in a contender's entry, by dotted name; other numbers (a chosen learning rate, say) are left out."""
    if not isinstance(tree, dict):
        return {}
    numbers = {name: float(value) for name, value in leaves(tree).items() if _is_number(value)}
    stds = {match[1]: value for name, value in numbers.items() if (match := STD.fullmatch(name))}
    errors = {match[1]: value for name, value in numbers.items() if (match := ERROR.fullmatch(name))}
    listed = tree.get("draws")
    draws = tuple(map(float, listed)) if isinstance(listed, list) and all(map(_is_number, listed)) else ()
    return {
        name: Score(value, stds.get(name), draws if name == "top1" else (), errors.get(name))
        for name, value in numbers.items()
        if is_share(name) and not (name.partition(".")[0] in CHOICES or STD.fullmatch(name) or ERROR.fullmatch(name))
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "" if value is None else str(value)
