"""Checkpoints of mmpretrain: MAE, in which the ColorMAE authors trained (carlosh93/ColorMAE), CAE and BEiT.

Pre-training files hold `backbone.*` and `neck.*`, classifiers `backbone.*` and `head.*`. Their sine-cosine table is the
transpose of MAE's: the first half of the channels encodes the row. So the table of the file is kept, never drawn anew.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pantomim.formats.foreign import AS_PUBLISHED, Found, Given, Layout, layout_weights, recognise
from pantomim.formats.reader import read_weights
from pantomim.formats.renamed import is_mm_beit, is_mm_cae, recognise_mm_beit, recognise_mm_cae
from pantomim.nn.decoder import MAEDecoder
from pantomim.nn.heads import Classifier
from pantomim.nn.vit import Encoder

PARTS = {
    "cls_token": "backbone.cls_token",
    "pos_embed": "backbone.pos_embed",
    "patch_embed": "backbone.patch_embed",
    "blocks": "backbone.layers",
    "norm": "backbone.ln1",
    "mask_token": "neck.mask_token",
    "decoder_embed": "neck.decoder_embed",
    "decoder_pos_embed": "neck.decoder_pos_embed",
    "decoder_blocks": "neck.decoder_blocks",
    "decoder_norm": "neck.ln1",
    "decoder_pred": "neck.decoder_pred",
    "fc_norm": "backbone.ln2",
    "head": "head.fc",
}
INNER = {  # within a part
    "patch_embed.proj.": "patch_embed.projection.",
    ".norm1.": ".ln1.",
    ".norm2.": ".ln2.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
}
PREPROCESSOR = "data_preprocessor."
COPY, COPIED = "patch_embed.proj.", "patch_embed.projection."  # what the converter for mmsegmentation writes twice


def mmpretrain_name(official: str) -> str:
    """What mmpretrain calls an official parameter."""
    part, dot, rest = official.partition(".")
    name = PARTS[part] + dot + rest
    for ours, theirs in INNER.items():
        name = name.replace(ours, theirs)
    return name


def segmentation_name(official: str) -> str:
    """The name that the authors' `mmpre2mmseg.py` gives an official parameter of the encoder."""
    return official if official.startswith("norm.") else mmpretrain_name(official).removeprefix("backbone.")


MMPRETRAIN_LAYOUT = Layout(
    project="mmpretrain",
    owner="an mmpretrain MAE",
    name=mmpretrain_name,
    decoder_parts=frozenset({"neck"}),
    head_parts=frozenset({"head"}),
    advice="MAE's own names, without `backbone.`, are read with `pantomim import --format mae`; so is what the "
    "converter for mmdetection writes.",
)
SEGMENTATION_LAYOUT = replace(
    MMPRETRAIN_LAYOUT,
    project="mmpretrain for mmsegmentation",
    owner="a converted mmpretrain MAE",
    name=segmentation_name,
)


def is_mmpretrain(names: Mapping[str, Tensor]) -> bool:
    """Whether names are mmpretrain's, as released or converted for mmsegmentation."""
    return any(name.startswith("backbone.") for name in names) or "layers.0.ln1.weight" in names


def load_mmpretrain(path: str | Path, given: Given = AS_PUBLISHED) -> Found:
    """Read a file of mmpretrain; every name and shape must be right, `data_preprocessor.*` aside.

    Raises:
        ValueError: if the file is damaged or would run code, and as `recognise_mmpretrain`.
    """
    return recognise_mmpretrain(read_weights(path), str(path), given)


def recognise_mmpretrain(weights: Mapping[str, Tensor], source: str, given: Given = AS_PUBLISHED) -> Found:
    """The modules of weights under mmpretrain's names.

    A stored mean and deviation of the pixels (0 to 255) becomes the encoder's, unless others are given.

    Raises:
        ValueError: as `foreign.recognise`; or if the two copies of the patch projection in a file that was converted
            for mmsegmentation differ.
    """
    left_out = {name: tensor for name, tensor in weights.items() if name.startswith(PREPROCESSOR)}
    if is_mm_cae(weights):
        return recognise_mm_cae(weights, source, _with_pixels(given, left_out))
    if is_mm_beit(weights):
        return recognise_mm_beit(weights, source, _with_pixels(given, left_out))
    network = {name: tensor for name, tensor in weights.items() if name not in left_out}
    layout = MMPRETRAIN_LAYOUT
    if "layers.0.ln1.weight" in network:
        layout = SEGMENTATION_LAYOUT
        copies = {name: tensor for name, tensor in network.items() if name.startswith(COPY)}
        different = [name for name, copy in copies.items() if not _same(copy, network.get(name.replace(COPY, COPIED)))]
        if different:
            raise ValueError(
                f"{source} must hold the same patch projection under its old and its new name; got another one under "
                f"{', '.join(sorted(different))}. Convert the file again, or import the one it was made from."
            )
        left_out |= copies
        network = {name: tensor for name, tensor in network.items() if name not in copies}
    given = _with_pixels(given, left_out)
    return recognise(network, source, layout, given, tuple(sorted(left_out)))


def mmpretrain_weights(model: Encoder | Classifier, decoder: MAEDecoder | None = None) -> dict[str, Tensor]:
    """Weights under mmpretrain's names, which reads them from under "state_dict" in a file of `torch.save`.

    Raises:
        ValueError: if the encoder has something that MAE's has not: registers, or no class token.
    """
    return layout_weights(MMPRETRAIN_LAYOUT, model, decoder)


def _with_pixels(given: Given, stored: Mapping[str, Tensor]) -> Given:
    mean, std = stored.get(f"{PREPROCESSOR}mean"), stored.get(f"{PREPROCESSOR}std")
    if mean is None or std is None or given.mean is not None or given.std is not None:
        return given
    return replace(given, mean=_share(mean), std=_share(std))


def _share(pixels: Tensor) -> tuple[float, ...]:
    """Values of pixels, 0 to 255 in float32, as shares of one; rounded to what float32 can tell."""
    return tuple(round(value / 255, 7) for value in pixels.flatten().tolist())


def _same(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and torch.equal(first, second)
