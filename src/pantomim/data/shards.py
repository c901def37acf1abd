"""Shards, read in place: tars as WebDataset has them, and parquet files as the Hugging Face hub has them.

A tar's members are read by offset, in any order; an index of these is made once. Of a parquet file whole row groups are
read, so training takes the images of some of them at once (`Parts`).
"""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np

from pantomim.core.files import cache_folder, replace_file
from pantomim.core.foreign import reason
from pantomim.core.reading import read_json
from pantomim.data.dataset import Contents, num_threads
from pantomim.data.decoding import BrokenImageError, is_image
from pantomim.data.names import LABEL_TITLES, LOG, is_system, name_splits
from pantomim.data.stores import EncodedStore, OpenFiles, Parts, Store

SUFFIXES = (".tar", ".parquet")
LABELS, MAX_LABEL = (".cls", ".json", ".txt"), 2**20  # bytes of a member that may hold one
AT_ONCE = 2**28  # bytes of row groups that are mixed in training, and that each process which reads keeps


def named_shards(path: Path) -> list[str]:
    """The names of the shards in its folder that a path means: its own, or those of shard-{000..099}.tar."""
    if path.suffix.lower() not in SUFFIXES:
        return []
    if (found := re.search(r"\{(\d+)\.\.(\d+)\}", path.name)) is None:
        return [path.name] * path.is_file()
    first, last, width = int(found[1]), int(found[2]), len(found[1])
    return [path.name.replace(found[0], f"{number:0{width}}") for number in range(first, last + 1)]


def shards_among(names: Sequence[str]) -> list[str]:
    """Those of the files of a folder that are shards; none where there are images beside them."""
    found = [name for name in names if name.lower().endswith(SUFFIXES) and not is_system(name.rpartition("/")[2])]
    return [] if found and any(map(is_image, names)) else sorted(found)


def read_shards(root: Path, shards: Sequence[str], spec: str) -> Contents:
    """List what shards of one kind hold, splits by their names; a `ValueError` names one that is damaged."""
    stems, kinds = [shard.rpartition(".")[0] for shard in shards], {Path(shard).suffix.lower() for shard in shards}
    if len(kinds) > 1:
        raise ValueError(f"Source.spec must hold tar or parquet shards; got both in {spec}. Name the folder of one.")
    named = name_splits(stems)
    folders = [(f"{named[stem]}/" if stem in named else "", f"{stem.replace('/', '-')}/") for stem in stems]
    name = root.resolve().name if len(shards) > 1 else stems[0].rpartition("/")[2]
    return (_tars if kinds == {".tar"} else _parquets)(name, [root / shard for shard in shards], folders, spec)


def _names(folders: Sequence[tuple[str, str]], inside: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """Names of images below the folder of their split; if those do not tell all apart, below that of their shard."""
    rows = [(*where, name) for where, names in zip(folders, inside, strict=True) for name in names]
    plain = [split + name for split, _, name in rows]
    return (plain, False) if len(set(plain)) == len(plain) else (list(map("".join, rows)), True)


@dataclass(frozen=True)
class _Tar:
    """The index of a tar: what is known of its members but those that hold labels."""

    stamp: tuple[int, int]  # bytes and time of change of the tar that it was made of
    names: list[str]
    fields: list[tuple[int, int, int]]  # offset, bytes, checksum of the header
    labels: list[str]  # of .cls and .json; empty for none
    texts: list[str]  # of .txt
    masks: int  # beside an image of the same key, left out: KEY.seg.png


class TarStore(EncodedStore):
    """Members of tars, each with its header, whose checksum says whether it is the member that the index means."""

    def __init__(self, paths: Sequence[Path], fields: np.ndarray, names: Sequence[str]) -> None:
        self._paths, self._fields, self.names, self._files = paths, fields, names, OpenFiles()

    def read(self, position: int) -> bytes:
        shard, offset, size, checksum = self._fields[position].tolist()
        path = self._paths[shard]
        data = self._files.read(path, tarfile.BLOCKSIZE + size, offset - tarfile.BLOCKSIZE)
        if len(data) < tarfile.BLOCKSIZE + size:
            raise BrokenImageError(f"lies beyond the end of {path.name}, which was cut")
        if data[148:156].strip(b"\0 ").lstrip(b"0") != b"%o" % checksum:
            raise BrokenImageError(f"is not where it was in {path.name}, which has changed; start again")
        return data[tarfile.BLOCKSIZE :]

    def num_bytes(self, position: int) -> int:
        return int(self._fields[position, 2])


def _tars(name: str, paths: list[Path], folders: list[tuple[str, str]], spec: str) -> Contents:
    with ThreadPoolExecutor(num_threads()) as threads:
        tars = list(threads.map(_tar, paths))
    raw, numbered = _names(folders, [tar.names for tar in tars])
    fields = np.asarray([(shard, *row) for shard, tar in enumerate(tars) for row in tar.fields]).reshape(-1, 4)
    labels, texts = ([value for tar in tars for value in getattr(tar, kind)] for kind in ("labels", "texts"))
    if not any(labels) and 2 * len(set(texts)) <= len(texts):  # else they are captions
        labels = texts

    def store(rows: list[int], names: list[str]) -> Store:
        return TarStore(paths, fields[rows], names)

    columns = {"labels": labels} if any(labels) or numbered else {}
    left_out = +Counter({"beside an image of the same key": sum(tar.masks for tar in tars)})
    return Contents.arranged(name, spec, raw, store, columns, left_out=left_out)


def _tar(path: Path) -> _Tar:
    """The index of a tar as it is now, kept beside it, or where that cannot be written, in the cache."""
    status, key = path.stat(), sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    stamp = (status.st_size, status.st_mtime_ns)
    places = (path.with_name(f".{path.name}.index"), cache_folder() / "shards" / f"{key}.index")
    for place in places:
        with suppress(OSError, ValueError):  # it is made again
            found: _Tar = read_json(place, _Tar, "")
            if found.stamp == stamp:
                return found
            LOG.info("%s has changed since its index %s was made: it is made again.", path.name, place)
    made = _index(path, stamp)
    data = json.dumps(asdict(made)).encode()
    for place in places:
        with suppress(OSError):
            replace_file(place, data)
            break
    return made


def _index(path: Path, stamp: tuple[int, int]) -> _Tar:
    members, told = dict[str, tuple[int, int, int]](), dict[tuple[str, str], str]()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                suffix = Path(member.name).suffix.lower()
                if suffix in LABELS and (file := archive.extractfile(member)) is not None:
                    told[suffix, _key(member.name)] = _label(file.read(MAX_LABEL), suffix)
                elif member.isreg() and not member.issparse():
                    members[member.name] = (member.offset_data, member.size, member.chksum)
            file = cast(Any, archive.fileobj)
            file.seek(archive.offset)  # where tarfile ended, be it at what is no header
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it is cut or damaged after {archive.offset:,} bytes")
    except Exception as error:  # a damaged archive can raise anything
        if isinstance(error, OSError):
            raise
        raise ValueError(f"Source.spec must be whole tars; got {path}: {reason(error)}. Fetch it again.") from error
    simple = {name: name == _key(name) + Path(name).suffix for name in members}
    alone = {_key(name) for name, one in simple.items() if one and is_image(name)}
    names = [name for name, one in simple.items() if one or _key(name) not in alone]
    cls, json_, txt = ([told.get((suffix, _key(name)), "") for name in names] for suffix in LABELS)
    labels = [first or second for first, second in zip(cls, json_, strict=True)]
    return _Tar(stamp, names, [members[name] for name in names], labels, txt, len(members) - len(names))


def _key(name: str) -> str:
    """A member's name up to the first point of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(data: bytes, suffix: str) -> str:
    """The label that a member holds, empty for none."""
    text = data.decode("utf-8", "replace").strip()
    if suffix != ".json":
        return text if len(text) < 200 and "\n" not in text else ""
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
    if isinstance(value, dict):
        value = next((value[title] for title in LABEL_TITLES if title in value), None)
    return str(value) if isinstance(value, str | int | float) else ""


class ParquetStore(EncodedStore):
    """Images in a column of parquet files; the row groups that were read last are kept."""

    def __init__(
        self, column: str, groups: Sequence[tuple[Path, int]], sizes: np.ndarray, rows: np.ndarray, names: Sequence[str]
    ) -> None:
        """Of row groups: file and number; images, bytes, stored bytes. Of each image: its group, and its row in it."""
        self.names, self._of_column, self._groups, self._sizes, self._rows = names, column, groups, sizes, rows
        self.parts = Parts(rows[:, 0], max(1, AT_ONCE // max(1, int(sizes[:, 1].max()))))
        self._column = lru_cache(self.parts.at_once)(self._read_column)

    def __reduce__(self) -> Any:
        return ParquetStore, (self._of_column, self._groups, self._sizes, self._rows, self.names)

    def read(self, position: int) -> bytes:
        group, row = self._rows[position].tolist()
        try:
            return (self._column(group)[row].as_py() or {}).get("bytes") or b""
        except Exception as error:  # of the file system, of a damaged file
            raise BrokenImageError(f"cannot be read from {self._groups[group][0].name}: {reason(error)}") from error

    def num_bytes(self, position: int) -> int:
        """The mean of the images of its row group."""
        images, size, _ = self._sizes[self._rows[position, 0]].tolist()
        return int(size // images)

    def sizes(self, positions: Sequence[int]) -> list[int]:
        """Bytes of the row group of each image, as it is stored."""
        found: list[int] = self._sizes[self._rows[positions, 0], 2].tolist()
        return found

    def _read_column(self, group: int) -> Any:
        path, number = self._groups[group]
        columns = [f"{self._of_column}.bytes"]
        return _parquet(path).read_row_group(number, columns=columns, use_threads=False)[self._of_column]


def _parquet(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(path)
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, OSError) and error.errno:
            raise
        advice = "Fetch it again, or run `pip install 'pantomim[parquet]'` where pyarrow is missing."
        raise ValueError(f"Source.spec must be whole parquet files; got {path}: {reason(error)}. {advice}") from error


def _parquets(name: str, paths: list[Path], folders: list[tuple[str, str]], spec: str) -> Contents:
    groups, inside, labels, kinds = list[tuple[Path, int]](), list[list[str]](), list[str](), list[str]()
    sizes, rows, image, label, features = list[tuple[int, ...]](), list[tuple[int, int]](), "", "", dict[str, Any]()
    for path in paths:
        file = _parquet(path)
        meta, leaves = file.metadata, [file.metadata.schema.column(k).path for k in range(file.metadata.num_columns)]
        if not inside:  # the first one tells
            told = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            features = told.get("info", {}).get("features", {})
            kinds = [title for title, kind in features.items() if "names" in kind]
            image = next((leaf.removesuffix(".bytes") for leaf in leaves if re.fullmatch(r"[^.]+\.bytes", leaf)), "")
            label = next((title for title in (*kinds, *LABEL_TITLES) if title in leaves), "")
            LOG.info("Columns of %s: images %s, labels %s.", spec, image or "none", label or "none")
        if f"{image}.bytes" not in leaves or label not in (*leaves, ""):
            raise ValueError(
                f"Source.spec must be parquet files with the same columns, images as bytes and path; got "
                f"{', '.join(leaves)} in {path}. Write them with the datasets library, or make tars."
            )
        for number in range(meta.num_row_groups):
            group, stored = meta.row_group(number), meta.row_group(number).column(leaves.index(f"{image}.bytes"))
            rows += [(len(groups), row) for row in range(group.num_rows)]
            groups.append((path, number))
            sizes.append((max(1, group.num_rows), stored.total_uncompressed_size, stored.total_compressed_size))
        table = file.read(columns=[leaf for leaf in (f"{image}.path", label) if leaf in leaves], use_threads=False)
        columns = {title: table[title].to_pylist() for title in table.column_names}
        found = enumerate(columns.get(image, [{}] * meta.num_rows))
        inside.append([(value or {}).get("path") or str(row) for row, value in found])
        labels += ["" if value is None else str(value) for value in columns.get(label, [""] * meta.num_rows)]
    raw, numbered = _names(folders, inside)

    def store(chosen: list[int], names: list[str]) -> Store:
        return ParquetStore(image, groups, np.asarray(sizes), np.asarray(rows)[chosen], names)

    known = tuple(features[label]["names"]) if label in kinds else ()
    numbers = tuple(map(str, range(len(known)))) or None
    given = {"labels": labels} if label or numbered else {}
    made = Contents.arranged(name, spec, raw, store, given, classes=numbers, listed=True)
    return replace(made, classes=known) if known and made.classes else made
