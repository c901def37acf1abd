"""Checkpoints of MAE in mmpretrain, in which the ColorMAE authors trained (carlosh93/ColorMAE).

Pre-training files hold `backbone.*` and `neck.*`, classifiers `backbone.*` and `head.*`. Their sine-cosine table is the
transpose of MAE's: the first half of the channels encodes the row. So the table of the file is kept, never made anew.
"""

from collections.abc import Mapping, Set
from dataclasses import replace

import torch
from torch import Tensor

from pantomim.formats.layout import ForeignFile, Format, Found, Given
from pantomim.formats.mae import official_name, read_networks

PARTS = {  # others keep their name, behind `backbone.`
    "blocks": "backbone.layers", "norm": "backbone.ln1", "fc_norm": "backbone.ln2", "head": "head.fc",
    "mask_token": "neck.mask_token", "decoder_embed": "neck.decoder_embed", "decoder_blocks": "neck.decoder_blocks",
    "decoder_pos_embed": "neck.decoder_pos_embed", "decoder_norm": "neck.ln1", "decoder_pred": "neck.decoder_pred",
}  # fmt: skip
INNER = {  # within a part
    "patch_embed.proj.": "patch_embed.projection.", ".norm1.": ".ln1.", ".norm2.": ".ln2.",
    ".mlp.fc1.": ".ffn.layers.0.0.", ".mlp.fc2.": ".ffn.layers.1.",
}  # fmt: skip
PREPROCESSOR = "data_preprocessor."
COPY, COPIED = "patch_embed.proj.", "patch_embed.projection."  # what the converter for mmsegmentation writes twice


def mmpretrain_name(ours: str) -> str:
    """What mmpretrain calls one of our parameters."""
    part, dot, rest = official_name(ours).partition(".")
    name = PARTS.get(part, f"backbone.{part}") + dot + rest
    for inner, theirs in INNER.items():
        name = name.replace(inner, theirs)
    return name


def segmentation_name(ours: str) -> str:
    """The name that the authors' `mmpre2mmseg.py` gives a parameter of the encoder."""
    official = official_name(ours)
    return official if official.startswith("norm.") else mmpretrain_name(official).removeprefix("backbone.")


class MMPretrainFormat(Format):
    """As released, or as ColorMAE's converter for mmsegmentation writes it."""

    name = "mmpretrain"
    owner = "an mmpretrain MAE"
    advice = (
        "MAE's own names, without `backbone.`, are of format mae; so are those that the converter for mmdetection "
        "writes. Of CAE and BEiT, import the authors' own files."
    )

    def recognises(self, names: Set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """By its names of blocks; its ports of CAE and BEiT, which have no bias for keys, are not read."""
        return bool({"backbone.layers.0.attn.qkv.bias", "layers.0.ln1.weight"} & names)

    def read(self, weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
        """See `Format.read`. Stored statistics of pixels (0 to 255) become the encoder's, unless others are given."""
        left_out = {name for name in weights if name.startswith(PREPROCESSOR)}
        mean, std = (weights.get(f"{PREPROCESSOR}{name}") for name in ("mean", "std"))
        if mean is not None and std is not None and given.mean is None and given.std is None:
            given = replace(given, mean=_shares(mean), std=_shares(std))
        converted = "layers.0.ln1.weight" in weights
        if converted:
            copies = {name: weights.get(name.replace(COPY, COPIED)) for name in weights if name.startswith(COPY)}
            if wrong := [name for name, t in copies.items() if t is None or not torch.equal(weights[name], t)]:
                raise ValueError(
                    f"{source} must hold the same patch projection under its old and its new name; got another one "
                    f"under {', '.join(sorted(wrong))}. Convert the file again, or import the one it was made from."
                )
            left_out |= copies.keys()
        file = ForeignFile(weights, source, self, given, segmentation_name if converted else mmpretrain_name)
        return read_networks(file.without(left_out), {"neck"}, {"head"}, tuple(sorted(left_out)))


def _shares(pixels: Tensor) -> tuple[float, ...]:
    """Values of pixels, 0 to 255 in float32, as shares of one; rounded to what float32 can tell."""
    return tuple(round(value / 255, 7) for value in pixels.flatten().tolist())
