"""Opening images by name: a folder, a zip, an .npz, a list of files, an embedded set, or another library's set.

What a name may be, splits and classes: docs/data.md. A source without splits is divided once and for all, whatever the
seed: pre-training sees 80 % (stratified by class), so that an evaluation on the same source stays honest.
"""

import csv
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path
from unicodedata import normalize

import numpy as np

from pantomim.data.dataset import Contents, Dataset
from pantomim.data.decoding import is_image
from pantomim.data.layout import divide, read_layout
from pantomim.data.libraries import EMBEDDED, hugging_face, torchvision_set
from pantomim.data.names import (
    LOG,
    SPLITS,
    UNLABELLED,
    as_labels,
    common_folder,
    count_left_out,
    is_system,
    name_splits,
    number_classes,
    readable,
    sift,
)
from pantomim.data.stores import ArrayStore, FileStore, Store, ZipStore

LIST_SUFFIXES = (".txt", ".lst", ".tsv", ".csv")
NPZ_ARRAYS = ("images", "labels", "split")
DIVISION_SEED = 0  # of sources without splits; another one would test on images of pre-training
HELD_BACK = 0.2  # of these
_LABEL_TITLES = ("label", "labels", "class", "class_name", "category", "target")
_SPLIT_TITLES = ("split", "set", "subset", "partition")


def open_source(spec: str, split: str = "train") -> Dataset:
    """Open one split of a source (the table above): train, val, test, or all.

    Raises `ValueError` if there is no such source or split, if it holds no images, if its images differ in channels or
    number type, or if more than 1 % of them are found broken.
    """
    return open_split(read_contents(spec), spec, split)


def open_split(contents: Contents, spec: str, split: str, *, held_back: float = HELD_BACK) -> Dataset:
    """Open one split of a source that has been listed; arguments and errors as for `open_source`.

    `held_back` is the share for tests of a source that has no such split.
    """
    if split == "all":
        return Dataset(spec, split, contents, np.arange(len(contents.store)))
    parts = contents.splits
    if not parts:
        parts = divide(len(contents.store), contents.strata(), seed=DIVISION_SEED, share=held_back)
        LOG.info(
            "%s has no test images of its own: %d of its %d images are held back for tests (data.holdout).",
            *(spec, len(parts["test"]), len(contents.store)),
        )
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
    return zipfile.Path(_archive(found[0]), found[1])


def _listed(
    name: str,
    spec: str,
    raw: Sequence[str],
    store: Callable[[list[int], list[str]], Store],
    left_out: Counter[str],
    same: Mapping[int, tuple[bool, Hashable]] | None = None,
) -> Contents:
    """What names are and mean; `store` opens the images of these rows, by names in one form."""
    found, others = sift(raw)
    names = sorted(found)
    left_out += others
    if not names:
        raise ValueError(
            f"Source.spec must hold images; got {spec} with none, and {count_left_out(left_out)}. "
            f"Give a folder of JPEG, PNG, TIFF, WebP, BMP, GIF, PNM or .npy files."
        )
    twins = {row: same[found[name]] for row, name in enumerate(names) if found[name] in same} if same else {}
    layout = read_layout(names, spec, twins)
    used = [names[row] for row in layout.rows]
    return Contents(
        *(name, store([found[name] for name in used], used), layout.splits, layout.classes, layout.labels),
        left_out=left_out + layout.left_out,
        problem=_unknown_classes(layout.unknown, spec),
        by_name=True,
    )


def _unknown_classes(unknown: Sequence[str], spec: str) -> str:
    return (
        f"Source.classes must be those of train; got {', '.join(unknown[:10])} in {spec}, unknown to train. Rename or "
        f"remove them."
        if unknown
        else ""
    )


def _folder(root: Path, spec: str) -> Contents:
    raw, left_out, same = _walk(root)

    def store(rows: list[int], names: list[str]) -> Store:
        paths = [raw[row] for row in rows]
        return FileStore(root, names, None if paths == names else paths)

    return _listed(readable(root.resolve().name), spec, raw, store, left_out, same)


def _walk(root: Path) -> tuple[list[str], Counter[str], dict[int, tuple[bool, Hashable]]]:
    """Names of all files below a folder, what was left out, and which of the names lead to the same file as others.

    Every folder is entered once, by its own name rather than through a link. Folders of the system are not entered:
    their names end in /.
    """
    names: list[str] = []
    inodes: list[int] = []
    links: dict[int, tuple[int, int]] = {}
    left_out: Counter[str] = Counter()
    pending, linked = [(os.path.realpath(root), "")], list[tuple[str, str]]()
    visited = {pending[0][0]}
    while pending or linked:
        if pending:
            folder, prefix = pending.pop()
        else:
            prefix, folder = heappop(linked)
            if folder in visited:
                left_out["links to folders that are read already/"] += 1
                continue
            visited.add(folder)
        try:
            entries = list(os.scandir(folder))
        except OSError:
            left_out["that cannot be opened/"] += 1
            continue
        for entry in entries:
            name, is_link = prefix + entry.name, entry.is_symlink()
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder and is_system(entry.name):
                names.append(f"{name}/")
                inodes.append(0)
            elif is_folder:
                real = os.path.realpath(entry.path) if is_link else entry.path
                if is_link:
                    heappush(linked, (f"{name}/", real))
                elif real not in visited:
                    visited.add(real)
                    pending.append((real, f"{name}/"))
            elif is_file:
                if is_link:
                    links[len(names)] = (entry.stat().st_dev, entry.stat().st_ino)
                inodes.append(links[len(names)][1] if is_link else entry.inode())
                names.append(name)
            else:
                left_out["no regular file"] += 1
    same: dict[int, tuple[bool, Hashable]] = {row: (True, target) for row, target in links.items()}
    targets = {inode for _, inode in links.values()}
    for row, inode in enumerate(inodes):
        if inode in targets and row not in links:
            found = os.stat(root / names[row])
            same[row] = (False, (found.st_dev, found.st_ino))
    return names, left_out, same


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
    except (zipfile.BadZipFile, NotImplementedError, IndexError, struct.error, ValueError) as error:
        raise ValueError(f"Source.spec must be a readable zip; got {path}: {error}. Fetch or pack it again.") from error
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
    return _listed(
        readable(inner.rstrip("/").rsplit("/", 1)[-1] if inner else path.stem),
        spec,
        [member.filename[len(inner) :] for member in files],
        lambda rows, names: ZipStore(path, [files[row] for row in rows], names),
        Counter({"links": len(members) - len(files)}) if len(files) < len(members) else Counter(),
    )


def _list(path: Path, spec: str) -> Contents:
    columns = _list_columns(path, spec)
    raw = columns["image"]
    found, left_out = sift(raw, listed=True)
    if not found:
        raise ValueError(f"Source.spec must list at least one image; got none in {spec}. Write one file a line.")
    names, rows = list(found), list(found.values())
    folder = common_folder(names)
    layout = read_layout([name[len(folder) :] for name in names], spec, keep=True)
    parts, classes, ids, unknown = layout.splits, layout.classes, layout.labels, layout.unknown
    if (splits := columns.get("split")) is not None:
        parts, bare = _named_parts([splits[row] for row in rows], spec)
    if (labels := columns.get("label")) is not None:
        _check_one_label_each(raw, labels, spec)
        chosen = [labels[row] for row in rows]
        for row in bare if splits is not None else ():
            chosen[row] = ""
        classes, ids, unknown = number_classes(
            chosen, parts["train"].tolist() if "train" in parts else range(len(rows))
        )
    store = FileStore(path.parent, names, [_on_disk(path.parent, raw[row]) for row in rows])
    problem = _unknown_classes(unknown, spec)
    return Contents(path.stem, store, parts, classes, ids, left_out, problem, by_name=True)


def _list_columns(path: Path, spec: str) -> dict[str, list[str]]:
    """Names of images, and labels and splits where there are any, of lines or of a table with a line of titles."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"Source.spec must be a list in UTF-8; got {spec} in another encoding. Save it as UTF-8.")
    lines = [line.strip() for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    delimiter = next((mark for mark in "\t,;" if lines and mark in lines[0]), "\t")
    head, first = ([*csv.reader(lines[row : row + 1], delimiter=delimiter)] for row in (0, 1))
    titles = [title.strip().lower() for title in head[0]] if first and not any(map(is_image, head[0])) else []
    places = [place for place, cell in enumerate(first[0]) if is_image(cell.strip())] if titles else []
    if not places or not (len(titles) > 1 or titles[0] in ("file", "filename", "file_name", "image", "name", "path")):
        entries = [_list_entry(line) for line in lines]
        columns = {"image": [name for name, _ in entries], "label": [label for _, label in entries]}
        return columns if any(columns["label"]) else {"image": columns["image"]}
    chosen = {"image": places[0]}
    for kind, known in (("split", _SPLIT_TITLES), ("label", _LABEL_TITLES)):
        if found := [place for place, title in enumerate(titles) if title in known]:
            chosen[kind] = found[0]
    if len(titles) == 2 and len(chosen) == 1:
        chosen["label"] = 1 - places[0]
    LOG.info("Of %s: %s.", spec, ", ".join(f"{kind} is the column {titles[place]}" for kind, place in chosen.items()))
    table = [[*cells, *[""] * len(titles)] for cells in csv.reader(lines[1:], delimiter=delimiter)]
    return {kind: [cells[place].strip() for cells in table] for kind, place in chosen.items()}


def _list_entry(line: str) -> tuple[str, str]:
    """The name and the label of a line; the label is empty if there is none."""
    for separator in "\t,; ":
        name, found, label = line.rpartition(separator)
        if found and is_image(name := name.strip(' "')):
            return name, label.strip(' "')
    return line.strip('"'), ""


def _check_one_label_each(names: Sequence[str], labels: Sequence[str], spec: str) -> None:
    seen: dict[str, str] = {}
    for name, label in zip(map(readable, names), labels, strict=True):
        if seen.setdefault(name, label) != label:
            raise ValueError(
                f"Source.labels must be one an image; got {seen[name]} and {label} for {name} in {spec}. Keep one line."
            )


def _on_disk(root: Path, name: str) -> str:
    """How a name of a list is written on disk: with other separators, or in another form of Unicode."""
    if (name.isascii() and "\\" not in name) or os.path.exists(root / name):
        return name
    path = ""
    for part in name.replace("\\", "/").split("/"):
        forms = (part, normalize("NFC", part), normalize("NFD", part))
        path += next((form for form in forms if os.path.lexists(root / (path + form))), part) + "/"
    return path[:-1]


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
    parts, bare = _named_parts(as_labels(arrays["split"]), spec) if "split" in arrays else ({}, [])
    if "labels" not in arrays:
        return Contents(path.stem, store, parts)
    labels = as_labels(arrays["labels"])
    for row in bare:
        labels[row] = ""
    classes, ids, unknown = number_classes(labels, parts["train"].tolist() if "train" in parts else range(len(store)))
    by_name = arrays["labels"].dtype.kind in "SU"
    return Contents(path.stem, store, parts, classes, ids, problem=_unknown_classes(unknown, spec), by_name=by_name)


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


def _named_parts(values: Sequence[str], spec: str) -> tuple[dict[str, np.ndarray], list[int]]:
    """Positions by the split that is written to each image, and those that have no label by it."""
    named = name_splits(set(values))
    if unknown := sorted(set(values) - named.keys()):
        raise ValueError(
            f"Source.split must hold train, val and test; got {', '.join(unknown[:5])} in {spec}. Rename them."
        )
    bare = [row for row, value in enumerate(values) if named[value] == UNLABELLED]
    splits = np.asarray(["train" if named[value] == UNLABELLED else named[value] for value in values])
    return {split: np.flatnonzero(splits == split) for split in SPLITS if (splits == split).any()}, bare
