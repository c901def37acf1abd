"""Checkpoints of BEiT's authors (microsoft/unilm, folder beit), and classifiers of CAE's, which have the same names.

Pre-training files hold the encoder, its mask token and the head that names tokens. Fine-tuned files hold a classifier,
with tables of relative positions in every block. The matrices of rows of those tables, which are stored beside them,
must be ours.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pantomim.formats.foreign import (
    AS_PUBLISHED,
    HEADS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Found,
    Given,
    Layout,
    depth_of,
    fill,
    heads_of,
    refused,
    scale_for,
    telling,
)
from pantomim.formats.native import exact_ratio
from pantomim.formats.reader import HARMLESS, UNREAD, Unread, read_content, weights_of
from pantomim.nn.heads import Classifier
from pantomim.nn.init import Initialisation
from pantomim.nn.relative import CLASS_ROWS, num_relative_rows, relative_index
from pantomim.nn.vit import EncoderConfig, Position, RelativePosition

BEIT_LAYOUT = Layout(
    project="beit",
    owner="an official BEiT",
    name=lambda official: official,
    decoder_parts=frozenset({"mask_token", "lm_head"}),
    head_parts=frozenset({"fc_norm", "head"}),
    advice="CAE's pre-training files have names that begin with encoder.: `pantomim import --format cae`. BEiT v2's "
    "second branch (cls_pt_layers) is not read.",
)
WRAPPERS = ("model", "module", "state_dict")  # of the authors' training, of DeepSpeed's
SHARED, OWN = "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"
INDEX = "relative_position_index"
HALF = (0.5, 0.5, 0.5)


def is_beit(names: Mapping[str, Any]) -> bool:
    """Whether names are those of BEiT's encoder, which CAE's classifier shares: biases of queries and values alone."""
    return "blocks.0.attn.q_bias" in names


def load_beit(path: str | Path, given: Given = AS_PUBLISHED) -> Found:
    """Read an official file; every name and shape must be right.

    Mean and deviation of the pixels are those that the file's own record of its arguments names, or must be given: the
    authors train with ImageNet's or with 0.5, and weights do not tell.

    Raises:
        ValueError: if the file is damaged, would run code or has another layout; or if heads, image size, mean or
            deviation must be given.
    """
    content = read_content(path, (*HARMLESS, *((Unread, name) for name in UNREAD)))
    arguments = content.get("args") if isinstance(content, Mapping) else None
    imagenet = getattr(arguments, "imagenet_default_mean_and_std", None)
    if given.mean is None and given.std is None and imagenet is not None:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)
        given = replace(given, mean=mean, std=std)
    return recognise_beit(weights_of(path, content, WRAPPERS), str(path), given)


def recognise_beit(weights: Mapping[str, Tensor], source: str, given: Given = AS_PUBLISHED) -> Found:
    """The modules of weights under BEiT's names; see `load_beit`.

    Raises:
        ValueError: as `load_beit`.
    """
    if given.mean is None or given.std is None:
        raise ValueError(
            f"{source}: mean and std must both be given; got {given.mean} and {given.std}. The authors train with "
            f"ImageNet's ({' '.join(map(str, IMAGENET_MEAN))} and {' '.join(map(str, IMAGENET_STD))}) or with 0.5, and "
            f"this file does not say with which."
        )
    position: Position = "learned" if "pos_embed" in weights else "none"
    return recognise_tables(weights, source, BEIT_LAYOUT, given, position, "beit", HEADS)


def recognise_tables(
    weights: Mapping[str, Tensor],
    source: str,
    layout: Layout,
    given: Given,
    position: Position,
    initialisation: Initialisation,
    heads: Mapping[int, int],
) -> Found:
    """An encoder, or a classifier, with biases of queries and values alone and perhaps relative positions.

    Args:
        weights: Under BEiT's names.
        source: Where they are from.
        layout: Whose they are.
        given: What they cannot say; mean and deviation included.
        position: What absolute positions are.
        initialisation: What the encoder's first values would have been.
        heads: By width.

    Raises:
        ValueError: if a name, a shape or a stored matrix of rows is another one.
    """
    indices = {name: tensor for name, tensor in weights.items() if name.endswith(INDEX)}
    parts = {name.partition(".")[0] for name in weights}
    if parts & layout.decoder_parts and parts & layout.head_parts:
        raise refused(source, layout, weights, "parts of pre-training and of a classifier")
    config = _config(weights, source, layout, given, position, initialisation, heads)
    rows = relative_index(config.grid, class_token=True)
    wrong = sorted(name for name, tensor in indices.items() if not torch.equal(tensor.long(), rows))
    if wrong:
        raise refused(source, layout, weights, f"other rows of relative positions than BEiT's under {', '.join(wrong)}")
    extra = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] in layout.decoder_parts}
    left_out = tuple(sorted(indices))
    rest = {name: tensor for name, tensor in weights.items() if name not in indices and name not in extra}
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten; nobody else's draws may change
        encoder = config.build()
        if parts & layout.head_parts:
            num_classes = len(telling(weights, source, layout, "head.weight", 2))
            pool: Literal["mean", "class"] = "mean" if "fc_norm.weight" in weights else "class"
            classifier = Classifier(encoder, num_classes, pool, learn_positions=position == "learned")
            fill([classifier], rest, source, layout, "classifier")
            return Found(layout, "classifier", encoder, classifier=classifier, left_out=left_out)
        fill([encoder], rest, source, layout, "encoder")
        if not extra:
            note = "no mask token and no head in the file: going on from here begins with fresh ones"
            return Found(layout, "encoder", encoder, left_out=left_out, notes=(note,))
        predictor = _predictor(extra, config, source, layout)
        note = f"mask token and a head for {len(predictor['head.bias'])} tokens"
        return Found(layout, "encoder", encoder, left_out=left_out, notes=(note,), predictor=predictor)


def _predictor(extra: Mapping[str, Tensor], config: EncoderConfig, source: str, layout: Layout) -> dict[str, Tensor]:
    """Mask token and head under our names; they must have their shapes."""
    vocabulary = len(telling(extra, source, layout, "lm_head.weight", 2))
    shapes = {
        "mask_token": (1, 1, config.width),
        "lm_head.weight": (vocabulary, config.width),
        "lm_head.bias": (vocabulary,),
    }
    found = {name: tuple(tensor.shape) for name, tensor in extra.items()}
    if found != shapes:
        raise refused(source, layout, extra, f"mask token and head of shapes {found} instead of {shapes}")
    return {name.removeprefix("lm_"): tensor for name, tensor in extra.items()}


def _config(
    weights: Mapping[str, Tensor],
    source: str,
    layout: Layout,
    given: Given,
    position: Position,
    initialisation: Initialisation,
    heads: Mapping[int, int],
) -> EncoderConfig:
    kernel = telling(weights, source, layout, "patch_embed.proj.weight", 4)
    hidden = telling(weights, source, layout, "blocks.0.mlp.fc1.weight", 2)
    width, in_chans, patch_size = kernel.shape[:3]
    relative: RelativePosition = "shared" if SHARED in weights else "blocks" if OWN in weights else "none"
    if SHARED in weights and OWN in weights:
        raise refused(source, layout, weights, "relative positions both shared and of each block")
    table = weights.get(SHARED, weights.get(OWN))
    image_size = given.image_size
    if image_size is None:
        side = _side(weights, table, source, layout)
        image_size = (side * patch_size, side * patch_size)
    config = EncoderConfig(
        image_size=image_size,
        patch_size=patch_size,
        in_chans=in_chans,
        width=width,
        depth=depth_of(weights, "blocks."),
        heads=heads_of(source, "heads", width, given.heads, heads),
        mlp_ratio=exact_ratio(hidden.shape[0], width),
        position=position,
        relative_position=relative,
        attention_bias="qv",
        layer_scale=scale_for(width) if "blocks.0.gamma_1" in weights else None,
        initialisation=initialisation,
        mean=given.mean or IMAGENET_MEAN,
        std=given.std or IMAGENET_STD,
    )
    if table is not None and tuple(table.shape) != (num_relative_rows(config.grid, True), config.heads):
        raise ValueError(
            f"{source}: a table of relative positions must have {num_relative_rows(config.grid, True)} rows and "
            f"{config.heads} heads for a grid of {config.grid[0]} x {config.grid[1]}; got {tuple(table.shape)}. "
            f"Give the heads and the image size that it was trained with."
        )
    return config


def _side(weights: Mapping[str, Tensor], table: Tensor | None, source: str, layout: Layout) -> int:
    """Patches along a side of a square image, from absolute or relative positions."""
    if "pos_embed" in weights:
        patches = telling(weights, source, layout, "pos_embed", 3).shape[1] - 1  # the class token's row
        side = math.isqrt(patches)
        square = side * side == patches
    elif table is not None and table.dim() == 2:
        offsets = math.isqrt(max(len(table) - CLASS_ROWS, 0))
        side = (offsets + 1) // 2
        square = offsets * offsets == len(table) - CLASS_ROWS and offsets % 2 == 1
    else:
        raise ValueError(
            f"{source}: image_size must be given where there are no positions; got none. Pass height and width in "
            f"pixels."
        )
    if not square:
        raise ValueError(
            f"{source}: image_size must be given for a grid that is not square; got none. Pass height and width in "
            f"pixels."
        )
    return side
