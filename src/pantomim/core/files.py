"""Files that are either whole or not there, and why one cannot be read or written."""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

OWN_FOLDER = ".pantomim"  # an empty file in a folder of pictures that we wrote: they are no data
_REMEDIES = {
    "Make room": (errno.ENOSPC, errno.EDQUOT),
    "Get the permission to read and write it": (errno.EACCES, errno.EPERM, errno.EROFS),
    "Check the path": (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    "Raise the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "Free memory, or raise the limit of processes (ulimit -u)": (errno.EAGAIN, errno.ENOMEM),
}


def remedy(error: Exception) -> str:
    """What to do about a file that cannot be read or written, as the beginning of a sentence."""
    found = re.search(r"os error (\d+)", str(error))  # safetensors has it in its text alone
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return next((words for words, numbers in _REMEDIES.items() if number in numbers), "Check the disk")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within this an `OSError` names the file, whatever failed."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file: afterwards there is the old file or the new one, whole."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to under a temporary name: in the end forced to disk and renamed, on an error removed."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    with naming(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def new_folder(field: str, path: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name, refused for a field if it exists; in the end it is whole, or gone."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{field} must be a new or an empty folder; got {path}, which exists. Name another.")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        yield temporary
        with naming(path):
            for file in (file for file in temporary.rglob("*") if file.is_file()):
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            if path.exists():
                path.rmdir()
            temporary.rename(path)
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed calls of `replace_file` left in a folder, but of pages: who writes those holds no lock."""
    for file in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.(json|jsonl|yaml|txt|gz|safetensors)\.[0-9a-z_]{8}\.tmp", file.name):
            file.unlink(missing_ok=True)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> Path:
    """Write named arrays as `replace_file` does; gives the path."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, allow_pickle=False, **arrays)
    replace_file(path, buffer.getvalue())
    return path


def check_out(field: str, path: Path, suffixes: Sequence[str]) -> None:
    """Refuse, in the name of a field, a file that could not be written; to be called before the work it is to hold."""
    if path.suffix not in suffixes:
        raise ValueError(f"{field} must end in {' or '.join(suffixes)}; got {path}. Give FILE{suffixes[0]}.")
    if path.is_dir():
        raise ValueError(f"{field} must be a file; got the folder {path}. Give {path / ('FILE' + suffixes[0])}.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{field} must lie in a folder that can be written to; got {path}. Choose another place.")


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk, so that a rename survives a power cut; Windows has no such call."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Where what can be made again is kept: $PANTOMIM_CACHE, else pantomim in the user's cache folder."""
    if stated := os.environ.get("PANTOMIM_CACHE"):
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pantomim"
