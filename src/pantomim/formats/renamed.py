"""CAE and BEiT under the names of other code bases: Paddle's release of CAE, and mmpretrain's ports.

The names become those of lxtGH/CAE and of BEiT's authors, whose readers then check every name and shape.

Source: PaddlePaddle/VIMER, `CAE/models/modeling_cae_pretrain.py`; open-mmlab/mmpretrain, `models/selfsup/cae.py`,
`models/necks/cae_neck.py`, `models/backbones/beit.py`, `models/heads/beitv1_head.py`.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pantomim.formats.beit import recognise_beit, recognise_tables
from pantomim.formats.cae import CAE_LAYOUT, HEADS, ROUNDING, TABLE, recognise_cae_file
from pantomim.formats.foreign import Found, Given
from pantomim.nn.init import Initialisation
from pantomim.nn.position import sincos_2d_rows_first

Parts = tuple[tuple[str, str, dict[str, str]], ...]

NORMS = {f".norm1_{part}_cross.": f".norm1_{part}." for part in "qkv"}  # of a regressor's block
MM_BLOCK = {
    ".ln1.": ".norm1.",
    ".ln2.": ".norm2.",
    ".ffn.layers.0.0.": ".mlp.fc1.",
    ".ffn.layers.1.": ".mlp.fc2.",
}
MM_CROSS = NORMS | {".ffn.layers.0.0.": ".mlp_cross.fc1.", ".ffn.layers.1.": ".mlp_cross.fc2."}
# Where a part begins there and here, and what changes inside it; the first that fits counts.
MM_CAE: Parts = (
    ("backbone.patch_embed.projection.", "encoder.patch_embed.proj.", {}),
    ("backbone.layers.", "encoder.blocks.", MM_BLOCK),
    ("backbone.ln1.", "encoder.norm.", {}),
    ("backbone.", "encoder.", {}),
    ("neck.regressors.", "pretext_neck.regressor_blocks.", MM_CROSS),
    ("neck.decoders.", "pretext_neck.decoder_blocks.", MM_BLOCK),
    ("neck.norm_regressor.", "pretext_neck.norm.", {}),
    ("neck.norm_decoder.", "pretext_neck.norm2.", {}),
    ("neck.head.", "pretext_neck.head.", {}),
    ("neck.mask_token", "mask_token", {}),
)
MM_BEIT: Parts = (
    ("backbone.patch_embed.projection.", "patch_embed.proj.", {}),
    ("backbone.layers.", "blocks.", MM_BLOCK),
    ("backbone.ln1.", "norm.", {}),
    ("backbone.ln2.", "fc_norm.", {}),
    ("backbone.", "", {}),
    ("head.cls_head.", "lm_head.", {}),
    ("head.fc.", "head.", {}),
)
PADDLE_CAE: Parts = (
    ("regressor_and_decoder.blocks.", "pretext_neck.regressor_blocks.", NORMS),
    ("regressor_and_decoder.self_att_blocks.", "pretext_neck.decoder_blocks.", {}),
    ("regressor_and_decoder.", "pretext_neck.", {}),
    ("teacher_network.", "teacher.", {}),
)
MM_BESIDE = ("teacher.", "target_generator.", "data_preprocessor.")  # copies, the tokenizer, mean and deviation


def renamed(weights: Mapping[str, Tensor], parts: Parts) -> dict[str, Tensor]:
    """Weights under other names; what fits nowhere keeps its name, for the reader to refuse."""
    found = {}
    for name, tensor in weights.items():
        for there, here, inner in parts:
            if name.startswith(there):
                name = here + name.removeprefix(there)
                for old, new in inner.items():
                    name = name.replace(old, new)
                break
        found[name] = tensor
    return found


def is_mm_cae(names: Mapping[str, Tensor]) -> bool:
    """Whether names are those of mmpretrain's pre-training of CAE."""
    return any(name.startswith("neck.regressors.") for name in names)


def is_mm_beit(names: Mapping[str, Tensor]) -> bool:
    """Whether names are those of mmpretrain's BEiT: biases of queries and values alone."""
    return "backbone.layers.0.attn.q_bias" in names and not is_mm_cae(names)


def is_paddle_cae(names: Mapping[str, Tensor]) -> bool:
    """Whether names are those of Paddle's pre-training of CAE."""
    return any(name.startswith("regressor_and_decoder.") for name in names)


def recognise_mm_cae(weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
    """CAE of mmpretrain.

    Raises:
        ValueError: as `cae.recognise_cae_file`; names in the message are lxtGH/CAE's.
    """
    beside, network = _apart(weights)
    return _checked(renamed(network, MM_CAE), source, given, "mmpretrain", beside)


def recognise_paddle_cae(weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
    """CAE of Paddle's release; its linear layers are stored the other way round.

    Raises:
        ValueError: as `cae.recognise_cae_file`; names in the message are lxtGH/CAE's.
    """
    turned = {
        name: tensor.T.contiguous() if name.endswith(".weight") and tensor.dim() == 2 else tensor
        for name, tensor in weights.items()
    }
    return _checked(renamed(turned, PADDLE_CAE), source, given, "PaddlePaddle/VIMER", ())


def recognise_mm_beit(weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
    """BEiT of mmpretrain, or a classifier that was fine-tuned from CAE there: its fixed positions tell it.

    Raises:
        ValueError: as `beit.recognise_beit`; names in the message are those of BEiT's authors.
    """
    beside, network = _apart(weights)
    named = renamed(network, MM_BEIT)
    table = named.get("pos_embed")
    if "head.weight" in named and table is not None and _is_rows_first(table):
        scheme: Initialisation = "beit" if table.shape[2] >= 1024 else "cae"
        found = recognise_tables(named, source, CAE_LAYOUT, given, "sincos_rows_first", scheme, HEADS)
    else:
        found = recognise_beit(named, source, given)
    return _noted(found, "mmpretrain", beside)


def _apart(weights: Mapping[str, Tensor]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Names of what is no part of the network, and the network."""
    beside = tuple(sorted(name for name in weights if name.startswith(MM_BESIDE)))
    return beside, {name: tensor for name, tensor in weights.items() if name not in beside}


def _checked(named: dict[str, Tensor], source: str, given: Given, project: str, beside: tuple[str, ...]) -> Found:
    """CAE under lxtGH's names; these code bases read the regressor's positions from the encoder's table."""
    table, token = named.get("encoder.pos_embed"), named.get("mask_token")
    same = table is not None and token is not None and table.shape[-1] == token.shape[-1]
    found = recognise_cae_file(named | ({TABLE: table} if same and table is not None else {}), source, given)
    left_out = tuple(name for name in found.left_out if name != TABLE)
    return _noted(replace(found, left_out=left_out), project, beside)


def _noted(found: Found, project: str, beside: tuple[str, ...]) -> Found:
    notes = (f"names of {project}", *(note for note in found.notes if not note.startswith("names of")))
    return replace(found, left_out=tuple(sorted((*found.left_out, *beside))), notes=notes)


def _is_rows_first(table: Tensor) -> bool:
    side = round((table.shape[1] - 1) ** 0.5)
    if table.dim() != 3 or side * side != table.shape[1] - 1 or table.shape[2] % 4:
        return False
    expected = sincos_2d_rows_first(table.shape[2], (side, side), 1)
    return torch.allclose(table[0].float(), expected.float(), atol=ROUNDING, rtol=0)
