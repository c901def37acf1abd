"""A number at several seeds: mean, std and interval, and the difference of two, seed by seed."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from pantomim.core.intervals import half_interval
from pantomim.report.html import plus_minus

ABSENT = "–"


@dataclass(frozen=True)
class Spread:
    """A number at several seeds, its mean and its standard deviation (n - 1); None for a single one."""

    by_seed: dict[int, float]
    mean: float
    std: float | None

    @classmethod
    def of(cls, by_seed: Mapping[int, float]) -> "Spread | None":
        """Of these values; None if there are none."""
        if not by_seed:
            return None
        values = list(by_seed.values())
        return cls(dict(by_seed), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean by Student's t; None for a single value."""
        n = len(self.by_seed)
        return None if self.std is None else half_interval([(self.std**2 / n, n - 1)])

    @property
    def side(self) -> int:
        """1 or -1 if the 95 % interval of the mean lies above or below zero, else 0."""
        half = self.half_width
        return 0 if half is None or abs(self.mean) <= half else (1 if self.mean > 0 else -1)


def difference(ours: Spread | None, theirs: Spread | None) -> Spread | None:
    """Ours minus theirs, over the seeds that both have; None if there are none."""
    if ours is None or theirs is None:
        return None
    both = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
    return Spread.of({seed: ours.by_seed[seed] - theirs.by_seed[seed] for seed in both})


def show_plain(spread: Spread | None, digits: str, scale: float = 1.0) -> str:
    """Mean and std in these digits."""
    return ABSENT if spread is None else plus_minus(spread.mean, spread.std, digits, scale)
