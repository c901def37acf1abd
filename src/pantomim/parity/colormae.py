"""ColorMAE: the filters, the way from noise to masks, the spectra of what comes out, and a run."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pantomim.analysis.masks import BAND_EDGES, field_bands, frequencies, mask_spectrum, visible_statistics
from pantomim.core.mask import Mask
from pantomim.formats.mae import official_name
from pantomim.formats.mmpretrain import mmpretrain_name
from pantomim.masking.color_noise import ColorNoiseMasker, cut_windows, round_windows
from pantomim.masking.noise import Noise, color_filter, equalise, make_bank
from pantomim.parity.item import Computed, Item, exact
from pantomim.parity.mae import mae_config
from pantomim.parity.networks import in_order
from pantomim.parity.statistics import SIGMAS
from pantomim.parity.trajectory import Run

FIELDS, WINDOWS = 32, 160  # of each preset: patterns drawn by us, and windows cut from each of them
SHAPE = {  # the items' statistics of a mask, and ours
    "components_4": "num_clusters", "largest_component": "largest_cluster",
    "visible_neighbours_per_visible_patch": "neighbours", "mean_distance_masked_to_visible": "mean_distance",
    "max_distance_masked_to_visible": "max_distance",
}  # fmt: skip


def trajectory_colormae(item: Item) -> Computed:
    """A run by mmengine's Runner, with the config of the authors' logs."""
    config = item.config
    method = mae_config(item, ColorNoiseMasker, normalise=config["norm_pix_loss"])
    optim = {"schedule": "beit", "start_lr": config["start_factor"] * config["lr"], "decay_tokens": False}
    run = Run(item, method, method.build(), lambda name: mmpretrain_name(official_name(name)), **optim)
    return run.carry_out().computed()


def colormae_filters(item: Item) -> Computed:
    """One pass, and all passes with equalisation, of every preset and both ways of blurring."""
    white, outputs = item.input("white"), dict[str, Tensor]()
    for index, preset in enumerate(item.config["presets"]):
        color, sigma, passes = preset["colour"], tuple(preset["sigma"]), preset["passes"]
        for blur in ("transfer_function", "sampled_kernel"):
            field = white
            for _ in range(passes):
                field = equalise(color_filter(field, color, sigma, blur))
            outputs[f"{color}_{index}_filtered_{blur}"] = color_filter(white, color, sigma, blur)
            outputs[f"{color}_{index}_after_{passes}_passes_equalised_{blur}"] = field
    return Computed(outputs)


def colormae_masking(item: Item) -> Computed:
    """Masks from given windows, and windows as the authors cut them from a bank."""
    config, found, kept = item.config, Computed(), dict[str, int]()
    grid = (config["window"], config["window"])
    num_masked = {ratio: ColorNoiseMasker(ratio=ratio).num_masked(grid) for ratio in config["ratios"]}
    for ratio, count in num_masked.items():
        noise = -item.input("windows").flatten(1)  # the largest values stay visible
        _, masking = in_order(Mask.from_scores(noise, count), noise)
        found.outputs |= {f"{name}_ratio{ratio}": ids for name, ids in masking.items()}
        kept[str(ratio)] = masking["ids_keep"].shape[1]
    found.numbers["len_keep"] = kept
    if item.has("bank"):
        rounds = torch.tensor(config["rounds"]).T
        windows = round_windows(item.input("bank"), torch.arange(config["batch"]), rounds, grid)
        noise = -windows.flatten(1)
        _, masking = in_order(Mask.from_scores(noise, num_masked[config["ratios"][0]]), noise)
        found.outputs |= {f"extracted_{name}": ids for name, ids in masking.items()} | {"extracted_windows": windows}
    return found


def colormae_spectra(item: Item) -> Computed:
    """Spectra of masks and fields, and the shape of what stays visible: means and stds of our own draws."""
    config, side, errors = item.config, item.config["window"], dict[str, float]()
    draws, fields = config["draws"], config["fields"]
    for index, preset in enumerate(config["presets"]):
        visible, bank = _drawn(preset, config, seed=index)
        thresholded = bank > np.quantile(bank, config["ratio"], axis=(1, 2), keepdims=True)
        spectrum = mask_spectrum(visible)
        for name, values, count in (
            ("mask_spectrum_mean", spectrum, draws),
            ("mask_spectrum_std_per_draw", spectrum, draws),
            ("mask_spectrum_mean_first256", spectrum, 256),
            ("field_bands", field_bands(bank), fields),
            ("field_mask_bands", field_bands(thresholded), fields),
        ):
            key = f"{name}_{preset['colour']}_{index}"
            if (official := item.output(key)) is not None:
                off = _off_std if "std" in name else _off_mean
                errors[key] = off(official.double().numpy(), values, count, fields)
        if "presets" in item.numbers:
            off_shape = _off_shape(item.numbers["presets"][index], visible, config)
            errors |= {f"numbers/presets/{index}/{key}": error for key, error in off_shape.items()}
    bins = np.rint(side * frequencies(side, side)).astype(int)
    numbers = {
        "coefficients_per_bin": np.bincount(bins.ravel())[1:].tolist(),
        "band_edges_cycles_per_patch": list(BAND_EDGES),
    }
    return Computed(numbers=numbers, errors=errors)


def _drawn(preset: dict[str, Any], config: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Our own masks of one preset, True where visible, and the fields that they are cut from, which take turns."""
    passes, blur, sigma = preset["passes"], preset["blur"], tuple(preset["sigma"])
    noise = Noise(preset["colour"], sigma, passes, blur=blur, patterns=FIELDS, side=config["field"], seed=seed)
    grid, draws = (config["window"], config["window"]), FIELDS * WINDOWS
    bank, generator = make_bank(noise), torch.Generator().manual_seed(seed)
    tops, lefts = torch.randint(noise.side - grid[0] + 1, (2, draws), generator=generator)
    flips = torch.rand(2, draws, generator=generator) < 0.5
    windows = cut_windows(bank, torch.arange(draws) % FIELDS, tops, lefts, flips[0], flips[1], grid)
    mask = Mask.from_scores(-windows.flatten(1), ColorNoiseMasker(ratio=config["ratio"]).num_masked(grid))
    return (~mask.masked).unflatten(1, grid).numpy(), bank.numpy()


def _off_shape(stated: dict[str, Any], visible: np.ndarray, config: Any) -> dict[str, float]:
    """Counts, clusters, neighbours, distances, and the least and largest visibility of a position."""
    ours, errors = visible_statistics(visible), dict[str, float]()
    if "visible_per_mask" in stated:
        errors["visible_per_mask"] = exact(sorted(set(ours.num_visible)) == stated["visible_per_mask"])
    for name, official in stated.get("statistics_of_visible_patches", {}).items():
        values = getattr(ours, SHAPE[name]).astype(float)
        for kind, off in (("mean", _off_mean), ("std", _off_std)):
            errors[f"{name}/{kind}"] = off(official[kind], values, config["stat_draws"], config["fields"])
    if (ends := stated.get("visible_probability_min_max_over_cells")) is not None:
        share = visible.mean(axis=0)  # its ends are no further off than the worst position
        far = np.abs(np.array(ends) - (share.min(), share.max())).max()
        error = _error(visible.astype(float), config["draws"], config["fields"]).max()
        errors["visible_probability_min_max_over_cells"] = float(far / (SIGMAS * error))
    return errors


def _off_mean(official: Any, values: np.ndarray, draws: int, fields: int) -> float:
    """How far the mean over so many official draws is from that over ours, a row each."""
    return float(np.max(np.abs(official - values.mean(axis=0)) / (SIGMAS * _error(values, draws, fields))))


def _off_std(official: Any, values: np.ndarray, draws: int, fields: int) -> float:
    """The same of their std, whose square is the mean of squares."""
    return _off_mean(np.square(official), np.square(values - values.mean(axis=0)), draws, fields)


def _error(values: np.ndarray, draws: int, fields: int) -> np.ndarray:
    """Standard error of the difference of two means; windows of one field are alike, so fields count apart."""
    groups = values.reshape(-1, FIELDS, *values.shape[1:])
    per_field = len(groups)
    if per_field == 1:
        return np.sqrt(values.var(axis=0, ddof=1) * (1 / FIELDS + 1 / draws))
    within = groups.var(axis=0, ddof=1).mean(axis=0)
    between = np.maximum(groups.mean(axis=0).var(axis=0, ddof=1) - within / per_field, 0)
    return np.sqrt(within * (1 / len(values) + 1 / draws) + between * (1 / FIELDS + 1 / fields))
