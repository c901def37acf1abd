"""Opening images by name: a folder, a zip, a pack, an .npz, a list, shards, an embedded or another library's set.

What a name may be, splits and classes: docs/data.md. A source without splits is divided once and for all, whatever the
seed: pre-training sees 80 % (stratified by class), so that an evaluation on the same source stays honest.
"""

import csv
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import heappop, heappush
from itertools import zip_longest
from pathlib import Path
from unicodedata import normalize

import numpy as np

from pantomim.core.foreign import reason
from pantomim.data.dataset import Contents, Dataset
from pantomim.data.decoding import BrokenImageError, is_image, read_npy
from pantomim.data.layout import divide
from pantomim.data.libraries import EMBEDDED, hugging_face, torchvision_set
from pantomim.data.names import LABEL_TITLES, LOG, SPLITS, as_labels, count_left_out, is_system, readable
from pantomim.data.pack import SUFFIX, read_pack
from pantomim.data.shards import named_shards, read_shards, shards_among
from pantomim.data.stores import ArrayStore, FileStore, Store, ZipStore

IMAGE_TITLES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")  # of a column
SPLIT_TITLES = ("split", "set", "subset", "partition")
LIST_SUFFIXES = (".txt", ".lst", ".tsv", ".csv")
NPZ_ARRAYS = ("images", "labels", "split")
OF_SPLITS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))  # the same of each split, in MedMNIST's files and Keras's
MAX_DEFLATED = 1032  # bytes that a byte of a zip can become
DIVISION_SEED = 0  # of sources without splits; another one would test on images of pre-training
HELD_BACK = 0.2  # of these


def open_source(spec: str, split: str = "train", scale: float | None = None) -> Dataset:
    """Open one split of a source: train, val, test or all, whose images must be alike; `scale` is what becomes 1."""
    return open_split(replace(read_contents(spec), scale=scale), spec, split)


def open_split(contents: Contents, spec: str, split: str, *, held_back: float = HELD_BACK) -> Dataset:
    """As `open_source`, of a listed source; `held_back` is the share for tests where it has no such split."""
    if split == "all":
        return Dataset(spec, split, contents, np.arange(len(contents.store)))
    parts = divided(contents, spec, held_back).splits
    if split not in parts or not len(parts[split]):
        have = ", ".join(name for name, rows in parts.items() if len(rows))
        raise ValueError(
            f"Source.split must be one that {spec} has; got {split!r}. It has {have}, and all for everything."
        )
    return Dataset(spec, split, contents, parts[split])


def divided(contents: Contents, spec: str, held_back: float = HELD_BACK) -> Contents:
    """With the splits of a source that has none, which are the same once and for all."""
    if contents.splits:
        return contents
    parts = divide(len(contents.store), contents.labels, seed=DIVISION_SEED, share=held_back)
    if held_back:
        LOG.info(
            "%s has no test images of its own: %d of %d images are trained on, %d held back (data.holdout 0: none).",
            *(spec, len(parts["train"]), len(contents.store), len(parts["test"])),
        )
    return replace(contents, splits=parts)


def splits(spec: str) -> tuple[str, ...]:
    """The splits that a source comes with, in the order train, val, test; () if it has none."""
    return tuple(read_contents(spec).splits)


def read_contents(spec: str) -> Contents:
    """List what a source holds; reads no images. What was left out is logged."""
    if not spec.strip():
        raise ValueError(f"Source.spec must name a source; got {spec!r}. Write . for the current folder.")
    if not spec.isascii() and re.search("[\ud800-\udfff]", spec):
        raise ValueError(f"Source.spec must be UTF-8, to be recorded; got {spec!r}. Rename the folder.")
    contents = _read(spec)
    if contents.left_out:
        LOG.info("%s: %s.", spec, count_left_out(contents.left_out))
    if contents.problem:
        LOG.warning("No labels of %s can be used: %s", spec, contents.problem)
    if contents.splits.keys() == {"train"}:
        contents = replace(contents, splits={})
    if contents.labels is None or not len(bare := np.flatnonzero(contents.labels < 0)):
        return contents
    if len(bare) == len(contents.labels):
        return replace(contents, labels=None, classes=None)
    LOG.info(
        "%d of %d images of %s have no label: they are not scored, such as %s.",
        *(len(bare), len(contents.labels), spec, ", ".join(contents.store.names[row] for row in bare[:3])),
    )
    return contents


def _read(spec: str) -> Contents:
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
    if path.is_file() and path.suffix.lower() == SUFFIX:
        return read_pack(path)
    if shards := named_shards(path):
        return read_shards(path.parent, shards, spec)
    if found := _inside_zip(path):
        return _zip(*found, spec)
    raise ValueError(
        f"Source.spec must be a folder, a .zip, a .pack, an .npz, a list of files (.txt), shards (.tar, .parquet), "
        f"{', '.join(EMBEDDED)}, torchvision:NAME or hf:NAME; got {spec!r}, which is none of these. Check the path."
    )


def place(spec: str) -> str:
    """A source's name as it means the same from every folder."""
    named = spec in EMBEDDED or spec.startswith(("torchvision:", "hf:"))
    return spec if named else os.path.realpath(os.path.expanduser(spec))


def browse(spec: str) -> Path | zipfile.Path:
    """A folder, a zip or a folder of a zip, to list and to read from; of any other source the path as it is."""
    path = Path(spec).expanduser()
    if path.is_dir() or (found := _inside_zip(path)) is None:
        return path
    return zipfile.Path(_archive(found[0]), found[1])


def _folder(root: Path, spec: str) -> Contents:
    raw, left_out, same = _walk(root)
    if shards := shards_among(raw):
        return read_shards(root, shards, spec)

    def store(rows: list[int], names: list[str]) -> Store:
        return FileStore(root, names, [raw[row] for row in rows])

    return Contents.arranged(root.resolve().name, spec, raw, store, left_out=left_out, same=same)


def _walk(root: Path) -> tuple[list[str], Counter[str], dict[int, tuple[bool, Hashable]]]:
    """Names of all files below a folder (the system's folders end in /), what was left out, which lead to one file."""
    names: list[str] = []
    keys: list[tuple[int, int]] = []  # of the files that names lead to
    links: set[int] = set()
    left_out: Counter[str] = Counter()
    pending, linked = [(os.path.realpath(root), "")], list[tuple[str, str]]()
    visited: set[str] = set()
    while pending or linked:
        folder, prefix = pending.pop() if pending else heappop(linked)[::-1]
        if folder in visited:
            left_out["links to folders that are read already/"] += 1
            continue
        visited.add(folder)
        try:
            entries, device = list(os.scandir(folder)), os.stat(folder).st_dev
        except OSError:
            left_out["that cannot be opened/"] += 1
            continue
        for entry in entries:
            name, is_link = prefix + entry.name, entry.is_symlink()
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder and not is_system(entry.name):
                if is_link:
                    heappush(linked, (f"{name}/", os.path.realpath(entry.path)))
                elif entry.path not in visited:
                    pending.append((entry.path, f"{name}/"))
            elif is_folder or is_file:
                links |= {len(names)} if is_link else set()
                keys.append((entry.stat().st_dev, entry.stat().st_ino) if is_link else (device, entry.inode()))
                names.append(f"{name}/" if is_folder else name)
            else:
                left_out["no regular file"] += 1
    targets = {keys[row] for row in links}
    return names, left_out, {row: (row in links, key) for row, key in enumerate(keys) if key in targets}


def _inside_zip(path: Path) -> tuple[Path, str] | None:
    """The zip that a path names or leads into, and the folder in it as a prefix of its members' names."""
    for parent in (path, *path.parents):
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, "" if parent == path else readable(path.relative_to(parent).as_posix()) + "/"
    return None


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip whose members have names in one form."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged list of members can raise anything
        raise ValueError(
            f"Source.spec must be a readable zip; got {path}: {reason(error)}. Fetch or pack it again."
        ) from error
    for member in archive.infolist():
        if not member.filename.isascii() and not member.flag_bits & 0x800:  # no encoding is stated
            with suppress(UnicodeError):
                member.filename = member.filename.encode("cp437").decode()
        member.filename = readable(member.filename)
    archive.NameToInfo = {member.filename: member for member in archive.infolist()}
    return archive


def _zip(path: Path, inner: str, spec: str) -> Contents:
    with _archive(path) as archive:
        members = [member for member in archive.infolist() if member.filename.startswith(inner)]
    files = [member for member in members if not stat.S_ISLNK(member.external_attr >> 16)]

    def store(rows: list[int], names: list[str]) -> Store:
        return ZipStore(path, [files[row] for row in rows], names)

    name, raw = inner.rstrip("/").rsplit("/", 1)[-1] or path.stem, [member.filename[len(inner) :] for member in files]
    return Contents.arranged(name, spec, raw, store, left_out=+Counter({"links": len(members) - len(files)}))


def _list(path: Path, spec: str) -> Contents:
    columns = _list_columns(path, spec)
    raw = columns.pop("names")

    def store(rows: list[int], names: list[str]) -> Store:
        return FileStore(path.parent, names, [_on_disk(path.parent, raw[row]) for row in rows])

    return Contents.arranged(path.stem, spec, raw, store, columns, listed=True)


def _list_columns(path: Path, spec: str) -> dict[str, list[str]]:
    """Names of images, labels and splits where there are any, of lines or of a table below a line of titles."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"Source.spec must be a list in UTF-8; got {spec} in another encoding. Save it as UTF-8.")
    lines = [line.strip(" \r") for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    delimiter = next((mark for mark in "\t,;" if lines and mark in lines[0]), "\t")
    titles, *cells = [[cell.strip() for cell in line] for line in csv.reader(lines, delimiter=delimiter)] or [[]]
    table = dict(zip(map(str.lower, titles), zip_longest(*cells, fillvalue=""), strict=False))
    files = [title for title, column in table.items() if is_image(column[0])]
    named = [title for title in table if title in IMAGE_TITLES and (title in files or not files)]
    images = next(iter([*named, *files]), None)
    if images is None or any(map(is_image, titles)):
        names, labels = zip(*map(_list_entry, lines), strict=True) if lines else ((), ())
        return {"names": list(names)} | ({"labels": list(labels)} if any(labels) else {})
    known = {*IMAGE_TITLES, *SPLIT_TITLES, *LABEL_TITLES}
    if twice := next((title for title in known if [*map(str.lower, titles)].count(title) > 1), None):
        raise ValueError(f"Source.spec must have a title once; got {twice} twice in {spec}. Rename or drop a column.")
    others = {
        "splits": [title for title in table if title in SPLIT_TITLES],
        "labels": [title for title in table if title in LABEL_TITLES]
        or [title for title in table if len(table) == 2 and title != images and title not in known],
    }
    for kind, found in others.items():  # an id and a name of one class are alike, two groupings are not
        together = set(zip(*(table[title] for title in found), strict=True))
        if any(len(set(table[title])) != len(together) for title in found):
            raise ValueError(
                f"Source.spec must have one column of {kind}; got {' and '.join(found)}, which differ, in {spec}. "
                f"Rename or drop one."
            )
    chosen = {"names": images} | {kind: found[0] for kind, found in others.items() if found}
    LOG.info("Columns of %s: %s.", spec, ", ".join(f"{kind} {title}" for kind, title in chosen.items()))
    return {kind: list(table[title]) for kind, title in chosen.items()}


def _list_entry(line: str) -> tuple[str, str]:
    """The name and the label of a line; the label is empty if there is none."""
    for separator in "\t,; ":
        name, found, label = line.rpartition(separator)
        if found and is_image(name := name.strip(' "')):
            return name, label.strip(' "')
    return line.strip('"'), ""


def _on_disk(root: Path, name: str) -> str:
    """How a name of a list is written on disk: with other separators, or in another form of Unicode."""
    plain = name.replace("\\", "/")
    forms = (name, plain, normalize("NFC", plain), normalize("NFD", plain))
    return name if name == plain and name.isascii() else next((f for f in forms if os.path.exists(root / f)), name)


def _npz(path: Path, spec: str) -> Contents:
    of_splits = [name.format(split) for names in OF_SPLITS for name in names for split in SPLITS]
    arrays, others = read_arrays(path, spec, [*NPZ_ARRAYS, *of_splits])
    if "images" not in arrays and not any(name.format(split) in arrays for name, _ in OF_SPLITS for split in SPLITS):
        raise ValueError(
            f"Source.images must be an array of the .npz; got {', '.join([*arrays, *others])} in {spec}. Save it as "
            f"np.savez(file, images=..., labels=..., split=...), or with the names of MedMNIST or Keras."
        )
    arrays, problem = _joined(arrays, spec)
    store = ArrayStore(arrays.pop("images"), spec=spec)
    for name, values in arrays.items():
        if values.shape != (len(store),):
            raise ValueError(
                f"Source.{name} must have one value an image; got shape {values.shape} for {len(store)} images "
                f"in {spec}. Give an array of shape ({len(store)},)."
            )
    columns = {f"{name.rstrip('s')}s": as_labels(values) for name, values in arrays.items()}
    contents = Contents.arranged(path.stem, spec, store.names, lambda *_: store, columns, listed=True)
    return replace(contents, problem=problem or contents.problem)


def _joined(arrays: dict[str, np.ndarray], spec: str) -> tuple[dict[str, np.ndarray], str]:
    """Arrays of each split one after the other under our names, and why their labels cannot be used, if so."""
    ways = [names for names in OF_SPLITS if any(names[0].format(split) in arrays for split in SPLITS)]
    if len(ways) + ("images" in arrays) > 1:
        raise ValueError(
            f"Source.images must have their names in one way; got {', '.join(arrays)} in {spec}. Keep one kind: "
            f"images, train_images or x_train."
        )
    if not ways:
        return arrays, ""
    (images, labels), problem = ways[0], ""
    parts = {split: arrays[images.format(split)] for split in SPLITS if images.format(split) in arrays}
    if len({(part.shape[1:], part.dtype) for part in parts.values()}) > 1:
        each = ", ".join(f"{images.format(split)} {part.shape} {part.dtype}" for split, part in parts.items())
        raise ValueError(f"Source.images must have one shape and number type; got {each} in {spec}. Save it again.")
    joined = {
        "images": np.concatenate([*parts.values()]),
        "split": np.repeat([*parts], [len(part) for part in parts.values()]),
    }
    given = {split: arrays[labels.format(split)] for split in parts if labels.format(split) in arrays}
    for split, values in given.items():
        if values.ndim == 2 and values.shape[1] > 1:
            problem = f"{labels.format(split)} has {values.shape[1]} values an image, and a class is one."
        elif values.shape not in ((len(parts[split]),), (len(parts[split]), 1)):
            raise ValueError(
                f"Source.{labels.format(split)} must have one value an image; got shape {values.shape} for "
                f"{len(parts[split])} images in {spec}. Save it again."
            )
    if given and not problem:
        none = {split: np.full(len(part), -1) for split, part in parts.items()}
        joined["labels"] = np.concatenate([given.get(split, none[split]).reshape(-1) for split in parts])
    return joined, problem


def read_arrays(path: Path, spec: str, names: Sequence[str] = NPZ_ARRAYS) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the named arrays that an .npz has, and the names of its other members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            arrays = {}
            for name in names:
                if name in members:
                    with archive.open(member := archive.getinfo(members[name])) as file:
                        arrays[name] = read_npy(file, min(member.file_size, MAX_DEFLATED * member.compress_size))
    except BrokenImageError as error:
        raise ValueError(
            f"Source.spec must be a readable .npz of plain numbers and words; got {spec}, whose array {name} {error}. "
            f"Save it again."
        ) from error
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"Source.spec must be a readable .npz; got {spec}: {reason(error)}. Save it again.") from error
    return arrays, [name for name in members if name not in arrays]
