"""Our networks for an item: of the sizes that it states, with its weights, and under the authors' names."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.files import load_exactly
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import take
from pantomim.nn.vit import Encoder, EncoderConfig, Features
from pantomim.optim import Group
from pantomim.parity.item import Computed, Item, distance, exact
from pantomim.teachers.base import Guidance

M = TypeVar("M", bound=nn.Module)
Names = Callable[[str], str]  # from our name of a parameter or module to the authors'

STORED_TABLE = 1e-6  # tolerance of a position table that is stored in float32


def encoder_config(item: Item, **settings: Any) -> EncoderConfig:
    """The encoder for an item's images, which are normalised already; `settings` say what its config does not."""
    config, (_, channels, *image_size) = item.config, item.input("images").shape
    stated = {
        "image_size": tuple(image_size),
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


def decoder_config(item: Item) -> DecoderConfig:
    """MAE's decoder, with the encoder's MLP ratio and stochastic depth."""
    return DecoderConfig(
        width=item.config["decoder_embed_dim"],
        depth=item.config["decoder_depth"],
        heads=item.config["decoder_num_heads"],
        mlp_ratio=float(item.config.get("mlp_ratio", 4.0)),
        drop_path=float(item.config.get("drop_path", 0.0)),
    )


def filled(
    item: Item, model: M, names: Names, weights: Mapping[str, Tensor] | None = None, kept: tuple[str, ...] = ()
) -> M:
    """The model in float64 with an item's weights, by default all, loaded exactly; what begins with `kept` stays."""
    weights, state = item.weights() if weights is None else weights, model.double().state_dict()
    own = {name: tensor for name, tensor in state.items() if kept and name.startswith(kept)}
    ours = {names(name): name for name in state if name not in own}
    load_exactly(model, {ours.get(name, name): tensor for name, tensor in weights.items()} | own, item.name)
    return model


def batch(item: Item) -> Batch:
    """All of an item's images."""
    images = item.input("images")
    return Batch(images, total=len(images))


def watch(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What the modules return in the next forward passes."""
    seen: dict[str, Any] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    return seen


def off_table(built: Tensor | None, stored: Tensor) -> float:
    """How far a position table, as built, is from one that was rounded to float32."""
    assert built is not None
    return distance(built, stored) / STORED_TABLE


def backward(item: Item, loss: Tensor, model: nn.Module, names: Names, suffix: str = "") -> Computed:
    """The gradients of all parameters that have one, their L2 norms, and what is fixed in the model."""
    loss.backward()
    gradients = {names(name): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Computed(
        {f"grad{suffix}/{name}": gradient for name, gradient in gradients.items()},
        {f"gradient_l2_norms{suffix}": {name: gradient.norm().item() for name, gradient in gradients.items()}},
        config=norm_eps(model),
        errors=off_indices(item, model),
    )


def off_indices(item: Item, model: nn.Module) -> dict[str, float]:
    """Stored matrices of relative positions against those of the model's encoders."""
    ours = [part.relative_index for part in model.modules() if isinstance(part, Encoder)]
    return {
        name: exact(bool(ours) and all(index is not None and torch.equal(index, stored) for index in ours))
        for name, stored in item.indices().items()
    }


def norm_eps(model: nn.Module) -> dict[str, float]:
    """The constants of layer and batch norms, fixed in our modules: files for timm could not tell others."""
    found: dict[str, float] = {}
    layer, batch = (nn.LayerNorm, "layer_norm"), (nn.modules.batchnorm._BatchNorm, "batch_norm")
    for (kind, name), constant in ((layer, "eps"), (batch, "eps"), (batch, "momentum")):
        values = {getattr(module, constant) for module in model.modules() if isinstance(module, kind)}
        if values:
            (found[f"{name}_{constant}"],) = values
    return found


def described(groups: Iterable[Group], names: Names) -> list[dict[str, Any]]:
    """Groups of an optimiser in the layout of the items."""
    kept = ("lr_scale", "weight_decay")
    return [{k: g[k] for k in kept} | {"parameters": list(map(names, g["param_names"]))} for g in groups]


def decay_used(groups: Iterable[Mapping[str, Any]]) -> float:
    """The weight decay that an item was made with; only its groups tell."""
    return max((group["weight_decay"] for group in groups), default=0.05)


def in_order(mask: Mask, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Where the authors' visible patches, in the noise's order, are among ours; and the item's outputs."""
    kept, masked = (noise.gather(1, ids).argsort(dim=1) for ids in (mask.ids_keep, mask.ids_mask))
    ids_keep, ids_dump = mask.ids_keep.gather(1, kept), mask.ids_mask.gather(1, masked)
    ids_shuffle = torch.cat([ids_keep, ids_dump], dim=1)
    ids = {"ids_keep": ids_keep, "ids_dump": ids_dump, "ids_shuffle": ids_shuffle}
    return kept, ids | {"ids_restore": ids_shuffle.argsort(dim=1), "mask": mask.masked}


def joined(features: Features | Guidance, order: Tensor | None = None) -> Tensor:
    """Prefix tokens and patches in one tensor, as the authors have them."""
    patches = features.patches if order is None else take(features.patches, order)
    return torch.cat([features.prefix, patches], dim=1)
