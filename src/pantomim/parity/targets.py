"""Targets that are no tokens: MaskFeat's histograms of gradients and SimMIM's pixels, rebuilt with our modules.

Official: facebookresearch/SlowFast, microsoft/SimMIM.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.files import load_exactly
from pantomim.masking.grid import GridMasker
from pantomim.methods.base import Draws
from pantomim.methods.beit import BEiT, BEiTConfig
from pantomim.nn.tokens import unpatchify
from pantomim.nn.vit import EncoderConfig, MaskTokens
from pantomim.optim import parameter_groups
from pantomim.parity.beit import compare_indices, encoder_config, split_indices
from pantomim.parity.compare import gradients, norm_eps, norms
from pantomim.parity.initialisation import initialisation
from pantomim.parity.item import Computed, Item
from pantomim.parity.trajectory import Run, Tape, run_config
from pantomim.targets import hog
from pantomim.targets.distance import Distance
from pantomim.targets.pixels import PixelTargetConfig

COUNTED = re.compile(r"input (\d+), mask patch (\d+), ratio ([\d.]+)")


def histograms(item: Item) -> Computed:
    """Histograms before and after their normalisation, and the target of every patch."""
    config, images = item.config, item.input("images")
    target = hog.HOGTargetConfig(bins=config["nbins"], cell=config["cell"], window=config["gaussian_window"] or None)
    model = target.build(EncoderConfig(image_size=(config["size"],) * 2, patch_size=config["patch"], depth=1).build())
    plain, labels = model.histograms(images), model(images)
    across, down = hog.gradients(images)
    length = (across.square() + down.square()).sqrt()
    outputs = {
        "histogram_unnormalised": plain,
        "histogram_normalised": F.normalize(plain, dim=2, eps=hog.EPS),
        "labels_all": labels,
        "labels_masked": labels[item.tensors["in/mask"]],
    }
    return Computed(
        outputs,
        numbers={
            "smallest_distance_to_a_bin_border_in_bins": _to_border(across, down, config["nbins"]),
            "pixels_with_zero_gradient": int((length == 0).sum()),
        },
    )


def _to_border(across: Tensor, down: Tensor, bins: int) -> float:
    """How close, in bins, a gradient comes to the border of its bin."""
    turn = (torch.atan2(across, down) / torch.pi * bins)[(across != 0) | (down != 0)]
    return (turn - turn.round()).abs().min().item()


def simmim_pretrain(item: Item) -> Computed:
    """Features, the picture that is predicted, the loss and every gradient; the head's rows are in another order."""
    config, images = item.config, item.input("images")
    masked = item.tensors["in/mask"].flatten(1).bool()
    method = BEiTConfig(
        encoder=encoder_config(item, images, "shared" if config["shared_relative_bias"] else "none"),
        masker=GridMasker(ratio=config["mask_ratio"], cell=config["mask_patch_size"] // config["patch_size"]),
        target=PixelTargetConfig(normalise="none", distance=Distance("l1")),
        initialise_head=False,
    )
    model = method.build().double()
    weights, indices = split_indices(item.weights())
    order = _shuffled(config["patch_size"], images.shape[1])
    load_exactly(model, {_our_name(name): _ordered(name, t, order) for name, t in weights.items()}, item.name)

    mask = Mask.from_masked(masked, method.masker.num_masked(method.encoder.grid))
    result = model(Batch(images, total=len(images)), Draws(mask))
    result["loss"].backward()
    latent = model.encoder(images, mask_tokens=MaskTokens(masked, model.mask_token))
    rows, cols = method.encoder.grid
    parameters = _official(model)
    found = gradients("grad/", parameters)
    outputs = {
        "feature_map": latent.patches.mT.unflatten(-1, (rows, cols)),
        "reconstruction": unpatchify(model.head(latent.patches), config["patch_size"], (rows, cols)),
        "loss": result["loss"],
        **{name: _ordered(name, gradient, order.argsort()) for name, gradient in found.items()},
    }
    groups = parameter_groups(model, 0.05, decay_tokens=False, decay_mask_token=True)
    return Computed(
        outputs,
        numbers={
            "gradient_l2_norms": norms(parameters),
            "pretraining_parameter_groups": [
                {
                    "weight_decay": "default" if group["weight_decay"] else 0.0,
                    "parameters": [_official_name(name) for name in group["param_names"]],
                }
                for group in groups
            ],
            "mask_count": {key: _count(key) for key in item.numbers.get("mask_count", {})},
        },
        config={"layer_norm_eps": norm_eps(model)},
        deviations=compare_indices(model.encoder.relative_index, indices)
        | initialisation(item, lambda: _official(method.build())),
    )


def simmim_trajectory(item: Item) -> Computed:
    """A run of the authors' `main_simmim.py`."""
    config, images = item.config, item.input("images")
    encoder = encoder_config(item, images, "shared" if config["shared_relative_bias"] else "none")
    method = BEiTConfig(
        encoder=replace(encoder, drop_path=float(config["drop_path"])),
        target=PixelTargetConfig(normalise="none", distance=Distance("l1")),
        initialise_head=False,
    )
    model, order = method.build().double(), _shuffled(config["patch_size"], images.shape[1])
    weights, _ = split_indices(item.weights())
    load_exactly(model, {_our_name(name): _ordered(name, t, order) for name, t in weights.items()}, item.name)
    run = run_config(
        item,
        method,
        schedule="drop",
        drop_at=config["milestone"] / config["epochs"],
        lead=-1,
        start_lr=config["start_lr"],
        min_lr=config["gamma"] * config["lr"],
        decay_tokens=False,
        decay_mask_token=True,
    )
    trained = Run(run, model, Tape(item), lambda tape: Draws(tape.masked()), _official_name).carry_out()
    back = order.argsort()
    head = {name: _ordered(name, t, back) for name, t in trained.weights("final/").items() if "decoder.0." in name}
    kernel = "final/decoder.0.weight"
    return trained.computed(head | {kernel: head[kernel][:, :, None, None]})


def _shuffled(patch_size: int, channels: int) -> Tensor:
    """For each of our numbers of a patch (channel fastest), its place in a pixel shuffle (channel slowest)."""
    return torch.arange(channels * patch_size**2).view(channels, -1).T.flatten()


def _ordered(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """The rows of the head (a convolution there) in another order; everything else as it is."""
    if "decoder.0." not in name:
        return tensor
    return tensor[order].flatten(1) if tensor.ndim > 1 else tensor[order]


def _count(key: str) -> int:
    """Hidden cells of a square image, as the item's entry describes it."""
    found = COUNTED.fullmatch(key)
    if found is None:
        raise ValueError(f"mask_count must have entries such as 'input 224, mask patch 32, ratio 0.6'; got {key!r}")
    side = int(found[1]) // int(found[2])
    return GridMasker(ratio=float(found[3]), cell=1).num_masked((side, side))


def _our_name(name: str) -> str:
    if name == "encoder.mask_token":
        return "mask_token"
    return name.replace("decoder.0.", "head.")


def _official_name(name: str) -> str:
    return "encoder.mask_token" if name == "mask_token" else name.replace("head.", "decoder.0.")


def _official(model: BEiT) -> Mapping[str, nn.Parameter]:
    return {_official_name(name): parameter for name, parameter in model.named_parameters()}
