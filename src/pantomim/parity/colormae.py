"""ColorMAE's golden items: the filters, the way from noise to masks, and the spectra of what comes out."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pantomim.analysis.masks import (
    BAND_EDGES,
    field_bands,
    frequencies,
    mask_spectrum,
    visible_statistics,
)
from pantomim.core.mask import Mask
from pantomim.formats.mae import official_name
from pantomim.formats.mmpretrain import mmpretrain_name
from pantomim.masking.color_noise import ColorNoiseMasker, cut_windows, round_windows
from pantomim.masking.noise import Noise, color_filter, equalise, make_bank
from pantomim.methods.mae import MAEConfig
from pantomim.parity.item import Computed, Item
from pantomim.parity.mae import masked_pixels
from pantomim.parity.networks import decoder_config, encoder_config, in_order
from pantomim.parity.statistics import SIGMAS
from pantomim.parity.trajectory import run_config
from pantomim.targets.pixels import PixelTargetConfig

Off = Callable[[Any], float]  # from an official statistic to how far it is off, in tolerances

FIELDS, WINDOWS = 32, 160  # of each preset: own patterns, and windows cut from each of them


def trajectory(item: Item) -> Computed:
    """A run by mmengine's Runner, with the config of the authors' logs."""
    config = item.config
    method = MAEConfig(
        encoder=encoder_config(config, item.input("images")),
        decoder=decoder_config(config),
        masker=ColorNoiseMasker(ratio=float(config["mask_ratio"])),
        target=PixelTargetConfig(normalise="patch" if config["norm_pix_loss"] else "none"),
    )
    run = run_config(item, method, schedule="beit", start_lr=config["start_factor"] * config["lr"], decay_tokens=False)
    return masked_pixels(item, method, run, lambda name: mmpretrain_name(official_name(name)))


def filters(item: Item) -> Computed:
    """One pass, and all passes with equalisation, of every preset and both ways of blurring."""
    white = item.input("white")
    outputs: dict[str, Tensor] = {}
    for index, preset in enumerate(item.config["presets"]):
        color, sigma, passes = preset["colour"], tuple(preset["sigma"]), preset["passes"]
        for blur in ("transfer_function", "sampled_kernel"):
            field = white
            for _ in range(passes):
                field = equalise(color_filter(field, color, sigma, blur))
            name = f"{color}_{index}"
            outputs[f"{name}_filtered_{blur}"] = color_filter(white, color, sigma, blur)
            outputs[f"{name}_after_{passes}_passes_equalised_{blur}"] = field
    return Computed(outputs)


def masking(item: Item) -> Computed:
    """Masks from given windows, and windows as the authors cut them from a bank."""
    config, given = item.config, item.input("windows")
    grid = (config["window"], config["window"])
    outputs: dict[str, Tensor] = {}
    kept: dict[str, int] = {}
    for ratio in config["ratios"]:
        named = _authors_order(given, ColorNoiseMasker(ratio=ratio).num_masked(grid))
        outputs |= {f"{name}_ratio{ratio}": ids for name, ids in named.items()}
        kept[str(ratio)] = named["ids_keep"].shape[1]
    if item.has("bank"):
        rounds = torch.tensor(config["rounds"]).T
        windows = round_windows(item.input("bank"), torch.arange(config["batch"]), rounds, grid)
        extracted = _authors_order(windows, ColorNoiseMasker(ratio=config["ratios"][0]).num_masked(grid))
        outputs |= {f"extracted_{name}": ids for name, ids in extracted.items()} | {"extracted_windows": windows}
    return Computed(outputs, numbers={"len_keep": kept})


def spectra(item: Item) -> Computed:
    """Spectra of masks and fields, and the shape of what stays visible: means and deviations of our own draws."""
    config = item.config
    official = {key: want.double().numpy() for key, (want, _) in item.expected().items() if want is not None}
    side = config["window"]
    deviations: dict[str, float] = {}
    for index, preset in enumerate(config["presets"]):
        drawn = _Drawn(preset, config, seed=index)
        name = f"{preset['colour']}_{index}"
        spectrum = mask_spectrum(drawn.visible)
        expected = {
            f"mask_spectrum_mean_{name}": drawn.off_mean(spectrum, config["draws"]),
            f"mask_spectrum_std_per_draw_{name}": drawn.off_std(spectrum, config["draws"]),
            f"mask_spectrum_mean_first256_{name}": drawn.off_mean(spectrum, 256),
            f"field_bands_{name}": drawn.off_mean(field_bands(drawn.fields), config["fields"]),
            f"field_mask_bands_{name}": drawn.off_mean(field_bands(drawn.thresholded), config["fields"]),
        }
        deviations |= {key: off(official[key]) for key, off in expected.items() if key in official}
        if "presets" in item.numbers:
            off_shape = drawn.off_shape(item.numbers["presets"][index])
            deviations |= {f"numbers/presets/{index}/{key}": error for key, error in off_shape.items()}
    bins = np.rint(side * frequencies(side, side)).astype(int)
    return Computed(
        {},
        numbers={
            "coefficients_per_bin": [int((bins == k).sum()) for k in range(1, bins.max() + 1)],
            "band_edges_cycles_per_patch": list(BAND_EDGES),
        },
        deviations=deviations,
    )


class _Drawn:
    """Our own fields and masks of one preset, and how far an official statistic is off, in tolerances."""

    def __init__(self, preset: dict[str, Any], config: Any, seed: int) -> None:
        noise = Noise(
            preset["colour"],
            tuple(preset["sigma"]),
            preset["passes"],
            blur=preset["blur"],
            patterns=FIELDS,
            side=config["field"],
            seed=seed,
        )
        grid, draws = (config["window"], config["window"]), FIELDS * WINDOWS
        bank, generator = make_bank(noise), torch.Generator().manual_seed(seed)
        tops, lefts = torch.randint(noise.side - grid[0] + 1, (2, draws), generator=generator)
        flips = torch.rand(2, draws, generator=generator) < 0.5
        windows = cut_windows(bank, torch.arange(draws) % FIELDS, tops, lefts, flips[0], flips[1], grid)
        mask = Mask.from_scores(-windows.flatten(1), ColorNoiseMasker(ratio=config["ratio"]).num_masked(grid))
        self.visible = (~mask.masked).unflatten(1, grid).numpy()
        self.fields = bank.numpy()
        self.thresholded = self.fields > np.quantile(self.fields, config["ratio"], axis=(1, 2), keepdims=True)
        self.config = config

    def off_mean(self, values: np.ndarray, official_draws: int) -> Off:
        """Compare with a mean over draws; `values` has one row a draw, our fields taking turns."""
        ours, error = values.mean(axis=0), self._error(values, official_draws)
        return lambda official: float(np.max(np.abs(official - ours) / (SIGMAS * error)))

    def off_std(self, values: np.ndarray, official_draws: int) -> Off:
        """Compare with a standard deviation over draws."""
        squares = np.square(values - values.mean(axis=0))
        ours = np.sqrt(squares.mean(axis=0))
        error = self._error(squares, official_draws) / (2 * ours)
        return lambda official: float(np.max(np.abs(official - ours) / (SIGMAS * error)))

    def off_shape(self, stated: dict[str, Any]) -> dict[str, float]:
        """Compare counts, clusters, neighbours, distances, and the least and largest visibility of a position."""
        found, draws = visible_statistics(self.visible), self.config["stat_draws"]
        ours = {
            "components_4": found.num_clusters,
            "largest_component": found.largest_cluster,
            "visible_neighbours_per_visible_patch": found.neighbours,
            "mean_distance_masked_to_visible": found.mean_distance,
            "max_distance_masked_to_visible": found.max_distance,
        }
        off = {}
        if "visible_per_mask" in stated:
            same = sorted(set(found.num_visible)) == stated["visible_per_mask"]
            off["visible_per_mask"] = 0.0 if same else math.inf
        for name, official in stated.get("statistics_of_visible_patches", {}).items():
            values = ours[name].astype(float)
            off[f"{name}/mean"] = self.off_mean(values, draws)(official["mean"])
            off[f"{name}/std"] = self.off_std(values, draws)(official["std"])
        if (ends := stated.get("visible_probability_min_max_over_cells")) is not None:
            share = self.visible.mean(axis=0)  # its ends are no further off than the worst position
            far = np.abs(np.array(ends) - (share.min(), share.max())).max()
            error = self._error(self.visible.astype(float), self.config["draws"]).max()
            off["visible_probability_min_max_over_cells"] = float(far / (SIGMAS * error))
        return off

    def _error(self, values: np.ndarray, official_draws: int) -> np.ndarray:
        """Standard error of the difference of two means; windows of one field are alike, so fields count apart."""
        groups = values.reshape(-1, FIELDS, *values.shape[1:])
        per_field = len(groups)
        if per_field == 1:
            return np.sqrt(values.var(axis=0, ddof=1) * (1 / FIELDS + 1 / official_draws))
        within = groups.var(axis=0, ddof=1).mean(axis=0)
        between = np.maximum(groups.mean(axis=0).var(axis=0, ddof=1) - within / per_field, 0)
        fields = 1 / FIELDS + 1 / self.config["fields"]
        return np.sqrt(within * (1 / len(values) + 1 / official_draws) + between * fields)


def _authors_order(windows: Tensor, num_masked: int) -> dict[str, Tensor]:
    """A mask and its ids in the order of the noise, largest values first, as the authors keep them."""
    noise = -windows.flatten(1)
    mask = Mask.from_scores(noise, num_masked)
    _, ids = in_order(mask, noise)
    return {
        "mask": mask.masked.to(torch.uint8),
        "ids_restore": ids.argsort(dim=1),
        "ids_keep": ids[:, : mask.ids_keep.shape[1]],
    }


ITEMS = {
    "colormae_filters": filters,
    "colormae_masking": masking,
    "colormae_spectra": spectra,
    "trajectory_colormae": trajectory,
}
