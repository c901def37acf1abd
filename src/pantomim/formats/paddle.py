"""Files of Paddle (.pdparams): pickles of arrays by name, read without running anything that they name.

Each array, and each number type, is read by a stand-in of ours that keeps what the file says of it. Any other name in
the file is refused.
"""

import codecs
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMBERS = ("f2", "f4", "f8", "i4", "i8", "b1", "u1")
NAMES_OF_PARAMETERS = "StructuredToParameterName@@"  # what Paddle keeps beside the weights
WRAPPERS = ("model", "state_dict")


class _NumberType:
    """Stands for a numpy.dtype."""

    def __init__(self, code: Any = "", *arguments: Any) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Array:
    """Stands for a numpy.ndarray: keeps shape, number type, order and bytes."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        """The values.

        Raises:
            ValueError: if they are no numbers, or not as many as the shape says.
        """
        _, shape, kind, by_columns, data = self.state
        if not isinstance(kind, _NumberType) or kind.code not in NUMBERS or not isinstance(data, bytes):
            raise ValueError(f"an array of {getattr(kind, 'code', type(kind).__name__)}")
        order = kind.order if kind.order in "<>" else "|"
        values = np.frombuffer(data, dtype=np.dtype(f"{order}{kind.code}"))
        values = values.reshape(shape, order="F" if by_columns else "C")
        return torch.from_numpy(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="))))


def _array(*arguments: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    return codecs.encode(text, "latin1")


_STAND_INS: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    "builtins.tuple": tuple,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the file."""
        whole = f"{module}.{name}"
        if whole not in _STAND_INS:
            raise _ForeignError(whole)
        return _STAND_INS[whole]


class _ForeignError(Exception):
    """A name that no file of weights needs."""


def read_paddle(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a .pdparams file by name, as tensors.

    Raises:
        ValueError: if there is no such file, it is damaged, or names anything but arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} must be a file of Paddle's (.pdparams); got nothing there. Check the path.")
    try:
        with path.open("rb") as file:
            content = _Reader(file).load()
    except _ForeignError as error:
        raise ValueError(
            f"{path} must hold arrays and plain values only; got a pickle that calls {error}. It was not executed."
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path} must be a whole .pdparams file; got {type(error).__name__} {error}.") from error
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must map names to arrays; got {type(content).__name__}.")
    weights = {}
    for name, held in content.items():
        if name == NAMES_OF_PARAMETERS:
            continue
        array = held[1] if isinstance(held, tuple) and len(held) == 2 else held  # newer ones: (name, array)
        if not isinstance(array, _Array) or array.state is None:
            raise ValueError(f"{path} must map names to arrays; got {type(held).__name__} under {name}.")
        try:
            weights[str(name)] = array.tensor()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} must hold arrays of numbers; got {error} under {name}.") from error
    return weights
