"""The columns of a table: EVALUATION.METRIC, or the difference of two of them; in words and in digits."""

from pantomim.report import scores
from pantomim.report.html import plus_minus
from pantomim.study.plan import LOG, MINUS
from pantomim.study.spread import Spread

AGREEMENT = {  # numbers of the analysis "alignment", and which of them are shares
    "loss": "alignment loss",
    "explained": "latents explained",
    "cosine": "cosine",
    "predicted": "target predicted",
    "skipped": "target without regressor",
}
AGREEMENT_SHARES = ("explained", "predicted", "skipped")


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
    numbers = [_words(evaluation, number) for evaluation, number in parts(column)]
    if len(numbers) == 1:
        return ", ".join(numbers[0]) + (" (%)" if is_share(column) else "")
    (first, words), (second, others) = numbers
    same = f"{first} − {second}, {words}" if words == others else f"{first}, {words} − {second}, {others}"
    return same + (" (points)" if is_share(column) else "")


def show(spread: Spread | None, column: str, planned: int) -> str:
    """Mean and std; the number of seeds where it is not the planned one."""
    if spread is None:
        return "–"
    scale, digits = (100.0, ".1f") if is_share(column) else (1.0, ".4g")
    text = plus_minus(spread.mean, spread.std, digits, scale)
    if len(parts(column)) > 1:
        text = show_difference(spread, column)
    n = len(spread.by_seed)
    return text if n == planned else f"{text} (n = {n})"


def show_difference(difference: Spread | None, column: str) -> str:
    """The same of a difference, with its sign."""
    if difference is None:
        return "–"
    scale, digits = (100.0, "+.1f") if is_share(column) else (1.0, "+.3g")
    return plus_minus(difference.mean, difference.std, digits, scale).replace("-", "−")


def _words(evaluation: str, number: str) -> tuple[str, str]:
    if evaluation == LOG:
        return "training", number.replace("_", " ")
    if evaluation == "alignment":
        return "held-out", AGREEMENT.get(number, number)
    return evaluation, scores.label(number)
