"""Where results go, checked before the work is done rather than after it."""

import os
from collections.abc import Sequence
from pathlib import Path


def check_out(field: str, path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file that could not be written.

    Args:
        field: Who names the file, for the message.
        path: The file; it and its folders may be missing.
        suffixes: The endings it may have.

    Raises:
        ValueError: if it has another ending, is a folder, or lies where nothing can be written.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"{field} must end in {' or '.join(suffixes)}; got {path}. Give FILE{suffixes[0]}.")
    if path.is_dir():
        raise ValueError(f"{field} must be a file; got the folder {path}. Give {path / ('FILE' + suffixes[0])}.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{field} must lie in a folder that can be written to; got {path}. Choose another place.")
