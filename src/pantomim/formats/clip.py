"""OpenAI's CLIP image towers: timm's vision transformer with a norm before its blocks, and a projection at the end.

Source: openai/CLIP, `clip/model.py` and `clip/clip.py`.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pantomim.core.modes import initial_weights_unused
from pantomim.formats.files import load_exactly
from pantomim.formats.native import exact_ratio
from pantomim.formats.reader import read_weights
from pantomim.formats.timm import TimmEncoder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64  # of every published tower; weights do not tell

Activation = Literal["quick_gelu", "gelu"]

# Theirs and timm's, in the order in which they are replaced.
NAMES = (
    ("conv1.", "patch_embed.proj."), ("transformer.resblocks.", "blocks."), ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."), ("ln_", "norm"), ("attn.in_proj_", "attn.qkv."), ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."), ("mlp.c_proj.", "mlp.fc2."), ("ls_", "ls"), ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
)  # fmt: skip
FIRST_MLP = "transformer.resblocks.0.mlp.c_fc.weight"
TELLING = {"conv1.weight": 4, "positional_embedding": 2, "class_embedding": 1, "proj": 2, FIRST_MLP: 2}


def load_clip(path: str | Path) -> TimmEncoder:
    """The image tower of a published archive, or of weights by name (of model or tower), in evaluation mode."""
    return clip_encoder(image_tower(read_weights(path)), f"clip:{path}", activation="quick_gelu")


def image_tower(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the image tower by names without `visual.`; of a tower alone, all of them."""
    found = {name.removeprefix("visual."): tensor for name, tensor in weights.items() if name.startswith("visual.")}
    return found or dict(weights)


def clip_encoder(
    weights: Mapping[str, Tensor],
    source: str,
    *,
    activation: Activation,
    heads: int | None = None,
    norm_eps: float = 1e-5,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> TimmEncoder:
    """The tower of weights under OpenAI's names, each of which must be right; without `heads` they are 64 wide."""
    from timm.models.vision_transformer import VisionTransformer

    absent = [name for name, dims in TELLING.items() if name not in weights or weights[name].dim() != dims]
    if absent:
        raise ValueError(
            f"{source} must hold CLIP's vision transformer; got weights without {', '.join(absent)}. They begin with "
            f"{', '.join(sorted(weights)[:3])}. CLIP's ResNets are not read: choose a ViT."
        )
    width, _, patch_size, _ = weights["conv1.weight"].shape
    side = math.isqrt(len(weights["positional_embedding"]) - 1)
    if width % HEAD_WIDTH and heads is None:
        raise ValueError(
            f"{source} must hold CLIP's vision transformer, with heads {HEAD_WIDTH} wide; got width {width}. Check the "
            f"file."
        )
    build: Any = partial(  # timm's network, with its initial weights
        VisionTransformer,
        img_size=(side * patch_size, side * patch_size),
        patch_size=patch_size,
        num_classes=0,
        embed_dim=width,
        depth=len({name.split(".")[2] for name in weights if name.startswith("transformer.resblocks.")}),
        num_heads=heads or width // HEAD_WIDTH,
        mlp_ratio=exact_ratio(len(weights[FIRST_MLP]), width),
        init_values=1.0 if "transformer.resblocks.0.ls_1.gamma" in weights else None,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        act_layer=activation,
    )
    half = all(tensor.dtype != torch.float64 for tensor in weights.values())
    named = {timm_name(name): (tensor.float() if half else tensor) for name, tensor in weights.items()}
    projection = named.pop("proj")
    named["pos_embed"] = named["pos_embed"][None]
    named["cls_token"] = named["cls_token"][None, None]
    with initial_weights_unused():
        model = build().to(projection.dtype)
    load_exactly(model, named, source)
    image_size = model.patch_embed.img_size
    encoder = TimmEncoder(model, source, image_size, mean, std, build, projection=projection, stretch=True)
    return encoder.to(projection.dtype).eval()


def timm_name(theirs: str) -> str:
    """What timm calls a parameter of the tower."""
    for there, here in NAMES:
        theirs = theirs.replace(there, here)
    return theirs
