"""How far statistics of our own draws are from recorded ones, as multiples of what chance explains."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

SIGMAS = 5.0  # standard errors, of both sides together, that chance explains; for chi-squares the same probability
CHANCE = 2 * stats.norm.sf(SIGMAS)
RARE = 10  # a bin that both sides together hit less often is joined with its neighbours


def off_entry(official: Mapping[str, Any], draws: int, ours: np.ndarray) -> dict[str, float]:
    """Of one number for each mask: how far each recorded statistic of it (mean, std, histogram) is off."""
    found = {}
    for name, stated in official.items():
        if name == "mean":
            found[name] = off_mean(stated, official.get("std", 0.0), draws, ours)
        elif name == "std":
            found[name] = off_std(stated, draws, ours)
        else:
            known = name == "histogram" and np.issubdtype(ours.dtype, np.integer)
            found[name] = off_histogram({int(v): n for v, n in stated.items()}, ours) if known else math.inf
    return found


def off_mean(mean: float, std: float, draws: float, ours: np.ndarray) -> float:
    """The difference of two means."""
    return in_sigmas(ours.mean() - mean, math.sqrt(std**2 / draws + ours.var() / len(ours)))


def off_std(std: float, draws: int, ours: np.ndarray) -> float:
    """The difference of two standard deviations; their error follows from our fourth moment."""
    variance = ours.var()
    spread = max(((ours - ours.mean()) ** 4).mean() - variance**2, 0.0)  # of squares around their mean, the variance
    return in_sigmas(variance - std**2, math.sqrt(spread * (1 / draws + 1 / len(ours))))


def off_histogram(official: Mapping[int, int], ours: np.ndarray) -> float:
    """The chi-square of two histograms against its quantile; rare bins are joined with their neighbours."""
    values, counts = np.unique(ours, return_counts=True)
    own = dict(zip(values.tolist(), counts.tolist(), strict=True))
    bins = [np.zeros(2)]
    for value in sorted({*official, *own}):
        if bins[-1].sum() >= RARE:
            bins.append(np.zeros(2))
        bins[-1] += (official.get(value, 0), own.get(value, 0))
    if len(bins) > 1 and bins[-1].sum() < RARE:
        rest = bins.pop()
        bins[-1] += rest
    table = np.array(bins)
    if len(table) == 1:
        return 0.0 if official.keys() == own.keys() else math.inf
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    return float(((table - expected) ** 2 / expected).sum() / stats.chi2.isf(CHANCE, len(table) - 1))


def off_shares(official: np.ndarray, draws: float, ours: np.ndarray, own_draws: int) -> float:
    """The largest difference between two arrays of probabilities; infinite draws make the official ones exact."""
    if official.shape != ours.shape:
        return math.inf
    together = official if math.isinf(draws) else (official * draws + ours * own_draws) / (draws + own_draws)
    errors = np.sqrt(together * (1 - together) * (1 / draws + 1 / own_draws))
    return max(in_sigmas(*pair) for pair in zip((ours - official).flat, errors.flat, strict=True))


def in_sigmas(difference: float, error: float) -> float:
    """A difference as a multiple of what chance explains; where there is no error, there may be no difference."""
    if error == 0.0:
        return 0.0 if abs(difference) < 1e-12 else math.inf
    return float(abs(difference) / (SIGMAS * error))
