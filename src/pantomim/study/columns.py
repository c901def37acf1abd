"""The columns of a study's table: what each is called, how its numbers are written, and how far arms differ in it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pantomim.report import scores
from pantomim.report.spread import ABSENT, Spread, show_plain
from pantomim.study.plan import LOG, MINUS

AGREEMENT = {  # numbers of the analysis "alignment", and which of them are shares
    "loss": "alignment loss",
    "explained": "latents explained",
    "cosine": "cosine",
    "predicted": "target predicted",
    "skipped": "target without regressor",
}
AGREEMENT_SHARES = ("explained", "predicted", "skipped")


@dataclass(frozen=True)
class AmongArms:
    """How far a number differs among the arms of a group (n - 1), at each seed."""

    mean: Spread
    range: Spread
    std: Spread
    variance: Spread

    @classmethod
    def of(cls, arms: Sequence[Spread | None]) -> "AmongArms | None":
        """Over the seeds that all arms have; None if there are none."""
        present = [arm.by_seed for arm in arms if arm is not None]
        seeds = sorted(set.intersection(*map(set, present))) if len(present) == len(arms) > 1 else []
        values = {seed: [by_seed[seed] for by_seed in present] for seed in seeds}
        measures = (statistics.fmean, lambda found: max(found) - min(found), statistics.stdev, statistics.variance)
        spreads = [Spread.of({seed: measure(found) for seed, found in values.items()}) for measure in measures]
        return cls(*found) if len(found := [spread for spread in spreads if spread is not None]) == 4 else None


def parts(column: str) -> list[tuple[str, str]]:
    """Evaluation and number, of one or of two."""
    found = (metric.partition(".") for metric in column.split(MINUS))
    return [(evaluation, number) for evaluation, _, number in found]


def is_share(column: str) -> bool:
    """Whether a column is shown in percent."""
    return all(
        number in AGREEMENT_SHARES if evaluation == "alignment" else scores.is_share(number)
        for evaluation, number in parts(column)
    )


def heading(column: str) -> str:
    """A column in words."""
    unit = " (%)" if is_share(column) else ""
    first, *second = [_words(evaluation, number) for evaluation, number in parts(column)]
    if not second:
        return ", ".join(first) + unit
    ((other, words),) = second
    same = f"{first[0]} − {other}, {words}" if words == first[1] else f"{', '.join(first)} − {other}, {words}"
    return same + unit.replace("%", "points")


def show(spread: Spread | None, column: str, planned: int) -> str:
    """Mean and std; the number of seeds where it is not the planned one."""
    if spread is None:
        return ABSENT
    text = show_plain(spread, *((".1f", 100.0) if is_share(column) else (".4g", 1.0)))
    text = show_difference(spread, column) if MINUS in column else text
    n = len(spread.by_seed)
    return text if n == planned else f"{text} (n = {n})"


def show_difference(spread: Spread | None, column: str) -> str:
    """The same of a difference, with its sign."""
    return show_plain(spread, *(("+.1f", 100.0) if is_share(column) else ("+.3g", 1.0))).replace("-", "−")


def _words(evaluation: str, number: str) -> tuple[str, str]:
    if evaluation == LOG:
        return "training", number.replace("_", " ")
    if evaluation == "alignment":
        return "held-out", AGREEMENT.get(number, number)
    return evaluation, scores.label(number)
