"""How far a mean may be off that varies for several reasons."""

import math
from collections.abc import Iterable

CONFIDENCE = 0.95


def half_interval(parts: Iterable[tuple[float, float]]) -> float:
    """Half of a 95 % interval, by variances of the mean and the degrees of freedom of each: Welch and Satterthwaite."""
    from scipy.special import stdtrit

    known = list(parts)
    total = sum(variance for variance, _ in known)
    uncertain = sum(variance**2 / freedom for variance, freedom in known)
    freedom = total**2 / uncertain if uncertain else math.inf
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(total)


def half_of_share(share: float, count: int) -> float:
    """Half of Wilson's 95 % interval of a share of so many images."""
    from scipy.stats import binomtest

    low, high = binomtest(round(share * count), count).proportion_ci(CONFIDENCE, "wilson")
    return float(high - low) / 2
