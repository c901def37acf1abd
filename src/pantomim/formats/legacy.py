"""Files of `torch.save` in its layout before 1.6 that hold modules; torch reads these only by running what they say.

Such a file is four pickles (a mark, a version, number sizes, the object), then a list of storage keys and the values of
each storage. Here every name in it stands for something inert of ours, and any other name is refused.
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

MARK = 0x1950A86A20F9469CFC6C
HEAD = pickle.dumps(MARK, protocol=2)
VERSION = 1001

NUMBERS = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}


@dataclass
class Storage:
    """Values that come later in the file."""

    key: str
    dtype: torch.dtype
    length: int
    values: Tensor | None = None


class Nothing:
    """What is of no interest: a device, hooks."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass
class View:
    """A tensor before its values are known."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor, once its values are there."""
        values = self.storage.values
        if values is None:
            raise ValueError(f"no values for storage {self.storage.key}")
        return values.as_strided(self.size, self.stride, self.offset)  # refuses what lies outside


def view(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> View:
    """In the place of torch's function that makes a tensor."""
    return View(storage, offset, size, stride)


def data_of(data: View, *rest: Any) -> View:
    """In the place of torch's function that makes a parameter."""
    return data


def is_legacy(path: Path) -> bool:
    """Whether a file begins like one of this layout."""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


def read_legacy(path: Path, stand_ins: Mapping[str, type]) -> Any:
    """What a file holds; tensors stay `View`s until `resolved` is asked for them.

    Args:
        path: The file.
        stand_ins: An inert class for each class that the file may name.

    Raises:
        ValueError: if the file is damaged or names anything else; nothing is executed.
    """
    named: dict[str, Any] = {
        **stand_ins,
        **NUMBERS,
        "collections.OrderedDict": OrderedDict,
        **dict.fromkeys(("torch.device", "__builtin__.set", "builtins.set"), Nothing),
        "torch._utils._rebuild_tensor_v2": view,
        "torch._utils._rebuild_parameter": data_of,
    }
    refused: list[str] = []
    storages: dict[str, Storage] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full not in named:
                refused.append(full)
                raise pickle.UnpicklingError(full)
            return named[full]

        def persistent_load(self, pid: Any) -> Any:
            kind, *data = pid
            if kind == "module":  # a class, with the name and text of its source file
                return data[0]
            if kind != "storage" or data[0] not in NUMBERS.values() or (len(data) > 4 and data[4] is not None):
                raise pickle.UnpicklingError(f"{kind} of another sort")
            return storages.setdefault(str(data[1]), Storage(str(data[1]), data[0], int(data[3])))

    try:
        with path.open("rb") as file:
            if Reader(file).load() != MARK or Reader(file).load() != VERSION or not _little_endian(Reader(file).load()):
                raise ValueError("another version, or another order of bytes")
            content = Reader(file).load()
            for key in Reader(file).load():
                storages[str(key)].values = _read_values(file, storages[str(key)])
    except Exception as error:  # a damaged pickle can raise anything
        if refused:
            raise ValueError(
                f"{path} must hold weights and plain values only; got a pickle that calls {', '.join(refused)}. It was "
                f"not executed. If you trust its maker, read it with torch.load(FILE, weights_only=False) where that "
                f"is safe, and save its tensors alone as safetensors."
            ) from error
        raise ValueError(
            f"{path} must be a whole safetensors file or torch checkpoint; got {type(error).__name__} "
            f"{str(error).partition(chr(10))[0]}. Copy or download it again."
        ) from error
    return content


def resolved(value: Any) -> Any:
    """The tensor that a `View` describes, the same within mappings; anything else as it is.

    Raises:
        ValueError: if its values are not in the file, or it reaches beyond them.
    """
    if isinstance(value, View):
        try:
            return value.tensor()
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"a tensor that reaches beyond its values ({_first_line(error)})") from error
    if isinstance(value, Mapping):
        return {name: resolved(entry) for name, entry in value.items()}
    return value


def _little_endian(sizes: Any) -> bool:
    return isinstance(sizes, Mapping) and sizes.get("little_endian") is True


def _read_values(file: IO[bytes], storage: Storage) -> Tensor:
    (length,) = struct.unpack("<q", file.read(8))
    if length != storage.length or length < 0:
        raise ValueError(f"a storage of {length} values instead of {storage.length}")
    wanted = length * storage.dtype.itemsize
    raw = bytearray(file.read(wanted))
    if len(raw) != wanted:
        raise ValueError("the end of the file too early")
    return torch.frombuffer(raw, dtype=storage.dtype) if raw else torch.empty(0, dtype=storage.dtype)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
