"""Our networks for an item: of the sizes that it states, with its weights, and under the authors' names."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.core.mask import Mask
from pantomim.formats.files import load_exactly
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig, Features
from pantomim.optim import Group

Names = Callable[[str], str]  # from our name of a parameter or module to the authors'


def encoder_config(config: Mapping[str, Any], images: Tensor, **settings: Any) -> EncoderConfig:
    """The encoder for an item's images, which are normalised already; `settings` say what the config does not."""
    channels = images.shape[1]
    stated = {
        "image_size": (images.shape[2], images.shape[3]),
        "patch_size": config["patch_size"],
        "in_chans": channels,
        "width": config["embed_dim"],
        "depth": config.get("depth"),
        "heads": config["num_heads"],
        "mlp_ratio": float(config.get("mlp_ratio", 4.0)),
        "drop_path": float(config.get("drop_path", 0.0)),
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    return EncoderConfig(**(stated | settings))


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """MAE's decoder, with the encoder's ratio and stochastic depth."""
    return DecoderConfig(
        width=config["decoder_embed_dim"],
        depth=config["decoder_depth"],
        heads=config["decoder_num_heads"],
        mlp_ratio=float(config.get("mlp_ratio", 4.0)),
        drop_path=float(config.get("drop_path", 0.0)),
    )


def fill(
    model: nn.Module, weights: Mapping[str, Tensor], names: Names, source: str, kept: tuple[str, ...] = ()
) -> None:
    """Load weights under the authors' names; what begins with `kept` stays as it is.

    Raises:
        ValueError: with all that is missing, unexpected or mis-shaped.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(kept)} if kept else {}
    ours = {names(name): name for name in model.state_dict() if name not in own}
    load_exactly(model, {ours.get(name, name): tensor for name, tensor in weights.items()} | own, source)


def named(model: nn.Module, names: Names) -> dict[str, nn.Parameter]:
    """All parameters under the authors' names."""
    return {names(name): parameter for name, parameter in model.named_parameters()}


def backward(
    loss: Tensor, model: nn.Module, names: Names, prefix: str = "grad/"
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradients of all parameters that have one, under a prefix, and their L2 norms."""
    loss.backward()
    found = {names(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in found.items()}
    return {f"{prefix}{name}": gradient.clone() for name, gradient in found.items()}, norms


def norm_eps(model: nn.Module) -> dict[str, float]:
    """The one eps of all layer norms, fixed in our modules: files for timm could not tell another."""
    (eps,) = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    return {"layer_norm_eps": eps}


def described(groups: Iterable[Group], names: Names) -> list[dict[str, Any]]:
    """Groups of an optimiser in the layout of the items."""
    return [
        {
            "lr_scale": group["lr_scale"],
            "weight_decay": group["weight_decay"],
            "parameters": [names(own) for own in group["param_names"]],
        }
        for group in groups
    ]


def decay_used(groups: Iterable[Mapping[str, Any]]) -> float:
    """The weight decay that an item was made with; only its groups tell."""
    return max((group["weight_decay"] for group in groups), default=0.05)


def in_order(mask: Mask, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The authors' order of patches, which is that of the noise, visible ones first.

    Returns: where each of their visible patches is among ours, which are in raster order; all ids in their order.
    """
    kept, masked = (noise.gather(1, ids).argsort(dim=1) for ids in (mask.ids_keep, mask.ids_mask))
    return kept, torch.cat([mask.ids_keep.gather(1, kept), mask.ids_mask.gather(1, masked)], dim=1)


def joined(features: Features, order: Tensor | None = None) -> Tensor:
    """Prefix tokens and patches in one tensor, as the authors have them."""
    patches = features.patches if order is None else take(features.patches, order)
    return torch.cat([features.prefix, patches], dim=1)
