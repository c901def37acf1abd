"""Block masks and SimMIM's grid: recorded random numbers give recorded masks, and our own give the same statistics."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pantomim.analysis.masks import num_clusters
from pantomim.masking.block import BlockMasker
from pantomim.masking.grid import GridMasker
from pantomim.masking.rectangles import Covered, FromGenerator, Ids, Reals
from pantomim.parity.item import Computed, Item, exact
from pantomim.parity.recorded import Recorded
from pantomim.parity.statistics import off_entry, off_shares

DRAWS = 20_000  # own masks of each setting


def block_mask_trace(item: Item) -> Computed:
    """The masks that recorded random numbers give, and those numbers as our sampler asks for them, one by one."""
    traces, masks = [], {}
    for index, setting in enumerate(item.config["settings"]):
        recorded = [trace for trace in item.numbers["traces"] if trace["setting"] == index]
        replay = _Replay([trace["draws"] for trace in recorded])
        covered = block_masker(setting).cover(len(recorded), tuple(setting["grid"]), replay, ahead=1).masked
        masks[f"masks_{index}"] = torch.from_numpy(covered.reshape(-1, *setting["grid"])).to(torch.uint8)
        counts = covered.sum(axis=1).tolist()
        traces += [
            {"setting": index, "index": trace["index"], "draws": of_image.asked, "masked": count}
            for trace, of_image, count in zip(recorded, replay.images, counts, strict=True)
        ]
    return Computed(masks, {"traces": traces})


def block_mask_stats(item: Item) -> Computed:
    """Count, rectangles, shape and place of what is masked, in many masks of our own."""
    errors: dict[str, float] = {}
    config, draws = item.config, item.config["draws"]
    stated = item.numbers.get("settings", [{} for _ in config["settings"]])
    for index, (setting, official) in enumerate(zip(config["settings"], stated, strict=True)):
        grid, source = tuple(setting["grid"]), FromGenerator(np.random.default_rng(index))
        covered = block_masker(setting).cover(DRAWS, grid, source)
        masked, given = covered.masked.reshape(-1, *grid), {**setting, "draws": draws}
        ours = _statistics(covered, masked)
        for name, entry in official.items():
            key = f"numbers/settings/{index}/{name}"
            if name in ours:
                errors |= {f"{key}/{kind}": off for kind, off in off_entry(entry, draws, ours[name]).items()}
            else:
                errors[key] = exact(name in given and given[name] == entry)
        errors |= _off_map(item, index, masked)
    return Computed(errors=errors)


def simmim_mask_stats(item: Item) -> Computed:
    """How many cells and patches are masked, that patches of a cell agree, and how often each one is masked."""
    found = Computed(numbers={"masked_cells": [], "masked_patches": []})
    for index, setting in enumerate(item.config["settings"]):
        side, cell = (setting[name] // setting["model_patch_size"] for name in ("input_size", "mask_patch_size"))
        masker = GridMasker(ratio=setting["mask_ratio"], cell=cell)
        masked = masker(DRAWS, (side, side), torch.Generator().manual_seed(index)).masked.view(-1, side, side)
        cells = masked.view(-1, side // cell, cell, side // cell, cell).transpose(2, 3).flatten(3)
        whole = cells.all(dim=3)
        found.errors[f"cells_{index}/agree"] = exact(torch.equal(whole, cells.any(dim=3)))
        # One number where all masks agree, else a list, which is wrong.
        found.numbers["masked_cells"].append(whole.flatten(1).sum(dim=1).unique().squeeze().tolist())
        found.numbers["masked_patches"].append(masked.flatten(1).sum(dim=1).unique().squeeze().tolist())
        found.errors |= _off_map(item, index, masked.numpy())
    return found


class _Replay:
    """A source of recorded numbers, of which each image has its own."""

    def __init__(self, sequences: list[list[list[Any]]]) -> None:
        self.images = [Recorded(sequence) for sequence in sequences]

    def uniform(self, images: Ids, low: float, high: Reals | float) -> Reals:
        asked = zip(images, np.broadcast_to(high, images.shape).tolist(), strict=True)
        return np.array([self.images[image].uniform(low, most) for image, most in asked])

    def integers(self, images: Ids, high: Reals) -> Reals:
        asked = zip(images, high.tolist(), strict=True)
        return np.array([self.images[image].integers(0, most) for image, most in asked], np.float64)


def block_masker(setting: Mapping[str, Any]) -> BlockMasker:
    """The masker that does what a setting of the items says, if we know its sampler and its aspects are symmetric."""
    method, (rows, columns) = setting["method"], setting["grid"]
    if method not in ("beit", "maskfeat", "dbot", "cae"):
        raise ValueError(f"config.method must be beit, maskfeat, dbot or cae; got {method}.")
    flattest, highest = setting.get("min_aspect") or 0.3, setting.get("max_aspect")
    if highest is not None and not math.isclose(highest, 1 / flattest):
        raise ValueError(f"config.max_aspect must be 1 / min_aspect = {1 / flattest:g}; got {highest}.")
    return BlockMasker(
        ratio=setting["num_masking_patches"] / (rows * columns),
        exact=method == "cae",
        min_area=setting["min_num_patches"],
        max_area=setting.get("max_num_patches"),
        min_aspect=flattest,
    )


def _statistics(covered: Covered, masked: np.ndarray) -> dict[str, np.ndarray]:
    """One number of every mask, under the items' names; integers where it is a count."""
    count = masked.sum(axis=(1, 2))
    return {
        "masked_count": count,
        "blocks_per_mask": covered.num_rectangles,
        "first_block_new_cells": covered.first,
        "connected_components_4": num_clusters(masked),
        "horizontal_pairs_both_masked": (masked[:, :, 1:] & masked[:, :, :-1]).mean(axis=(1, 2)),
        "vertical_pairs_both_masked": (masked[:, 1:] & masked[:, :-1]).mean(axis=(1, 2)),
        "cells_masked_fraction": count / masked[0].size,
    }


def _off_map(item: Item, index: int, masked: np.ndarray) -> dict[str, float]:
    """How often each patch is masked, where the item says."""
    name = f"probability_map_{index}"
    if (stored := item.output(name)) is None:
        return {}
    return {name: off_shares(stored.numpy(), item.config["draws"], masked.mean(axis=0), len(masked))}
