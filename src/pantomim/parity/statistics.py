"""How far statistics of our own draws are from recorded ones, as multiples of what chance explains."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from pantomim.parity.item import Item, exact
from pantomim.parity.networks import Names

SIGMAS = 5.0  # standard errors, of both sides together, that chance explains; for chi-squares the same probability
CHANCE = 2 * stats.norm.sf(SIGMAS)
RARE = 10  # a bin that both sides together hit less often is joined with its neighbours

MODELS = 32  # initialised by us, against one of the official code
MODEL_SIGMAS = 6.0  # standard errors of a sample that count as one tolerance
FLOAT32 = 2.0**-23


def off_entry(official: Mapping[str, Any], draws: int, ours: np.ndarray) -> dict[str, float]:
    """Of one number for each mask: how far each recorded statistic of it (mean, std, histogram) is off."""
    found = {}
    for name, stated in official.items():
        if name == "mean":
            found[name] = off_mean(stated, official.get("std", 0.0), draws, ours)
        elif name == "std":
            # The error of a variance follows from the fourth moment, here ours.
            spread = max(((ours - ours.mean()) ** 4).mean() - ours.var() ** 2, 0.0)
            found[name] = _in_sigmas(ours.var() - stated**2, math.sqrt(spread * (1 / draws + 1 / len(ours))))
        elif name == "histogram" and np.issubdtype(ours.dtype, np.integer):
            found[name] = _off_histogram({int(value): count for value, count in stated.items()}, ours)
        else:
            found[name] = math.inf
    return found


def off_mean(mean: float, std: float, draws: float, ours: np.ndarray) -> float:
    """The difference of two means."""
    return _in_sigmas(ours.mean() - mean, math.sqrt(std**2 / draws + ours.var() / len(ours)))


def off_shares(official: np.ndarray, draws: float, ours: np.ndarray, own_draws: int) -> float:
    """The largest difference between two arrays of probabilities; infinite draws make the official ones exact."""
    if official.shape != ours.shape:
        return math.inf
    together = official if math.isinf(draws) else (official * draws + ours * own_draws) / (draws + own_draws)
    errors = np.sqrt(together * (1 - together) * (1 / draws + 1 / own_draws))
    return max(_in_sigmas(*pair) for pair in zip((ours - official).flat, errors.flat, strict=True))


def initialisation(
    item: Item, build: Callable[[], nn.Module], names: Names, entry: str = "official_initialisation"
) -> dict[str, float]:
    """Each parameter's official draw, in `entry`, against many of ours: 0 where chance explains it; {} without one."""
    if (stated := item.spec.get(entry)) is None:
        return {}
    models = [{names(name): p.detach() for name, p in build().named_parameters()} for _ in range(MODELS)]
    found: dict[str, float] = {}
    for name, row in stated["per_parameter"].items():
        error = math.inf
        if name in models[0]:
            ours = torch.stack([model[name].double().flatten() for model in models])
            error = _unlikeliness(ours, dict(zip(stated["columns"], row, strict=True)))
        found[f"official_initialisation/{name}"] = error if error > 1.0 else 0.0
    return found


def _off_histogram(official: Mapping[int, int], ours: np.ndarray) -> float:
    """The chi-square of two histograms against its quantile; rare bins are joined with their neighbours."""
    values, counts = np.unique(ours, return_counts=True)
    own = dict(zip(values.tolist(), counts.tolist(), strict=True))
    bins = [np.zeros(2)]
    for value in sorted({*official, *own}):
        if bins[-1].sum() >= RARE:
            bins.append(np.zeros(2))
        bins[-1] += (official.get(value, 0), own.get(value, 0))
    if len(bins) > 1 and bins[-1].sum() < RARE:
        bins[-2] += bins.pop()
    table = np.array(bins)
    if len(table) == 1:
        return exact(official.keys() == own.keys())
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    return float(((table - expected) ** 2 / expected).sum() / stats.chi2.isf(CHANCE, len(table) - 1))


def _in_sigmas(difference: float, error: float) -> float:
    """A difference as a multiple of what chance explains; where there is no error, there may be no difference."""
    if error == 0.0:
        return exact(abs(difference) < 1e-12)
    return float(abs(difference) / (SIGMAS * error))


def _unlikeliness(ours: Tensor, official: Mapping[str, float]) -> float:
    """The worst statistic of one official draw against ours (draws, values), as a multiple of what chance explains."""
    count = ours.shape[1]
    if official["n"] != count:
        return math.inf
    mean, std = ours.mean().item(), ours.std(correction=0).item()
    if ours.min() == ours.max():  # constants are equal, but for the float32 that they are kept in
        constant = official["min"] == official["max"]
        return exact(constant and math.isclose(official["min"], mean, rel_tol=FLOAT32))
    kurtosis = ((ours - mean) / std).pow(4).mean().item()
    error_of_mean = std / math.sqrt(count)
    error_of_std = std * math.sqrt((kurtosis - 1) / (4 * count))
    # A uniform draw reaches 1.7 stds; a thousand normal ones 3.2, and MODELS times as many 4 to 5.
    reach = max(-official["min"], official["max"]) / ours.abs().max().item()
    return max(
        abs(official["mean"] - mean) / (MODEL_SIGMAS * error_of_mean),
        abs(official["std"] - std) / (MODEL_SIGMAS * error_of_std),
        reach / 1.5,
        0.6 / reach if count >= 1000 else 0.0,
    )
