"""The published DALL-E tokenizer: `encoder.pkl` and `decoder.pkl`, or the same parameters as named tensors.

Source: openai/DALL-E, `dall_e/encoder.py`, `decoder.py`, `utils.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pantomim.formats.files import key_report
from pantomim.formats.reader import read_weights
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, DVAESizes

FIRST, LAST = "blocks.input.w", "blocks.output.conv.w"

Network = TypeVar("Network", DVAEEncoder, DVAEDecoder)


def load_dalle_encoder(path: str | Path) -> DVAEEncoder:
    """The encoder of a file, in evaluation mode: `encoder.pkl`, or its parameters by name (safetensors or torch).

    Raises:
        ValueError: if the file is damaged, would run code, or a name or shape is wrong.
    """
    weights = _read(path, "encoder")
    first, last = weights[FIRST], weights[LAST]
    sizes = _sizes(path, weights, in_chans=first.shape[1], width=first.shape[0], vocabulary=last.shape[0])
    return _filled(DVAEEncoder, sizes, weights, path)


def load_dalle_decoder(path: str | Path) -> DVAEDecoder:
    """The decoder of a file, in evaluation mode: `decoder.pkl`, or its parameters by name (safetensors or torch).

    Raises:
        ValueError: as `load_dalle_encoder`.
    """
    weights = _read(path, "decoder")
    first, last = weights[FIRST], weights[LAST]
    sizes = _sizes(
        path,
        weights,
        in_chans=last.shape[0] // 2,  # mean and scale of each channel
        width=last.shape[1],
        vocabulary=first.shape[1],
        code_width=first.shape[0],
    )
    return _filled(DVAEDecoder, sizes, weights, path)


def _read(path: str | Path, wanted: str) -> dict[str, Tensor]:
    """The parameters of a file by their names."""
    weights = read_weights(path)
    absent = [name for name in (FIRST, LAST) if name not in weights or weights[name].ndim != 4]
    if absent:
        held = ", ".join(sorted(weights)[:3])
        raise _refused(path, f"no convolution {', '.join(absent)} of the {wanted}, but {held} ...")
    found = "encoder" if weights[FIRST].shape[-1] > 1 else "decoder"  # it begins with codes, one a cell
    if found != wanted:
        raise _refused(path, f"the {found} in place of the {wanted}")
    if integers := [name for name, tensor in weights.items() if not tensor.is_floating_point()]:
        raise _refused(path, f"{weights[integers[0]].dtype} under {', '.join(integers)}")
    return {name: tensor.float() for name, tensor in weights.items()}


def _sizes(path: str | Path, weights: Mapping[str, Tensor], **sizes: int) -> DVAESizes:
    groups = _count(weights, r"blocks\.group_(\d+)\.")
    blocks = _count(weights, r"blocks\.group_1\.block_(\d+)\.")
    try:
        return DVAESizes(blocks=blocks, stride=2 ** (groups - 1), **sizes)
    except ValueError as error:
        raise _refused(path, f"other sizes: {error}") from error


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers names have at a place."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _filled(kind: type[Network], sizes: DVAESizes, weights: dict[str, Tensor], path: str | Path) -> Network:
    with torch.device("meta"):  # sizes come from the file: nothing is allocated before every shape is known to be right
        module = kind(sizes)
    if report := key_report(module.state_dict(), weights):
        raise _refused(path, f"{report} (for {sizes})")
    module.load_state_dict(weights, assign=True)
    return module.requires_grad_(False).eval()


def _refused(path: str | Path, found: str) -> ValueError:
    return ValueError(
        f"{path} must hold the parameters of DALL-E's encoder or decoder; got {found}. Give encoder.pkl or "
        f"decoder.pkl as published, each at its place, or the same parameters by name."
    )
