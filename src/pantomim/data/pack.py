"""`FILE.pack`: the images of a source in one file, read through a memory map that all processes of a machine share.

The file: `MARK`; the images, each a file as it was or its pixels (height, width, band), at multiples of 8 bytes; an
.npz that says where and what they are, with names, splits and classes; where that begins, its SHA-256, `MARK`. An image
that was broken takes no bytes and stays broken: so order and division of a pack are those of its source.
"""

import errno
import io
import json
import shutil
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from pantomim.core.files import check_out, replacing
from pantomim.data.dataset import Broken, Contents, Dataset, num_threads
from pantomim.data.decoding import BrokenImageError, Header
from pantomim.data.names import LOG, SPLITS
from pantomim.data.stores import EncodedStore
from pantomim.data.transforms import resize_one

SUFFIX = ".pack"
MARK = b"pantomim pack 1\n"
_TAIL = struct.Struct("<Q32s16s")
_AT_ONCE = 256  # images that are packed before they are written
_TELL_S = 10.0


class PackStore(EncodedStore):
    """Images of a pack, their checksums verified; never copied into memory as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = np.asarray(np.memmap(path, np.uint8, "c")) if path.stat().st_size else np.empty(0, np.uint8)
        start, digest, mark = _TAIL.unpack(self._map[-_TAIL.size :].tobytes().rjust(_TAIL.size))
        if mark != MARK or sha256(index := self._map[start : -_TAIL.size].tobytes()).digest() != digest:
            raise ValueError(f"Source.spec must be a whole pack; got {path}, cut or damaged. Copy or pack it again.")
        with np.load(io.BytesIO(index)) as arrays:
            self.index: dict[str, np.ndarray] = dict(arrays)
        self.about: dict[str, Any] = json.loads(self.index["about"].tobytes())
        self.names, self._dtype, self._rows = self.about["names"], np.dtype(self.about["dtype"]), self.index["rows"]

    def __reduce__(self) -> Any:
        return PackStore, (self.path,)

    def decode(self, position: int) -> np.ndarray:
        shape = self._rows[position, 3:]
        if not shape.any():
            return super().decode(position)
        return self._part(position).view(self._dtype).reshape(shape).transpose(2, 0, 1)

    def header(self, position: int) -> Header:
        height, width, channels = self._rows[position, 3:].tolist()
        return Header(channels, height, width, self._dtype.name) if channels else super().header(position)

    def read(self, position: int) -> bytes:
        return self._part(position).tobytes()

    def num_bytes(self, position: int) -> int:
        return int(self._rows[position, 1])

    def sizes(self, positions: Sequence[int]) -> list[int]:
        """Size and checksum of each image, as one number."""
        return [size << 32 | checksum for _, size, checksum, *_ in self._rows[positions].tolist()]

    def held(self, positions: np.ndarray, limit: int) -> None:
        return None

    def _part(self, position: int) -> np.ndarray:
        start, size, checksum, *_ = self._rows[position].tolist()
        if not size:
            raise BrokenImageError("was broken when it was packed")
        if crc32((part := self._map[start : start + size]).data) != checksum:
            raise BrokenImageError(f"fails its checksum in {self.path.name}; copy or pack that again")
        return part


def read_pack(path: Path) -> Contents:
    """What a pack holds, with splits, classes and labels of its source."""
    store = PackStore(path)
    splits = {name: store.index[name] for name in SPLITS if name in store.index}
    classes, problem = store.about["classes"], store.about["problem"]
    return Contents(path.stem, store, splits, classes and tuple(classes), store.index.get("labels"), problem=problem)


def write_pack(
    contents: Contents, spec: str, path: Path, *, size: int | None = None, quality: int | None = None
) -> list[Broken]:
    """Pack all images of a source; gives the broken ones. In the end there is a whole pack, or none.

    Files stay as they are, images that are no files become pixels. With a `size` all become pixels, the shorter side
    brought down to it; with a `quality`, too, these are made JPEGs.
    """
    check_out("pack.out", path, [SUFFIX])
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                return _write(contents, spec, path, size, quality)
            finally:
                lock.unlink(missing_ok=True)
    except Timeout:
        raise ValueError(
            f"pack.out must not be in use; got {path}, which another process is writing. Wait for it, or choose "
            f"another name."
        ) from None


def _write(contents: Contents, spec: str, path: Path, size: int | None, quality: int | None) -> list[Broken]:
    if path.exists():
        raise ValueError(f"pack.out must be a new file; got {path}. Remove it, or choose another name.")
    if size is not None and size < 1:
        raise ValueError(f"pack.size must be at least 1; got {size}. Give pixels, such as 256.")
    store, count = contents.store, len(contents.store)
    dataset = Dataset(spec, "all", contents, np.arange(count))
    if quality is not None and (size is None or dataset.facts.dtype != "uint8" or dataset.channels not in (1, 3)):
        raise ValueError(
            f"pack.quality must go with a size and 8-bit images of 1 or 3 channels; got size {size} and images of "
            f"{dataset.channels} x {dataset.facts.dtype}. Leave it out."
        )
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):  # by a process that was killed
        left.unlink(missing_ok=True)
    files = store if isinstance(store, EncodedStore) and size is None else None
    wanted = sum(map(files.num_bytes, range(count))) if files else 0
    if wanted > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, f"{wanted / 2**30:.1f} GiB are more than is free", str(path))

    def packed(position: int) -> tuple[bytes, tuple[int, ...]]:
        try:
            image = dataset.read(position)
            if files is not None:
                return files.read(position), (0, 0, 0)
        except BrokenImageError:
            return b"", (0, 0, 0)
        image = np.ascontiguousarray((image if size is None else _shrunk(image, size)).transpose(1, 2, 0))
        if quality is None:
            return image.tobytes(), image.shape
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        picture.save(data := io.BytesIO(), "JPEG", quality=quality)
        return data.getvalue(), (0, 0, 0)

    rows, told = [], time.monotonic()
    with replacing(path) as file, ThreadPoolExecutor(num_threads()) as threads:
        file.write(MARK)
        for first in range(0, count, _AT_ONCE):
            for data, shape in threads.map(packed, range(first, min(first + _AT_ONCE, count))):
                rows.append((file.tell(), len(data), crc32(data), *shape))
                file.write(data + b"\0" * (-len(data) % 8))
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                LOG.info("%d of %d images packed, %.0f MiB.", len(rows), count, file.tell() / 2**20)
        about = {"names": list(store.names), "classes": contents.classes, "problem": contents.problem}
        text = json.dumps(about | {"dtype": dataset.facts.dtype}).encode()
        index = {"rows": np.asarray(rows), "about": np.frombuffer(text, np.uint8), **contents.splits}
        index |= {} if contents.labels is None else {"labels": contents.labels}
        np.savez(made := io.BytesIO(), allow_pickle=False, **index)
        file.write(made.getvalue() + _TAIL.pack(file.tell(), sha256(made.getvalue()).digest(), MARK))
    return dataset.broken


def _shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """An image (C, H, W) whose shorter side is at most `size`; proportions and number type are kept."""
    height, width = image.shape[1:]
    factor = min(1.0, size / min(height, width))
    made = resize_one(image, np.array([0, 0, height, width]), (round(height * factor), round(width * factor)), False)
    if image.dtype.kind == "f":
        return made.numpy().astype(image.dtype)
    limits = np.iinfo(image.dtype)
    return np.rint(made.numpy().astype(np.float64)).clip(limits.min, limits.max).astype(image.dtype)
