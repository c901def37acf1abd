"""Weights from files that anyone may have made: read, never executed."""

import argparse
import pathlib
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Globals that a training checkpoint may name and that only hold values; torch knows tensors and containers by itself.
HARMLESS = (argparse.Namespace, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)

# Values of training logs, which mmengine's checkpoints hold beside the weights: an `Unread` stands in for each.
UNREAD = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)

WRAPPERS = ("model", "state_dict")  # what training checkpoints call their weights


# What torch raises for files that are cut or changed.
_UNREADABLE = (
    *(RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile),
)


class Unread:
    """Stands where a checkpoint holds something that is no weight; what the file says of it is dropped."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(path: str | Path, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a torch checkpoint, by name, on the CPU.

    A checkpoint's weights may be all it holds, or be one of its entries.

    Args:
        path: The file.
        wrappers: Names of the entries that may hold the weights, the preferred first.

    Raises:
        ValueError: if there is no such file, it is damaged, holds something else than weights, or would have to run
            code to be read.
    """
    known = (*HARMLESS, *((Unread, name) for name in UNREAD))
    return weights_of(path, read_content(path, known), wrappers)


def read_content(path: str | Path, known: Sequence[Any]) -> Any:
    """What a safetensors file or a torch checkpoint holds, on the CPU; nothing is executed.

    Args:
        path: The file.
        known: Classes that the file may name besides tensors and containers, which torch knows by itself; a pair puts
            an inert class of ours in place of a name: (ours, "theirs.full.name").

    Raises:
        ValueError: if there is no such file, it is damaged, or it names anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} must be a file of weights; got {_what(path)}. Check the path.")
    with path.open("rb") as file:
        head = file.read(9)
    is_zip = head.startswith(b"PK")
    if not is_zip and (path.suffix == ".safetensors" or head[8:] == b"{"):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, str(error)) from error
    return _unpickle(path, known)


def _unpickle(path: Path, known: Sequence[Any]) -> Any:
    try:
        with torch.serialization.safe_globals(list(known)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        calls = [refused[1]] if refused else _foreign_names(path)
        if not calls:  # torch's own message advises to read it unsafely, which would not help
            reason = str(error).partition("WeightsUnpickler error: ")[2]
            raise _damaged(path, reason.partition("\n")[0].strip() or "no checkpoint that torch knows") from error
        raise ValueError(
            f"{path} must hold weights and plain values only; got a pickle that calls {', '.join(calls)}. It was not "
            f"executed. If you trust its maker, read it with torch.load(FILE, weights_only=False) where that is safe, "
            f"and save its tensors alone as safetensors."
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise _damaged(path, f"{type(error).__name__} {_first_line(error)}".strip()) from error


def _foreign_names(path: Path) -> list[str]:
    """What a pickle of a protocol that torch does not read would call; its instructions are listed, not followed."""
    names, strings = set(), [""] * 2
    try:
        for operation, argument, _ in pickletools.genops(path.read_bytes()):
            if operation.name == "STACK_GLOBAL":
                names.add(".".join(strings))
            elif operation.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
            elif "UNICODE" in operation.name:
                strings = [strings[1], str(argument)]
    except ValueError:  # no pickle, or one cut off
        return []
    return sorted(name for name in names if not name.startswith(("torch.", "collections.")))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def weights_of(path: str | Path, content: Any, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """The tensors, by name, in what `read_content` gave.

    Raises:
        ValueError: if it holds something else than weights.
    """
    held = content
    for name in wrappers:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not held:
        raise ValueError(
            f"{path} must map names to tensors; got {type(held).__name__}"
            f"{' without entries' if isinstance(held, Mapping) else ''}. Save the model's state_dict()."
        )
    others = [str(name) for name, value in held.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{path} must map names to tensors, or hold such a mapping under {' or '.join(wrappers)}; got other things "
            f"under {', '.join(others)}. Save the model's state_dict()."
        )
    return {str(name): tensor.detach() for name, tensor in held.items()}


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else "nothing there"


def _damaged(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path} must be a whole safetensors file or torch checkpoint; got {found}. Copy or download it again."
    )
