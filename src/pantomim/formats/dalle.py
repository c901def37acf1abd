"""The published DALL-E tokenizer: `encoder.pkl` and `decoder.pkl`, or the same parameters as named tensors.

The two files are pickles of whole modules. They are read with an inert class in place of each class that they name, by
torch's allow-list reader or, for torch's oldest layout, by `formats.legacy`: parameters are collected by name, and
nothing of the files is executed. Whatever else a file names is refused.

Source: openai/DALL-E, `dall_e/encoder.py`, `decoder.py`, `utils.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.formats.files import key_report
from pantomim.formats.legacy import is_legacy, read_legacy, resolved
from pantomim.formats.reader import HARMLESS, read_content, weights_of
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, DVAESizes

CLASSES = (
    *(f"dall_e.encoder.{name}" for name in ("Encoder", "EncoderBlock")),
    *(f"dall_e.decoder.{name}" for name in ("Decoder", "DecoderBlock")),
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.upsampling.Upsample",
)
DEEPEST = 8  # modules within modules; the published ones have six


class _Inert:
    """Stands in for a module: keeps its parameters and its parts, drops everything else."""

    parameters: Mapping[str, Any] = MappingProxyType({})
    modules: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, Mapping) else {}
        found = [parts.get(name, {}) for name in ("_parameters", "_modules", "_buffers")]
        if not all(isinstance(part, Mapping) for part in found) or found[2]:
            raise ValueError("a module with buffers, or with parts that are no mappings")
        self.parameters, self.modules = found[0], found[1]


_STAND_INS: dict[str, type[_Inert]] = {name: type(name.rpartition(".")[2], (_Inert,), {}) for name in CLASSES}
_ENCODER, _DECODER = _STAND_INS["dall_e.encoder.Encoder"], _STAND_INS["dall_e.decoder.Decoder"]


def load_dalle_encoder(path: str | Path) -> DVAEEncoder:
    """The encoder of a file, in evaluation mode: `encoder.pkl`, or its parameters by name (safetensors or torch).

    Raises:
        ValueError: if the file is damaged, names anything but the classes of these networks, or a name or shape is
            wrong.
    """
    weights = _read(Path(path), _ENCODER)
    names = ("blocks.input.w", "blocks.output.conv.w", "blocks.group_1.block_1.res_path.conv_1.w")
    first, last, _ = _telling(weights, str(path), "encoder", names)
    sizes = _sizes(
        str(path),
        weights,
        in_chans=first.shape[1],
        width=first.shape[0],
        vocabulary=last.shape[0],
    )
    return _filled(DVAEEncoder, sizes, weights, str(path), "encoder")


def load_dalle_decoder(path: str | Path) -> DVAEDecoder:
    """The decoder of a file, in evaluation mode: `decoder.pkl`, or its parameters by name (safetensors or torch).

    Raises:
        ValueError: as `load_dalle_encoder`.
    """
    weights = _read(Path(path), _DECODER)
    names = ("blocks.input.w", "blocks.output.conv.w", "blocks.group_1.block_1.id_path.w")
    first, last, _ = _telling(weights, str(path), "decoder", names)
    sizes = _sizes(
        str(path),
        weights,
        in_chans=last.shape[0] // 2,
        width=last.shape[1],
        vocabulary=first.shape[1],
        code_width=first.shape[0],
    )
    return _filled(DVAEDecoder, sizes, weights, str(path), "decoder")


def _read(path: Path, root: type[_Inert]) -> dict[str, Tensor]:
    """The parameters of a file by their names."""
    if path.is_file() and is_legacy(path):
        content = read_legacy(path, _STAND_INS)
    else:
        content = read_content(path, [*HARMLESS, *((stand_in, name) for name, stand_in in _STAND_INS.items())])
    if not isinstance(content, _Inert):
        return weights_of(path, resolved(content))
    if type(content) is not root:
        raise ValueError(
            f"{path} must hold DALL-E's {root.__name__}; got {type(content).__name__}. encoder.pkl and decoder.pkl are "
            f"two files: give each at its place."
        )
    return _parameters(content, "", str(path))


def _parameters(module: _Inert, prefix: str, source: str, depth: int = 0) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, held in module.parameters.items():
        if held is None:
            continue
        try:
            value = resolved(held)
        except ValueError as error:
            raise _refused(source, f"{error} under {prefix}{name}") from error
        if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            raise _refused(source, f"{type(value).__name__} under {prefix}{name}")
        found[prefix + name] = value.detach().float().clone()
    for name, part in module.modules.items():
        if part is None:
            continue
        if not isinstance(name, str) or not isinstance(part, _Inert) or depth == DEEPEST:
            raise _refused(source, f"{type(part).__name__} under {prefix}{name}")
        found |= _parameters(part, f"{prefix}{name}.", source, depth + 1)
    return found


def _telling(weights: Mapping[str, Tensor], source: str, kind: str, names: tuple[str, ...]) -> list[Tensor]:
    """The tensors that tell the sizes."""
    absent = [name for name in names if name not in weights or weights[name].ndim != 4]
    if absent:
        held = ", ".join(sorted(weights)[:3])
        raise _refused(source, f"no convolution {', '.join(absent)} of the {kind}, but {held} ...")
    return [weights[name] for name in names]


def _sizes(source: str, weights: Mapping[str, Tensor], **sizes: int) -> DVAESizes:
    groups = _count(weights, r"blocks\.group_(\d+)\.")
    blocks = _count(weights, r"blocks\.group_1\.block_(\d+)\.")
    try:
        return DVAESizes(blocks=blocks, stride=2 ** (groups - 1), **sizes)
    except ValueError as error:
        raise _refused(source, f"other sizes: {error}") from error


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers names have at a place."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _filled(kind: Any, sizes: DVAESizes, weights: dict[str, Tensor], source: str, what: str) -> Any:
    with torch.device("meta"):  # sizes come from the file: nothing is allocated before every shape is known to be right
        expected = kind(sizes).state_dict()
    report = key_report(expected, weights)
    if report:
        raise _refused(source, f"{report} (for an {what} of {sizes})")
    with torch.device("meta"):
        module: nn.Module = kind(sizes)
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return module.requires_grad_(False).eval()


def _refused(source: str, found: str) -> ValueError:
    return ValueError(
        f"{source} must hold the parameters of DALL-E's encoder or decoder; got {found}. Give encoder.pkl or "
        f"decoder.pkl as published, or the same parameters by name."
    )
