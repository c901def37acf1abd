"""Banks of noise patterns on disk and on the device: made once, found again by the hash of their settings."""

import functools
import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from pantomim.core.files import cache_folder, write_npz
from pantomim.core.foreign import reason
from pantomim.masking.noise import Noise, make_bank

ADVICE = "Give an .npz whose first array is patterns x rows x columns, as `pantomim noise` writes it."
VERSION = 2  # of the way banks are made; another one makes them anew


def bank_path(noise: Noise) -> Path:
    """The file of a bank in the cache; its name holds a hash of all that decides the values."""
    settings = json.dumps(asdict(noise.explicit) | {"version": VERSION}, sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return cache_folder() / "noise" / f"{noise.color}-{digest}.npz"


def cached_bank(noise: Noise) -> Float[Tensor, "L M N"]:
    """The bank of these settings, read from the cache, or made and put there; a damaged file is made anew.

    Several processes that ask at once wait for the one that makes it.
    """
    path, shape = bank_path(noise), (noise.patterns, noise.side, noise.side)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            with suppress(ValueError):  # cut off or overwritten: it can be made again
                if (bank := read_bank(path)).shape == shape:
                    return bank
        bank = make_bank(noise)
        write_bank(path, bank)
    return bank


def write_bank(path: Path, bank: Float[Tensor, "L M N"]) -> None:
    """Write a bank as the only array of an .npz file, as the authors do."""
    write_npz(path, {"noise": bank.numpy()})


def read_bank(path: Path) -> Float[Tensor, "L M N"]:
    """Read a bank: the first array of an .npz file, patterns by rows by columns, ours or the authors'."""
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:  # never unpickles
            values = archive[archive.files[0]] if archive.files else "no arrays"
        if not isinstance(values, np.ndarray) or values.ndim != 3 or not values.size or values.dtype.kind not in "fiu":
            held = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else values
            raise ValueError(f"it must hold numbers in three dimensions, and holds {held}")
    # A damaged archive may claim sizes, compressions, passwords and versions that there are not.
    except Exception as error:
        raise ValueError(f"ColorNoiseMasker.bank must be readable; got {path}: {reason(error)}. {ADVICE}") from None
    bank = torch.from_numpy(values.astype(np.float32))
    if not bank.isfinite().all():
        raise ValueError(f"ColorNoiseMasker.bank must hold finite numbers; got nan or infinity in {path}. {ADVICE}")
    return bank


@functools.lru_cache(maxsize=64)
def bank_shape(source: Noise | Path) -> tuple[int, ...]:
    """Patterns, rows and columns of a bank, without making it; a file is read once a process."""
    if isinstance(source, Noise):
        return source.patterns, source.side, source.side
    return tuple(read_bank(source).shape)


@functools.lru_cache(maxsize=8)  # all colours, and some to spare
def bank_on(source: Noise | Path, device: torch.device) -> Float[Tensor, "L M N"]:
    """A bank on a device, loaded once a process: 4 bytes a value, 67 MB for 256 patterns of 256 x 256."""
    bank = cached_bank(source) if isinstance(source, Noise) else read_bank(source)
    return bank.to(device)
