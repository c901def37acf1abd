"""Whether parameters start as they do in the official code, seen from one official draw and many of ours."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pantomim.parity.item import Item

DRAWS = 32  # of our initialisation, against one of the official
FLOAT32 = 2.0**-23
DEVIATIONS = 6.0  # how many standard deviations of a sample count as one tolerance


def initialisation(
    item: Item, draw: Callable[[], Mapping[str, nn.Parameter]], entry: str = "official_initialisation"
) -> dict[str, float]:
    """Whether one official draw of each parameter looks like many of ours; 0 where chance explains the difference.

    `draw` builds a new model and gives its parameters under the official names; an item has statistics of one official
    draw in `entry`, or none.
    """
    stated = item.spec.get(entry)
    if stated is None:
        return {}
    draws = [draw() for _ in range(DRAWS)]
    found: dict[str, float] = {}
    for name, row in stated["per_parameter"].items():
        official = dict(zip(stated["columns"], row, strict=True))
        if name in draws[0]:
            ours = torch.stack([draw[name].detach().double().flatten() for draw in draws])
            error = _unlikeliness(ours, official)
        else:
            error = math.inf
        found[f"official_initialisation/{name}"] = error if error > 1.0 else 0.0
    return found


def _unlikeliness(ours: Tensor, official: Mapping[str, float]) -> float:
    """The worst statistic of one official draw against ours (draws, values), as a multiple of what chance explains."""
    count = ours.shape[1]
    if official["n"] != count:
        return math.inf
    mean, std = ours.mean().item(), ours.std(correction=0).item()
    if ours.min() == ours.max():  # constants are equal, but for the float32 that they are kept in
        constant = official["min"] == official["max"]
        return 0.0 if constant and math.isclose(official["min"], mean, rel_tol=FLOAT32) else math.inf
    kurtosis = ((ours - mean) / std).pow(4).mean().item()
    spread_of_mean = std / math.sqrt(count)
    spread_of_std = std * math.sqrt((kurtosis - 1) / (4 * count))
    # A uniform draw reaches 1.7 deviations; a thousand normal ones 3.2, and DRAWS times as many 4 to 5.
    reach = max(-official["min"], official["max"]) / ours.abs().max().item()
    errors = [
        abs(official["mean"] - mean) / (DEVIATIONS * spread_of_mean),
        abs(official["std"] - std) / (DEVIATIONS * spread_of_std),
        reach / 1.5,
    ]
    if count >= 1000:
        errors.append(0.6 / reach)
    return max(errors)
