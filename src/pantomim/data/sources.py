"""Opening images by name: a folder, a zip, an .npz, a list of files, an embedded set, or another library's set.

What a name may be, splits and classes: docs/data.md. A source without splits is divided once and for all, whatever the
seed: pre-training sees 80 % (stratified by class), so that an evaluation on the same source stays honest.
"""

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pantomim.data.dataset import Contents, Dataset
from pantomim.data.decoding import is_image
from pantomim.data.layout import SPLITS, canonical_split, divide, read_layout
from pantomim.data.libraries import EMBEDDED, hugging_face, torchvision_set
from pantomim.data.stores import ArrayStore, FileStore, Store, ZipStore

LIST_SUFFIXES = (".txt", ".lst", ".tsv")
NPZ_ARRAYS = ("images", "labels", "split")
DIVISION_SEED = 0  # of sources without splits; another one would test on images of pre-training


def open_source(spec: str, split: str = "train", scale: float | None = None) -> Dataset:
    """Open one split of a source (the table above): train, val, test, or all; `scale` is the value that becomes 1.

    Raises `ValueError` if there is no such source or split, if it holds no images, if its images differ in channels or
    number type, or if more than 1 % of them are found broken.
    """
    return open_split(replace(read_contents(spec), scale=scale), spec, split)


def open_split(contents: Contents, spec: str, split: str) -> Dataset:
    """Open one split of a source that has been listed; arguments and errors as for `open_source`."""
    if split == "all":
        return Dataset(spec, split, contents, contents.everything())
    parts = contents.splits or divide(len(contents.store), contents.labels, seed=DIVISION_SEED)
    if split not in parts or not len(parts[split]):
        have = ", ".join(name for name, rows in parts.items() if len(rows))
        raise ValueError(
            f"Source.split must be one that {spec} has; got {split!r}. It has {have}, and all for everything."
        )
    return Dataset(spec, split, contents, parts[split])


def splits(spec: str) -> tuple[str, ...]:
    """The splits that a source comes with, in the order train, val, test; () if it has none."""
    return tuple(read_contents(spec).splits)


def read_contents(spec: str) -> Contents:
    """List what a source holds; reads no images."""
    if not spec.strip():
        raise ValueError(f"Source.spec must name a source; got {spec!r}. Write . for the current folder.")
    if spec in EMBEDDED:
        return EMBEDDED[spec]()
    if spec.startswith("torchvision:"):
        return torchvision_set(spec)
    if spec.startswith("hf:"):
        return hugging_face(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, spec)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _npz(path, spec)
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return _list(path, spec)
    if found := _inside_zip(path):
        return _zip(*found, spec)
    raise ValueError(
        f"Source.spec must be a folder, a .zip, an .npz, a list of files (.txt), {', '.join(EMBEDDED)}, "
        f"torchvision:NAME or hf:NAME; got {spec!r}, which is none of these. Check the path."
    )


def browse(spec: str) -> Path | zipfile.Path:
    """A folder, a zip or a folder of a zip, to list and to read from; of any other source the path as it is."""
    path = Path(spec).expanduser()
    if path.is_dir() or (found := _inside_zip(path)) is None:
        return path
    _members(*found)  # names a zip that cannot be read
    return zipfile.Path(*found)


def _named_contents(name: str, spec: str, store: Store, num_ignored: int) -> Contents:
    if not len(store):
        raise ValueError(
            f"Source.spec must hold images; got {spec} with none, and {num_ignored} other files. "
            f"Give a folder of JPEG, PNG, TIFF, WebP, BMP, GIF, PNM or .npy files."
        )
    layout = read_layout(store.names, spec)
    return Contents(name, store, layout.splits, layout.classes, layout.labels, num_ignored + layout.num_outside)


def _folder(root: Path, spec: str) -> Contents:
    names, num_ignored = [], 0
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        inner = Path(folder).relative_to(root)
        images = [(inner / file).as_posix() for file in files if is_image(file)]
        names += images
        num_ignored += len(files) - len(images)
    names.sort()
    return _named_contents(root.resolve().name, spec, FileStore(root, names), num_ignored)


def _inside_zip(path: Path) -> tuple[Path, str] | None:
    """The zip that a path names or leads into, and the folder in it as a prefix of its members' names."""
    for parent in (path, *path.parents):
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, "" if parent == path else path.relative_to(parent).as_posix() + "/"
    return None


def _members(path: Path, inner: str) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [m for m in archive.infolist() if not m.is_dir() and m.filename.startswith(inner)]
    except zipfile.BadZipFile as error:
        raise ValueError(f"Source.spec must be a readable zip; got {path}: {error}. Fetch or pack it again.") from error


def _zip(path: Path, inner: str, spec: str) -> Contents:
    members = _members(path, inner)
    kept = [m for m in members if is_image(m.filename) and not m.filename.startswith("__MACOSX/")]
    kept.sort(key=lambda member: member.filename)
    names = [member.filename[len(inner) :] for member in kept]
    name = inner.rstrip("/").rsplit("/", 1)[-1] if inner else path.stem
    return _named_contents(name, spec, ZipStore(path, kept, names), len(members) - len(kept))


def _list(path: Path, spec: str) -> Contents:
    entries = [entry for line in path.read_text().splitlines() if (entry := _list_entry(line))]
    names = [name for name, _ in entries]
    labels = [label for _, label in entries]
    if not names:
        raise ValueError(f"Source.spec must list at least one image; got none in {spec}. Write one file a line.")
    if any(labels) and not all(labels):
        bare = names[labels.index(None)]
        raise ValueError(
            f"Source.labels must be given for all or none; got none for {bare} in {spec}. Complete the list."
        )
    classes, ids = _class_ids(np.asarray(labels, dtype=str), None, spec) if all(labels) else (None, None)
    return Contents(path.stem, FileStore(path.parent, names), {}, classes, ids)


def _list_entry(line: str) -> tuple[str, str | None] | None:
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    for separator in ("\t", " "):
        name, found, label = line.rpartition(separator)
        if found and is_image(name.strip()):
            return name.strip(), label.strip()
    return line, None


def _npz(path: Path, spec: str) -> Contents:
    arrays, others = read_arrays(path, spec)
    if "images" not in arrays:
        raise ValueError(
            f"Source.images must be an array of the .npz; got {', '.join(others)} in {spec}. "
            f"Save it as np.savez(file, images=..., labels=..., split=...)."
        )
    store = ArrayStore(arrays.pop("images"), spec=spec)
    for name, values in arrays.items():
        if values.shape != (len(store),):
            raise ValueError(
                f"Source.{name} must have one value an image; got shape {values.shape} for {len(store)} images "
                f"in {spec}. Give an array of shape ({len(store)},)."
            )
    parts = _split_array(arrays["split"], spec) if "split" in arrays else {}
    classes, ids = _class_ids(arrays["labels"], parts.get("train"), spec) if "labels" in arrays else (None, None)
    return Contents(path.stem, store, parts, classes, ids)


def read_arrays(path: Path, spec: str, names: Sequence[str] = NPZ_ARRAYS) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the named arrays that an .npz has, and the names of its other members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            arrays = {}
            for name in names:
                if name in members:
                    with archive.open(members[name]) as file:
                        arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise ValueError(f"Source.spec must be a readable .npz; got {spec}: {error}. Save it again.") from error
    except ValueError as error:  # NumPy's own words may advise to load it unsafely
        raise ValueError(
            f"Source.spec must be a readable .npz of plain numbers and words; got {spec}, whose array {name} is "
            f"damaged or holds Python objects. Save it again."
        ) from error
    return arrays, [name for name in members if name not in arrays]


def _split_array(values: np.ndarray, spec: str) -> dict[str, np.ndarray]:
    names = {name: canonical_split(name) for name in np.unique(values.astype(str)).tolist()}
    unknown = [name for name, split in names.items() if split is None]
    if unknown:
        raise ValueError(
            f"Source.split must hold train, val and test; got {', '.join(unknown[:5])} in {spec}. Rename them."
        )
    canonical = np.asarray([names[value] for value in values.astype(str).tolist()])
    return {split: np.flatnonzero(canonical == split) for split in SPLITS if (canonical == split).any()}


def _class_ids(values: np.ndarray, train: np.ndarray | None, spec: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names in order, and class ids; the classes are those that occur in train."""
    values = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    known = np.unique(values if train is None else values[train])
    ids = np.searchsorted(known, values).clip(max=len(known) - 1)
    if (unknown := np.unique(values[known[ids] != values])).size:
        raise ValueError(
            f"Source.labels must be classes of train; got {unknown[:10].tolist()} in {spec}. Remove those images."
        )
    return tuple(str(value) for value in known.tolist()), ids.astype(np.int64)
