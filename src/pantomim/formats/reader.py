"""The one reader of files that anyone may have made: safetensors, checkpoints of torch, TorchScript archives.

Nothing in a file is executed. A pickle builds plain values, tensors, and an `Inert` in place of each class on the list;
at any other name it stops, before anything is called. torch's own allow-list reader takes neither TorchScript archives
nor whole modules, which is how CLIP and DALL-E were published.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pantomim.core.foreign import reason

WRAPPERS = ("model", "module", "state_dict")  # what training scripts, and DeepSpeed, call their weights
PROGRAM = "__torch__."  # what the classes of a TorchScript program begin with
DEEPEST = 16  # modules within modules; CLIP's have seven

# torch.save before 1.6: pickles of this mark, a version, sizes, the object, the keys of storages; then their values.
MARK, VERSION = 0x1950A86A20F9469CFC6C, 1001
HEAD = pickle.dumps(MARK, protocol=2)

STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
DTYPES = {f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()}
# Classes and functions whose place an `Inert` takes: of training scripts, of mmengine's logs, of DALL-E's modules.
ALLOWED = """
    argparse.Namespace collections.Counter collections.defaultdict _codecs.encode
    pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.PosixPath pathlib._local.WindowsPath pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
    torch.device torch.Size torch.Tensor torch.float64 torch.float32 torch.float16 torch.bfloat16 torch.int64 torch.bool
    mmengine.logging.history_buffer.HistoryBuffer numpy.ndarray numpy.dtype
    numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar
    dall_e.encoder.Encoder dall_e.encoder.EncoderBlock dall_e.decoder.Decoder dall_e.decoder.DecoderBlock
    dall_e.utils.Conv2d torch.nn.modules.container.Sequential torch.nn.modules.activation.ReLU
    torch.nn.modules.pooling.MaxPool2d torch.nn.modules.linear.Identity torch.nn.modules.upsampling.Upsample
"""
INERT = frozenset(ALLOWED.split())


class Inert:
    """Takes the place of an object; keeps its state if that is a mapping, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, Mapping) else {}


class _ForeignError(Exception):
    """A pickle names something that no file of weights needs."""


class _Unpickler(pickle.Unpickler):
    """Follows a pickle's instructions with inert parts; `storage` gives values by key, dtype and length.

    What it hands out is made for one file alone: instructions can set attributes of what they were given, so nothing
    that another file would meet may be among it.
    """

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor] | None = None) -> None:
        super().__init__(file)
        self.storage = storage
        self.names: dict[str, Any] = {
            **DTYPES,
            **dict.fromkeys(("builtins.set", "__builtin__.set"), set),
            "collections.OrderedDict": OrderedDict,
            **{f"torch._utils._rebuild_parameter{rest}": self._first for rest in ("", "_with_state")},
            **{f"torch.jit._pickle.build_{kind}list": self._first for kind in ("int", "double", "bool", "tensor")},
            "torch.jit._pickle.restore_type_tag": self._first,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, arguments, state: rebuild(*arguments),
        }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in INERT or full.startswith(PROGRAM):
            return self.names.setdefault(full, type(name.rpartition(".")[2], (Inert,), {}))
        if full not in self.names:
            raise _ForeignError(full)
        return self.names[full]

    def persistent_load(self, pid: Any) -> Any:
        kind, *data = pid
        if kind == "module":  # a class, with the name and text of its source file
            return data[0]
        if kind != "storage" or data[0] not in DTYPES.values() or (len(data) > 4 and data[4] is not None):
            raise ValueError(f"a {kind} of an unknown type")
        if self.storage is None:
            raise ValueError("a storage where there can be none")
        return self.storage(str(data[1]), data[0], int(data[3]))

    def _tensor(self, storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        try:
            return storage.as_strided(tuple(size), tuple(stride), offset)  # refuses what lies outside
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"a tensor that reaches beyond its values ({reason(error)})") from error

    def _first(self, value: Any, *rest: Any) -> Any:
        return value


def read_weights(path: str | Path, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """A file's tensors by name, on the CPU, under the first of `wrappers` that it has; `ValueError` if unreadable."""
    return weights_of(path, read_content(path), wrappers)


def read_content(path: str | Path) -> Any:
    """What a file holds: plain values, tensors on the CPU, and an `Inert` for each object; nothing is executed."""
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise ValueError(f"{path} must be a file of weights; got {got}. Check the path.")
    try:
        with path.open("rb") as file:
            head = file.read(len(HEAD))
            file.seek(0)
            if head.startswith(b"PK"):
                return _read_zip(file)
            if path.suffix == ".safetensors" or head[8:9] == b"{":
                return load_file(path)
            if head == HEAD:
                return _read_legacy(file, path.stat().st_size)
            _Unpickler(file).load()  # tells what a bare pickle would call; one without a name is no checkpoint either
            raise ValueError("no checkpoint that torch knows")
    except _ForeignError as error:
        raise ValueError(
            f"{path} must hold weights and plain values only; got a pickle that calls {error}. It was not executed. "
            f"Ask its maker for the tensors alone, as safetensors."
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        kind = "" if isinstance(error, SafetensorError) else f"{type(error).__name__} "
        raise ValueError(
            f"{path} must be a whole safetensors file or torch checkpoint; got {kind}{reason(error)}. Copy or "
            f"download it again."
        ) from error


def _read_zip(file: IO[bytes]) -> Any:
    """torch.save since 1.6 and torch.jit.save: a pickle, and one record for each storage."""
    storages: dict[str, Tensor] = {}
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")

        def storage(key: str, dtype: torch.dtype, length: int) -> Tensor:
            if key not in storages:
                record = archive.getinfo(f"{root}data/{key}")
                if not record.compress_size == record.file_size == length * dtype.itemsize:  # torch never compresses
                    raise ValueError(f"a storage of {record.file_size} bytes instead of {length * dtype.itemsize}")
                storages[key] = _values(archive.read(f"{root}data/{key}"), dtype)
            return storages[key]

        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("another order of bytes")
        return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """torch.save before 1.6: the values of the storages come after the pickle that refers to them."""
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, length: int) -> Tensor:
        if not 0 <= length * dtype.itemsize <= size:  # nothing is allocated on a file's word alone
            raise ValueError(f"a storage of {length} values in {size} bytes")
        return storages.setdefault(key, torch.empty(length, dtype=dtype))

    _, version, sizes = (_Unpickler(file).load() for _ in range(3))
    if version != VERSION or not isinstance(sizes, Mapping) or sizes.get("little_endian") is not True:
        raise ValueError("another version, or another order of bytes")
    content, missing = _Unpickler(file, storage).load(), set(storages)
    for key in map(str, _Unpickler(file).load()):
        held = storages[key]
        (length,), raw = struct.unpack("<q", file.read(8)), file.read(held.nbytes)
        if (length, len(raw)) != (len(held), held.nbytes):
            raise ValueError(f"{length} values in {len(raw)} bytes for a storage of {len(held)} in {held.nbytes}")
        held.copy_(_values(raw, held.dtype))  # in place: tensors of the content are views of it
        missing.discard(key)
    if missing:
        raise ValueError(f"no values for storage {', '.join(sorted(missing))}")
    return content


def weights_of(path: str | Path, content: Any, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """The tensors, by name, in what `read_content` gave."""
    held = content
    for name in wrappers:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping | Inert):
            held = held[name]
    if isinstance(held, Inert):
        held = dict(_module_weights(held, "", str(path)))
    if not isinstance(held, Mapping) or not held:
        got = type(held).__name__ + (" without entries" if isinstance(held, Mapping) else "")
    elif others := [str(name) for name, value in held.items() if not isinstance(value, Tensor)]:
        got = f"other things under {', '.join(others)}"
    else:
        return {str(name): tensor.detach() for name, tensor in held.items()}
    raise ValueError(
        f"{path} must map names to tensors, or hold such a mapping under {' or '.join(wrappers)}; got {got}. "
        f"Save the model's state_dict()."
    )


def _module_weights(module: Inert, prefix: str, source: str, depth: int = 0) -> dict[str, Tensor]:
    """What a whole module holds: in its three registries, or side by side in a TorchScript program."""
    state = module.state
    registries = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    parts = [part for part in registries if isinstance(part, Mapping)] if "_modules" in state else [state]
    found: dict[str, Tensor] = {}
    for name, held in (pair for part in parts for pair in part.items()):
        if isinstance(held, Tensor):
            found[f"{prefix}{name}"] = held
        elif isinstance(held, Inert):
            if depth == DEEPEST:
                raise ValueError(f"{source} must hold a network; got endless modules under {prefix}{name}.")
            found |= _module_weights(held, f"{prefix}{name}.", source, depth + 1)
    return found


def _values(raw: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
