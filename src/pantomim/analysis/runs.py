"""A finished run from its folder alone: the method that it trained, and images that it has not seen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pantomim.config import MaskConfig, Pretrain, from_yaml
from pantomim.core.modes import initial_weights_unused
from pantomim.data.dataset import Dataset
from pantomim.data.layout import part_names
from pantomim.data.masks import read_masked
from pantomim.data.sources import HELD_BACK, open_source, open_split, read_contents, splits
from pantomim.formats.files import frozen_hashes, key_report, other_parts
from pantomim.formats.native import load_decoder, load_encoder_folder, load_predictor, read_frozen
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.mae import MAEConfig

NUM_PHOTOS = 12  # that are shown one by one


def run_config(run: str | Path) -> Pretrain:
    """The config of a run."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"inspect.runs must be run folders; got {run}, which has no config.yaml. Check the path.")
    return from_yaml(Pretrain, path)


def load_run(run: str | Path, kind: str | None = None) -> Any:
    """The method of a finished run of MAE, BEiT or CAE, or of one `kind` of these, in evaluation mode."""
    run = Path(run)
    config = run_config(run).method
    if not isinstance(config, MAEConfig | BEiTConfig | CAEConfig) or kind not in (None, config.kind):
        asked = kind or "mae, beit or cae"
        raise ValueError(f"inspect.runs must be runs of {asked}; got {run}, a run of {config.kind}. Name another.")
    config.guide.check_kept(run)
    encoder = load_encoder_folder(run)
    with initial_weights_unused():
        method: Any = config.build()
    if isinstance(config, MAEConfig):
        method.encoder, method.decoder = encoder, load_decoder(run)
        return method.eval()
    weights = load_predictor(run)
    method.encoder.load_state_dict(encoder.state_dict())
    method.reset()
    ours = method.exports()["predictor"]
    if report := key_report(ours, weights):
        raise ValueError(
            f"{run / 'predictor.safetensors'} must hold what config.yaml describes; got {report}. "
            f"Copy the folder again, or give the tokenizer that it was trained with."
        )
    if (stated := read_frozen(run)) is not None and (different := other_parts(frozen_hashes(method), stated)):
        raise ValueError(
            f"{run} must be looked at with the tokenizer that it was trained with; got another {different}. "
            f"Put the files back that config.yaml names."
        )
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(weights[name])
    return method.eval()


def held_out(source: str, scale: float | None = None, masks: MaskConfig | None = None) -> Dataset:
    """Images that pre-training did not see: test, else val, else the fixed 20 % of a source without either.

    Of a source with `masks`, that are no images.
    """
    contents = read_contents(source) if masks is None else read_masked(source, masks.name)[0]
    return open_split(replace(contents, scale=scale), source, part_names(contents.splits)["test"])


def shown_images(run: str | Path, source: str | None, scale: float | None, least: int) -> Dataset:
    """Images held out of a run's data, which may lie at `source` now; all, where fewer than `least` are held out."""
    data = run_config(run).data
    source, scale = source or data.source, scale or data.scale
    dataset = held_out(source, scale, data.masks)
    return dataset if len(dataset) >= least else open_source(source, "all", scale)


def place(dataset: Dataset, run: str | Path | None) -> str:
    """Which images of a source these are, to stand behind its name; `run` is whose data they are, if any."""
    if dataset.split == "all":
        few = f"fewer than {NUM_PHOTOS} are held out, so those of training are among them"
        return "" if run is None else f" ({few})"
    if splits(dataset.spec):
        return f" of the {dataset.split} split"
    seen = "saw as well" if run is not None and run_config(run).data.holdout < HELD_BACK else "did not see"
    return f" of the fixed {100 * HELD_BACK:.0f} % that pre-training {seen}"


def choose(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """A seeded draw of images, the classes in turn where there are labels; in order of class."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    if dataset.labels is None:
        return order[:count]
    labels = dataset.labels[order]
    turn = np.zeros(len(order), dtype=np.int64)  # of each image within its class
    for label in np.unique(labels):
        turn[labels == label] = np.arange(np.count_nonzero(labels == label))
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return chosen[np.argsort(dataset.labels[chosen], kind="stable")]
