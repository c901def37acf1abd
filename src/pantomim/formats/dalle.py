"""The published DALL-E tokenizer: `encoder.pkl` and `decoder.pkl`, or the same parameters as named tensors.

Source: openai/DALL-E, `dall_e/encoder.py`, `decoder.py`, `utils.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pantomim.formats.files import check_finite, key_report
from pantomim.formats.reader import read_weights
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, DVAESizes

FIRST, LAST = "blocks.input.w", "blocks.output.conv.w"

Network = TypeVar("Network", DVAEEncoder, DVAEDecoder)


def load_dalle(kind: type[Network], path: str | Path) -> Network:
    """The network of `encoder.pkl` or `decoder.pkl`, or of its parameters by name (safetensors, torch); frozen."""
    part = "encoder" if kind is DVAEEncoder else "decoder"
    weights = read_weights(path)
    if absent := [name for name in (FIRST, LAST) if name not in weights or weights[name].ndim != 4]:
        held = ", ".join(sorted(weights)[:3])
        raise _refused(path, f"no convolution {', '.join(absent)} of the {part}, but {held} ...")
    first, last = weights[FIRST].shape, weights[LAST].shape
    found = "encoder" if first[-1] > 1 else "decoder"  # which begins with codes, one a cell
    if found != part:
        raise _refused(path, f"the {found} in place of the {part}")
    if integers := [name for name, tensor in weights.items() if not tensor.is_floating_point()]:
        raise _refused(path, f"{weights[integers[0]].dtype} under {', '.join(integers)}")
    if found == "encoder":
        sizes = {"in_chans": first[1], "width": first[0], "vocabulary": last[0]}
    else:  # its output is a mean and a scale of each channel
        sizes = {"in_chans": last[0] // 2, "width": last[1], "vocabulary": first[1], "code_width": first[0]}
    groups, blocks = _count(weights, r"blocks\.group_(\d+)\."), _count(weights, r"blocks\.group_1\.block_(\d+)\.")
    try:
        with torch.device("meta"):  # sizes come from the file: nothing is allocated before every shape is right
            module = kind(DVAESizes(blocks=blocks, stride=2 ** (groups - 1), **sizes))
    except ValueError as error:
        raise _refused(path, f"other sizes: {error}") from error
    if report := key_report(module.state_dict(), weights):
        raise _refused(path, f"{report} (for {module.sizes})")
    check_finite(weights, str(path))
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return module.requires_grad_(False).eval()


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _refused(path: str | Path, found: str) -> ValueError:
    return ValueError(
        f"{path} must hold the parameters of DALL-E's encoder or decoder; got {found}. Give encoder.pkl or "
        f"decoder.pkl as published, each at its place, or the same parameters by name."
    )
