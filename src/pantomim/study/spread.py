"""A number at several seeds, and at several arms: mean, standard deviation, interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


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
        if self.std is None:
            return None
        return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * self.std / math.sqrt(n)

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
        if len(present) < len(arms) or len(arms) < 2:
            return None
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in present)))
        values = {seed: [by_seed[seed] for by_seed in present] for seed in seeds}
        measures = (statistics.fmean, lambda found: max(found) - min(found), statistics.stdev, statistics.variance)
        spreads = [Spread.of({seed: measure(values[seed]) for seed in seeds}) for measure in measures]
        return cls(*found) if len(found := [spread for spread in spreads if spread is not None]) == 4 else None
