"""Networks of other libraries as our `Encoder`, so that their training can be continued on parts of images.

Their weights are renamed, cut and joined until they have our names; names and shapes then tell the config, but for what
the network itself must say (`Untold`). Whether the two compute the same is not believed but tried, on one image. The
same renaming, read backwards, fills a network of theirs with our weights (`fill_as`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.core.modes import initial_weights_unused
from pantomim.formats.files import key_report
from pantomim.formats.native import exact_ratio
from pantomim.nn.attention import AttentionBias
from pantomim.nn.mlp import Activation, MlpConfig
from pantomim.nn.rope import Rope, rope_table
from pantomim.nn.vit import Encoder, EncoderConfig, Interpolation, Norms, RelativePosition, Resampling

TELLING = {"patch_embed.proj.weight": 4, "blocks.0.attn.proj.weight": 2, "blocks.0.mlp.fc2.weight": 2}
SHARED_TABLE, OWN_TABLE = "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"
ACTIVATIONS: dict[str, Activation] = {  # by what the libraries call their modules
    "GELU": "gelu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu", "SiLU": "silu", "SiLUActivation": "silu",
}  # fmt: skip
FIRST_BLOCK = re.compile(r"(^|\.)(blocks|layers?)\.0\.")
POOLING = re.compile(r"^(head|pooler|attn_pool|fc_norm)\b")  # parts that are left out
Naming = Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]  # weights of a library's network by our names
DIFFERENCE = 1e-3  # at most, of features that are the same, relative to the largest; sums in another order make 1e-5


@dataclass(frozen=True)
class Untold:
    """What weights do not tell of a network."""

    image_size: tuple[int, int]
    heads: int
    rope: Rope | None
    resampling: Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation | None
    layer_scale: float = 1e-5  # of new blocks, where trained ones have scales: DINOv2's own, and timm's


def as_trainable(
    wrapped: Any,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    untold: Untold,
    only: Mapping[str, Any] = MappingProxyType({}),
) -> Encoder:
    """The encoder of weights under our names, `only` if its config has these values.

    A `ValueError` if its features of an image are not `wrapped`'s.
    """
    source, found = wrapped.source, dict(weights)
    if absent := [name for name, dims in TELLING.items() if name not in found or found[name].dim() != dims]:
        raise not_trainable(source, model, f"it has no {', '.join(absent)}, or of another shape")
    parts = {name: part for name, part in model.named_modules() if not POOLING.match(name)}
    epsilons = {part.eps for part in parts.values() if isinstance(part, nn.LayerNorm)}
    activations = {_activation(part) for name, part in parts.items() if FIRST_BLOCK.search(name)} - {None}
    if len(epsilons) != 1 or len(activations) != 1:
        what = f"layer norms of eps {sorted(epsilons) or 'none'}, activations {sorted(map(str, activations)) or 'none'}"
        raise not_trainable(source, model, f"it has {what}, where ours has one of each")
    found = _joined(found)
    config = _config(found, untold, epsilons.pop(), activations.pop() or "gelu")
    if other := [name for name, value in only.items() if getattr(config, name) != value]:
        raise not_trainable(source, model, f"it has another {other[0]}")
    found = _placed(found, config)
    with initial_weights_unused():
        encoder = config.build().to(found["patch_embed.proj.weight"].dtype)
    if report := _first_report(encoder.state_dict(), found):
        raise not_trainable(source, model, report)
    encoder.load_state_dict(found)
    encoder.eval()
    with torch.no_grad():
        images = torch.rand(1, config.in_chans, *config.image_size, generator=torch.Generator().manual_seed(0))
        images = images.to(found["patch_embed.proj.weight"])
        ours, theirs = (torch.cat(each(images)[:2], dim=1) for each in (encoder, wrapped))
    if ours.shape != theirs.shape or not bool((ours - theirs).abs().max() <= DIFFERENCE * theirs.abs().max()):
        raise not_trainable(source, model, "with the same weights it computes something else")
    return encoder


def renamed(weights: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The weights by other names: each pattern (a regular expression) is replaced in turn; "" leaves a weight out."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for pattern, ours in names:
            name = re.sub(pattern, ours, name)
        if name:
            found[name] = tensor.detach()
    return found


def half_apart(weights: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Queries and keys whose rotated points were neighbouring channels, with their coordinates half a head apart."""

    def reordered(rows: Tensor, heads: int = heads) -> Tensor:
        return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    found = dict(weights)
    for name, tensor in weights.items():
        if re.search(r"attn\.qkv\.(weight|bias)$", name):
            query, key, value = tensor.chunk(3)
            found[name] = torch.cat([reordered(query), reordered(key), value])
        elif re.search(r"attn\.(q_bias|[qk]_proj\.(weight|bias))$", name):
            found[name] = reordered(tensor)
        elif re.search(r"attn\.[qk]_norm\.(weight|bias)$", name):  # which all heads share
            found[name] = reordered(tensor, 1)
    return found


def same_rope(rope: Rope, sines: Tensor, cosines: Tensor, grid: tuple[int, int]) -> bool:
    """Whether a library's rotary positions on a grid, half a head apart, are ours."""
    ours = rope_table(rope, grid, cosines.shape[-1], 0)
    theirs = torch.cat([cosines, sines], dim=-1).to(ours)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=1e-4)


def fill_as(model: nn.Module, named: Naming, weights: Mapping[str, Tensor], config: EncoderConfig) -> str:
    """Fill a network of another library with our weights; what is in the way, or "": nothing.

    `named` is the way in, from its names to ours. It is run on the numbers of the places of its weights instead of
    their values, and read backwards: where it puts a number, our value belongs into that place; where it puts a zero,
    ours must be zero.
    """
    theirs = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    ends = list(accumulate((tensor.numel() for tensor in theirs.values()), initial=1))
    numbers = (torch.arange(end - tensor.numel(), end) for end, tensor in zip(ends[1:], theirs.values(), strict=True))
    places = {name: each.view(tensor.shape) for each, (name, tensor) in zip(numbers, theirs.items(), strict=True)}
    places = _with_biases(_placed(_joined(named(model, places)), config))
    ours = _with_biases(weights)
    for name in places.keys() - ours.keys():  # what changes nothing
        if re.search(r"\.gamma_[12]$", name):
            ours[name] = torch.ones(places[name].shape)
    if report := _first_report(places, ours):
        return report
    _move(ours, places, config)
    values = torch.zeros(ends[-1], dtype=torch.float64)
    filled = torch.zeros(ends[-1], dtype=torch.bool)
    for name, numbers_of in places.items():
        known = numbers_of > 0
        if name.endswith("attn.qkv.bias") and config.rope is None:  # a bias of keys adds the same to all products
            known |= (torch.arange(len(known)) // (len(known) // 3)) == 1
        if ours[name][~known].any():
            return f"no place for {name}"
        values[numbers_of] = ours[name].double()
        filled[numbers_of] = True
    for tensor, end in zip(theirs.values(), ends[1:], strict=True):
        span = slice(end - tensor.numel(), end)
        with torch.no_grad():
            tensor.copy_(torch.where(filled[span], values[span], tensor.flatten().double()).view(tensor.shape))
    return ""


def _move(ours: dict[str, Tensor], places: Mapping[str, Tensor], config: EncoderConfig) -> None:
    """Add up what is added anyway, where theirs has fewer places: positions of tokens, the bias of patches."""
    if (table := ours.get("pos_embed")) is None:
        return
    ours["pos_embed"] = table = table.clone()
    own = int(config.class_token)
    for token, rows in (("cls_token", slice(0, own)), ("reg_token", slice(own, config.num_prefix))):
        if token in ours and not places["pos_embed"][:, rows].any():
            ours[token] = ours[token] + table[:, rows]
            table[:, rows] = 0
    if not places["patch_embed.proj.bias"].any():
        table[:, config.num_prefix :] += ours["patch_embed.proj.bias"]
        ours["patch_embed.proj.bias"] = torch.zeros_like(ours["patch_embed.proj.bias"])


def _first_report(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """As `key_report`; what differs in one block differs in all: the first is named alone."""
    first = [{k: t for k, t in each.items() if not re.match(r"blocks\.[1-9]", k)} for each in (expected, found)]
    return key_report(*first) or key_report(expected, found)


def _placed(weights: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """The same with rows of zeros in a table of positions for the tokens that have none in it."""
    found = dict(weights)
    if (table := found.get("pos_embed")) is not None:
        rows = config.num_prefix + config.grid[0] * config.grid[1] - table.shape[1]
        place = 0 if rows == config.num_prefix else int(config.class_token)  # of the tokens without a position
        zeros = table.new_zeros(1, max(rows, 0), table.shape[2])
        found["pos_embed"] = torch.cat([table[:, :place], zeros, table[:, place:]], dim=1)
    return found


def _with_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with one bias of queries, keys and values in each block, zeros where they have none."""
    found = dict(weights)
    for name in [name for name in weights if name.endswith(".attn.qkv.weight")]:
        owner, zeros = name.removesuffix("qkv.weight"), weights[name].new_zeros(len(weights[name]))
        parts = [found.pop(f"{owner}{part}_bias", None) for part in "qv"]
        if parts[0] is not None and parts[1] is not None:
            found[f"{owner}qkv.bias"] = torch.cat([parts[0], zeros[: len(parts[0])], parts[1]])
        found.setdefault(f"{owner}qkv.bias", zeros)
    return found


def not_trainable(source: str, model: nn.Module, why: str) -> ValueError:
    """The error of a network that is no encoder of ours."""
    return ValueError(
        f"{source} must be a vision transformer such as ViT, DeiT III, DINOv2, DINOv3, BEiT, EVA-02, CLIP or SigLIP "
        f"for its training to be continued; got {type(model).__name__}, which no encoder of ours is: {why}. It can "
        f"teach one of ours: leave prepare.init out, and name it as prepare.teacher of dbot. Or choose another one."
    )


def _joined(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with one projection of queries, keys and values, two layers before a gate, and a bias of patches."""
    found = {}
    for name, tensor in weights.items():
        owner, _, rest = name.rpartition(".attn.")
        attn = f"{owner}.attn"
        if rest == "q_proj.weight":
            parts = [weights[f"{attn}.{part}_proj.weight"] for part in "qkv" if f"{attn}.{part}_proj.weight" in weights]
            found[f"{attn}.qkv.weight"] = torch.cat(parts)
        elif rest == "q_proj.bias" and f"{attn}.k_proj.bias" in weights:
            found[f"{attn}.qkv.bias"] = torch.cat([weights[f"{attn}.{part}_proj.bias"] for part in "qkv"])
        elif rest in ("q_proj.bias", "v_proj.bias") and f"{attn}.k_proj.bias" not in weights:
            found[f"{attn}.{rest[0]}_bias"] = tensor
        elif rest not in ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"):
            found[name] = tensor
    for name in [name for name in found if ".mlp.fc1." in name]:
        hidden = found[re.sub(r"fc1\.\w+", "fc2.weight", name)].shape[1]
        if len(found[name]) == 2 * hidden:
            gate, values = found.pop(name).chunk(2)
            found |= {name.replace("fc1", "fc1_g"): gate, name.replace("fc1", "fc1_x"): values}
        elif name.replace("fc1", "fc1_g") in found:
            found[name.replace("fc1", "fc1_x")] = found.pop(name)
    kernel = found["patch_embed.proj.weight"]
    return {"patch_embed.proj.bias": kernel.new_zeros(len(kernel))} | found


def _activation(part: nn.Module) -> Activation | None:
    """The activation that a module is, if it is one of ours."""
    found = ACTIVATIONS.get(type(part).__name__)
    return "gelu_tanh" if found == "gelu" and getattr(part, "approximate", "none") == "tanh" else found


def _config(weights: Mapping[str, Tensor], untold: Untold, eps: float, activation: Activation) -> EncoderConfig:
    """What names and shapes tell, and what they do not."""
    width, in_chans, patch_size, _ = weights["patch_embed.proj.weight"].shape
    bias: AttentionBias = "qkv" if "blocks.0.attn.qkv.bias" in weights else "none"
    relative: RelativePosition = "blocks" if OWN_TABLE in weights else "none"
    gated = "blocks.0.mlp.fc1_g.weight" in weights
    gamma = weights.get("blocks.0.gamma_1")
    return EncoderConfig(
        image_size=untold.image_size,
        patch_size=patch_size,
        in_chans=in_chans,
        width=width,
        depth=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        heads=untold.heads,
        mlp_ratio=exact_ratio(weights["blocks.0.mlp.fc2.weight"].shape[1], width),
        registers=weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        class_token="cls_token" in weights,
        position="learned" if "pos_embed" in weights else "none",
        relative_position="shared" if SHARED_TABLE in weights else relative,
        rope=untold.rope,
        resampling=untold.resampling,
        attention_bias="qv" if "blocks.0.attn.q_bias" in weights else bias,
        mlp=MlpConfig(activation, gated, "blocks.0.mlp.norm.weight" in weights),
        norms=Norms(
            eps, "norm_pre.weight" in weights, "norm.weight" in weights, "blocks.0.attn.q_norm.weight" in weights
        ),
        layer_scale=None if gamma is None else untold.layer_scale,
        mean=untold.mean,
        std=untold.std,
        interpolation=untold.interpolation,
    )
