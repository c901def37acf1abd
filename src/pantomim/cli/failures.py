"""What ends a command: errors of known kinds in one message with file, cause and remedy, any other in a report."""

import json
import os
import platform
import shlex
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path

import yaml
from safetensors import SafetensorError

import pantomim
from pantomim.core.files import cache_folder, remedy

OURS = str(Path(pantomim.__file__).parent)
PACKAGES = ("pantomim", "torch", "torchvision", "accelerate", "timm", "safetensors", "numpy", "pillow")
DAMAGED = "It is damaged, or of another kind than its name says: get it again."


def in_words(error: Exception) -> str | None:
    """The message for an error that a user can mend; None for any other."""
    if isinstance(error, OSError):
        return _of_files(error) if error.errno else str(error)
    file, said = _file_of(error) or "A file", str(error)
    if isinstance(error, SafetensorError):
        return f"{file} must be whole safetensors; got {said}. {f'{remedy(error)}.' if 'os error' in said else DAMAGED}"
    if isinstance(error, UnicodeDecodeError):
        return f"{file} must be text in UTF-8; got other bytes (at {error.start}). Save it as UTF-8."
    if isinstance(error, UnicodeEncodeError):
        return f"Names must be text in UTF-8; got {error.object[:200]!r}. Rename it."
    if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | json.JSONDecodeError | yaml.YAMLError):
        return f"{file} must be whole; got an error ({said}). {DAMAGED}"
    if isinstance(error, ValueError) and _raised_by_us(error):
        return said
    if "can't start new thread" in said:
        return f"Threads must be allowed to start; got none ({said}). Raise the limit of processes (ulimit -u)."
    from pantomim.engine.stops import MemoryFullError, NonFiniteError, WorkerError, is_out_of_memory

    if isinstance(error, NonFiniteError | MemoryFullError | WorkerError):
        return said
    if is_out_of_memory(error):
        return f"Memory must hold what is worked on; got no more of it ({said[:200]}). Use fewer images at once."
    return None


def write_report(error: Exception, words: Sequence[str]) -> Path | None:
    """A file for whoever is to find the fault, in the current folder or that for temporary files; None if neither."""
    lines = [f"pantomim {shlex.join(words)}", f"Python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{found.name} {found.version}" for found in distributions() if found.name in PACKAGES]
    lines += ["", *traceback.format_exception(error)]
    for folder in (Path(), Path(tempfile.gettempdir())):
        path = folder / f"pantomim-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        with suppress(OSError):
            path.write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
            return path
    return None


def _of_files(error: OSError) -> str:
    file = _file_of(error) or "A file"
    in_cache = Path(file).is_relative_to(cache_folder())
    place = "set PANTOMIM_CACHE to another folder" if in_cache else "choose another place"
    return f"{file} cannot be read or written: {error.strerror}. {remedy(error)}, or {place}, and run it again."


def _file_of(error: Exception) -> str | None:
    """The file that an error is about: its own word, or the argument of the innermost call that has one."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in map(frame.f_locals.get, ("self", "filename", "path", "file")):
            if isinstance(value, Path):
                return str(value)
    return None


def _raised_by_us(error: Exception) -> bool:
    """Whether the message follows our rules: a library's says nothing to those who do not know its code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename.startswith((OURS, "<string>"))
