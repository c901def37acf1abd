"""Checkpoints of BEiT's authors (microsoft/unilm, folder beit), and classifiers of CAE's, which have the same names.

Pre-training files hold the encoder, its mask token and the head that predicts tokens; fine-tuned ones a classifier,
with a table of relative positions in each block. The rows that patches look up in the tables are stored too.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pantomim.core.modes import initial_weights_unused
from pantomim.formats import layout
from pantomim.formats.layout import IMAGENET_MEAN, IMAGENET_STD, ForeignFile, Format, Found, Given
from pantomim.formats.mae import HEAD_PARTS, HEADS, official_name
from pantomim.formats.reader import Inert
from pantomim.nn.init import Initialisation
from pantomim.nn.relative import num_relative_rows, relative_index
from pantomim.nn.vit import Position, RelativePosition

BIAS = "blocks.0.attn.q_bias"  # of queries and values alone
# CAE's fine-tuning keeps fixed positions beside relative ones in each block; BEiT's has relative ones alone.
CAE_CLASSIFIER = frozenset({BIAS, official_name(layout.OWN), "pos_embed", "head.weight"})
PRETRAINING = frozenset({"mask_token", "lm_head"})
INDEX = "relative_position_index"
HALF = (0.5, 0.5, 0.5)


class BEiTFormat(Format):
    """The authors' files. They train with ImageNet's mean and std or with 0.5, and weights do not tell which."""

    name = "beit"
    owner = "an official BEiT"
    advice = (
        "CAE's pre-training files, whose names begin with encoder., are of format cae. BEiT v2's second branch "
        "(cls_pt_layers) is not read."
    )

    def recognises(self, names: Set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """By the bias for queries alone, unless it is a classifier of CAE's."""
        return BIAS in names and not names >= CAE_CLASSIFIER

    def complete(self, given: Given, content: Any) -> Given:
        """With the mean and std that the file's record of its arguments names."""
        arguments = content.get("args") if isinstance(content, Mapping) else None
        imagenet = arguments.state.get("imagenet_default_mean_and_std") if isinstance(arguments, Inert) else None
        if given.mean is not None or given.std is not None or imagenet is None:
            return given
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)
        return replace(given, mean=mean, std=std)

    def read(self, weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
        """See `Format.read`; mean and std must be given."""
        if given.mean is None or given.std is None:
            raise ValueError(
                f"{source}: mean and std must both be given; got {given.mean} and {given.std}. The authors train with "
                f"ImageNet's ({' '.join(map(str, IMAGENET_MEAN))} and {' '.join(map(str, IMAGENET_STD))}) or with 0.5, "
                f"and this file does not tell with which."
            )
        position: Position = "learned" if "pos_embed" in weights else "none"
        return read_tables(ForeignFile(weights, source, self, given, official_name), HEADS, position, "beit")


def read_tables(
    file: ForeignFile, known_heads: Mapping[int, int], position: Position, initialisation: Initialisation
) -> Found:
    """An encoder, or a classifier, under BEiT's names: perhaps with relative positions and layer scales."""
    has_head = file.has_part(HEAD_PARTS)
    if has_head and file.has_part(PRETRAINING):
        raise file.refused("parts of pre-training and of a classifier")
    kinds: dict[RelativePosition, str] = {"shared": layout.SHARED, "blocks": layout.OWN}
    tables = [kind for kind, name in kinds.items() if file.has(name)]
    if len(tables) == 2:
        raise file.refused("relative positions both shared and of each block")
    relative = tables[0] if tables else "none"
    width = len(file.telling("encoder.patch_embed.proj.weight", 4))
    scale = scale_for(width) if file.has("encoder.blocks.0.gamma_1") else None
    how = {"relative_position": relative, "attention_bias": "qv", "initialisation": initialisation}
    config = file.encoder_config(known_heads, position, layer_scale=scale, **how)
    expected = (num_relative_rows(config.grid, True), config.heads)
    if tables and (shape := tuple(file.telling(kinds[relative], 2).shape)) != expected:
        raise ValueError(
            f"{file.source}: a table of relative positions must have {expected[0]} rows and {expected[1]} heads for a "
            f"grid of {config.grid[0]} x {config.grid[1]}; got {shape}. Give the heads and the image size that it was "
            f"trained with."
        )
    left_out = tuple(sorted(name for name in file.weights if name.endswith(INDEX)))
    rows = relative_index(config.grid, class_token=True)
    if wrong := [name for name in left_out if not torch.equal(file.weights[name].long(), rows)]:
        raise file.refused(f"other rows of relative positions than BEiT's under {', '.join(wrong)}")
    extra = {name: tensor for name, tensor in file.weights.items() if name.partition(".")[0] in PRETRAINING}
    network = file.without({*left_out, *extra})
    with initial_weights_unused():
        encoder = config.build()
    if has_head:
        classifier = network.classifier(encoder, learn_positions=position == "learned")
        return Found(file.format, "classifier", encoder, classifier=classifier, left_out=left_out)
    network.fill({"encoder": encoder}, "encoder")
    predictor = None
    note = "no mask token and no head in the file: training that continues from here starts with fresh ones"
    if extra:
        tokens = len(file.telling("lm_head.weight", 2))
        shapes = {"mask_token": (1, 1, encoder.width), "lm_head.weight": (tokens, encoder.width)}
        shapes |= {"lm_head.bias": (tokens,)}
        if (found := {name: tuple(tensor.shape) for name, tensor in extra.items()}) != shapes:
            raise file.refused(f"mask token and head of shapes {found} instead of {shapes}")
        note = f"mask token and a head for {tokens} tokens"
        predictor = {name.removeprefix("lm_"): tensor for name, tensor in extra.items()}
    return Found(file.format, "encoder", encoder, left_out=left_out, notes=(note,), predictor=predictor)


def scale_for(width: int) -> float:
    """The initial layer scale of BEiT and CAE, which trained weights no longer tell."""
    return 1e-5 if width >= 1024 else 0.1
