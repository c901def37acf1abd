"""TorchScript archives, read for their parameters alone; torch reads them only by building the program they hold.

An archive is a zip with a pickle of the module and one file a storage. Here every class of the program stands for
something inert of ours, any other name is refused, and nothing is executed.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pantomim.formats.legacy import NUMBERS, Nothing, Storage, View, data_of, resolved, view

PROGRAM = "__torch__."  # what the classes of a program begin with
DEEPEST = 16  # modules within modules; CLIP's have seven


class _Module:
    """Stands in for a module of the program: keeps what it holds by name."""

    def __init__(self, *arguments: Any) -> None:
        self.held: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.held = state if isinstance(state, Mapping) else {}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip with a program in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive, by name.

    Raises:
        ValueError: if the file is damaged or names anything but its own classes; nothing is executed.
    """
    named: dict[str, Any] = {
        **NUMBERS,
        "collections.OrderedDict": OrderedDict,
        **{f"torch.jit._pickle.{name}": _first for name in ("restore_type_tag", *_LISTS)},
        "torch._utils._rebuild_tensor_v2": view,
        "torch._utils._rebuild_parameter": data_of,
        "torch.device": Nothing,
    }
    refused: list[str] = []
    storages: dict[str, Storage] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full.startswith(PROGRAM):
                return _Module
            if full not in named:
                refused.append(full)
                raise pickle.UnpicklingError(full)
            return named[full]

        def persistent_load(self, pid: Any) -> Any:
            kind, dtype, key, _, length = pid
            if kind != "storage" or dtype not in NUMBERS.values():
                raise pickle.UnpicklingError(f"{kind} of another sort")
            return storages.setdefault(str(key), Storage(str(key), dtype, int(length)))

    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            content = Reader(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
            for storage in storages.values():
                raw = bytearray(archive.read(f"{root}data/{storage.key}"))
                if len(raw) != storage.length * storage.dtype.itemsize:
                    raise ValueError(f"a storage of {len(raw)} bytes")
                storage.values = torch.frombuffer(raw, dtype=storage.dtype) if raw else torch.empty(0)
        return _tensors(content, "", 0)
    except Exception as error:  # a damaged pickle can raise anything
        if refused:
            raise ValueError(
                f"{path} must hold a program and its weights; got a pickle that calls {', '.join(refused)}. It was not "
                f"executed."
            ) from error
        raise ValueError(
            f"{path} must be a whole TorchScript archive; got {type(error).__name__} "
            f"{str(error).partition(chr(10))[0]}. Copy or download it again."
        ) from error


_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


def _first(value: Any, *rest: Any) -> Any:
    return value


def _tensors(module: Any, prefix: str, depth: int) -> dict[str, Tensor]:
    if not isinstance(module, _Module) or depth == DEEPEST:
        raise ValueError(f"no module at {prefix or 'the top'}")
    found: dict[str, Tensor] = {}
    for name, held in module.held.items():
        if isinstance(held, View):
            tensor = resolved(held)
            if tensor.dim():  # numbers that OpenAI keeps beside the weights
                found[f"{prefix}{name}"] = tensor.clone()
        elif isinstance(held, _Module):
            found |= _tensors(held, f"{prefix}{name}.", depth + 1)
    return found
