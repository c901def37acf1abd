"""Block masks and SimMIM's grid: recorded random numbers give recorded masks, and our own give the same statistics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pantomim.analysis.masks import num_clusters
from pantomim.masking.block import BlockMasker
from pantomim.masking.grid import GridMasker
from pantomim.masking.rectangles import Covered, FromGenerator, Ids, Reals
from pantomim.parity.item import Computed, Item

DRAWS = 20_000  # own masks of each setting
SIGMAS = 5.0  # standard errors, of both sides together, that chance explains; for chi-squares the same probability
CHANCE = 2 * stats.norm.sf(SIGMAS)
RARE = 10  # a bin that both sides together hit less often is joined with its neighbours


def block_trace(item: Item) -> Computed:
    """The masks that recorded random numbers give, and those numbers as our sampler asks for them, one by one."""
    traces, masks = [], {}
    for index, setting in enumerate(item.config["settings"]):
        recorded = [trace for trace in item.numbers["traces"] if trace["setting"] == index]
        replay = Replay([trace["draws"] for trace in recorded])
        grid = _grid(setting)
        covered = block_masker(setting).cover(len(recorded), grid, replay, ahead=1).masked
        masks[f"masks_{index}"] = torch.from_numpy(covered.reshape(-1, *grid)).to(torch.uint8)
        counts = covered.sum(axis=1).tolist()
        traces += [
            {"setting": index, "index": trace["index"], "draws": asked, "masked": count}
            for trace, asked, count in zip(recorded, replay.asked, counts, strict=True)
        ]
    return Computed(masks, numbers={"traces": traces})


def block_stats(item: Item) -> Computed:
    """Count, rectangles, shape and place of what is hidden, in many masks of our own."""
    deviations: dict[str, float] = {}
    maps = item.expected()
    for index, (setting, official) in enumerate(zip(item.config["settings"], _settings(item), strict=True)):
        grid, draws = _grid(setting), item.config["draws"]
        source = FromGenerator(np.random.default_rng(index))
        covered = block_masker(setting).cover(DRAWS, grid, source)
        masked = covered.masked.reshape(-1, *grid)
        given = {**setting, "draws": draws}
        for name, deviation in compare_statistics(official, given, block_statistics(covered, grid), draws).items():
            deviations[f"numbers/settings/{index}/{name}"] = deviation
        deviations |= _compare_map(f"probability_map_{index}", maps, masked, draws)
    return Computed({}, deviations=deviations)


def simmim_stats(item: Item) -> Computed:
    """How many cells and patches are hidden, that patches of a cell agree, and how often each one is hidden."""
    deviations: dict[str, float] = {}
    num_cells, num_patches = [], []
    for index, setting in enumerate(item.config["settings"]):
        side, cell = (setting[name] // setting["model_patch_size"] for name in ("input_size", "mask_patch_size"))
        masker = GridMasker(ratio=setting["mask_ratio"], cell=cell)
        mask = masker(DRAWS, (side, side), torch.Generator().manual_seed(index))
        masked = mask.masked.view(-1, side, side)
        cells = masked.view(-1, side // cell, cell, side // cell, cell).transpose(2, 3).flatten(3)
        whole = cells.all(dim=3)
        deviations[f"cells_{index}/agree"] = 0.0 if torch.equal(whole, cells.any(dim=3)) else math.inf
        num_cells.append(_only(whole.flatten(1).sum(dim=1)))
        num_patches.append(_only(masked.flatten(1).sum(dim=1)))
        name = f"probability_map_{index}"
        deviations |= _compare_map(name, item.expected(), masked.numpy(), item.config["draws"])
    return Computed({}, numbers={"masked_cells": num_cells, "masked_patches": num_patches}, deviations=deviations)


class Replay:
    """Recorded random numbers, each image's own sequence, and what was asked for.

    Args:
        sequences: Of each image, what the official code drew: kind, low, high, value.
    """

    def __init__(self, sequences: list[list[list[Any]]]) -> None:
        self._rest = [iter(sequence) for sequence in sequences]
        self.asked: list[list[list[Any]]] = [[] for _ in sequences]

    def uniform(self, images: Ids, low: float, high: Reals | float) -> Reals:
        """See `Source.uniform`."""
        return self._next("uniform", images, low, np.broadcast_to(high, images.shape))

    def integers(self, images: Ids, high: Reals) -> Reals:
        """See `Source.integers`."""
        return self._next("randint", images, 0, high)

    def _next(self, kind: str, images: Ids, low: float, highs: np.ndarray) -> Reals:
        values = []
        for image, high in zip(images.tolist(), highs.tolist(), strict=True):
            drawn = next(self._rest[image], None)
            if drawn is None:
                raise ValueError(f"Replay.sequences[{image}] must not end here; our sampler asks for a {kind} more.")
            self.asked[image].append([kind, low, high, drawn[-1]])
            values.append(drawn[-1])
        return np.array(values, np.float64)


def block_masker(setting: Mapping[str, Any]) -> BlockMasker:
    """The masker that does what a setting of the items says.

    Raises:
        ValueError: if the sampler is none that we know.
    """
    method, (rows, columns) = setting["method"], setting["grid"]
    if method not in ("beit", "maskfeat", "dbot", "cae"):
        raise ValueError(f"config.method must be beit, maskfeat, dbot or cae; got {method}.")
    return BlockMasker(
        ratio=setting["num_masking_patches"] / (rows * columns),
        exact=method == "cae",
        min_area=setting["min_num_patches"],
    )


@dataclass(frozen=True)
class Sample:
    """One number of every mask.

    Args:
        values: The numbers.
        counts: Whether they are whole, so that a histogram can be made.
    """

    values: np.ndarray
    counts: bool = True


def block_statistics(covered: Covered, grid: tuple[int, int]) -> dict[str, Sample]:
    """What the items tell about masks, under their names."""
    masked = covered.masked.reshape(-1, *grid)
    count = masked.sum(axis=(1, 2))
    horizontal = (masked[:, :, 1:] & masked[:, :, :-1]).mean(axis=(1, 2))
    vertical = (masked[:, 1:] & masked[:, :-1]).mean(axis=(1, 2))
    return {
        "masked_count": Sample(count),
        "blocks_per_mask": Sample(covered.num_rectangles),
        "first_block_new_cells": Sample(covered.first),
        "connected_components_4": Sample(num_clusters(masked)),
        "horizontal_pairs_both_masked": Sample(horizontal, counts=False),
        "vertical_pairs_both_masked": Sample(vertical, counts=False),
        "cells_masked_fraction": Sample(count / masked[0].size, counts=False),
    }


def compare_statistics(
    official: Mapping[str, Any], given: Mapping[str, Any], ours: Mapping[str, Sample], draws: int
) -> dict[str, float]:
    """How far every entry of a setting lies off, as a multiple of its tolerance; infinite where we know nothing of it.

    Args:
        official: The entries: statistics (mean, std, and a histogram of whole numbers), and what the setting states.
        given: What the setting states.
        ours: Our masks, under the names of the statistics.
        draws: Masks of the official code.
    """
    deviations = {name: math.inf for name in ours if name not in official}
    for name, entry in official.items():
        if name not in ours:
            deviations[name] = 0.0 if name in given and given[name] == entry else math.inf
            continue
        values, counts = ours[name].values, ours[name].counts
        if entry.keys() != ({"mean", "std", "histogram"} if counts else {"mean", "std"}):
            deviations[name] = math.inf
            continue
        deviations[f"{name}/mean"] = compare_means(entry["mean"], entry["std"], draws, values)
        deviations[f"{name}/std"] = compare_deviations(entry["std"], draws, values)
        if counts:
            histogram = {int(value): count for value, count in entry["histogram"].items()}
            deviations[f"{name}/histogram"] = compare_histograms(histogram, values)
    return deviations


def compare_means(mean: float, std: float, draws: int, ours: np.ndarray) -> float:
    """The difference of two means, in tolerances."""
    return _in_sigmas(ours.mean() - mean, math.sqrt(std**2 / draws + ours.var() / len(ours)))


def compare_deviations(std: float, draws: int, ours: np.ndarray) -> float:
    """The difference of two standard deviations, in tolerances; their error follows from our fourth moment."""
    variance = ours.var()
    spread = max(((ours - ours.mean()) ** 4).mean() - variance**2, 0.0)  # of squares around their mean, the variance
    error = math.sqrt(spread * (1 / draws + 1 / len(ours)))
    return _in_sigmas(variance - std**2, error)


def compare_histograms(official: Mapping[int, int], ours: np.ndarray) -> float:
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


def compare_probabilities(official: np.ndarray, draws: int, masked: np.ndarray) -> float:
    """The largest difference between two maps of how often a patch is hidden, in tolerances."""
    own = masked.mean(axis=0)
    together = (official * draws + own * len(masked)) / (draws + len(masked))
    errors = np.sqrt(together * (1 - together) * (1 / draws + 1 / len(masked)))
    return max(_in_sigmas(*pair) for pair in zip((own - official).flat, errors.flat, strict=True))


def _compare_map(
    name: str, expected: Mapping[str, tuple[Tensor | None, Any]], masked: np.ndarray, draws: int
) -> dict[str, float]:
    stored = expected.get(name, (None, None))[0]
    if stored is None or stored.shape != masked.shape[1:]:
        return {name: math.inf}
    return {name: compare_probabilities(stored.numpy(), draws, masked)}


def _in_sigmas(difference: float, error: float) -> float:
    if error == 0.0:
        return 0.0 if abs(difference) < 1e-12 else math.inf
    return float(abs(difference) / (SIGMAS * error))


def _settings(item: Item) -> list[Mapping[str, Any]]:
    settings: list[Mapping[str, Any]] = item.numbers["settings"]
    return settings


def _grid(setting: Mapping[str, Any]) -> tuple[int, int]:
    rows, columns = setting["grid"]
    return rows, columns


def _only(values: Tensor) -> int | list[int]:
    """The value that all of them have; all that there are, where they differ."""
    found = values.unique().tolist()
    return found[0] if len(found) == 1 else found
