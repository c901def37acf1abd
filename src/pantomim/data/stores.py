"""Where the images of a source lie: files, members of a zip, bytes in memory, an array, or another library's set."""

import os
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import EpsImagePlugin, Image

from pantomim.core.foreign import reason
from pantomim.data import decoding
from pantomim.data.decoding import BrokenImageError, Header, StoredMask, band_axis, bands_first, decode, plain
from pantomim.data.names import LOG


@dataclass(frozen=True, eq=False)
class Parts:
    """What is read as a whole: the part of each image, and how many a process mixes in training and keeps in memory."""

    of_image: np.ndarray
    at_once: int


class Store(ABC):
    """Images by position."""

    names: Sequence[str]
    parts: Parts | None = None  # where an image is not read alone

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def decode(self, position: int) -> np.ndarray:
        """One image, (C, H, W), in the number type of the source; raises `BrokenImageError`."""

    def decode_mask(self, position: int) -> StoredMask:
        """One mask, class ids as they are stored; raises `BrokenImageError`."""
        return StoredMask(decoding.as_ids(self.decode(position)))

    @abstractmethod
    def header(self, position: int) -> Header:
        """What is known of that image without decoding it; raises `BrokenImageError`."""

    def sizes(self, positions: Sequence[int]) -> list[int]:
        """A number by which each image is known to be what it was, without reading files; 0 where there is none."""
        return [0] * len(positions)

    def held(self, positions: np.ndarray, limit: int) -> "BytesStore | None":
        """These files in memory as they are, or None if they are no files or exceed `limit` bytes."""
        return None


class EncodedStore(Store):
    """Images that are files of some kind."""

    @abstractmethod
    def read(self, position: int) -> bytes:
        """The bytes of one file."""

    @abstractmethod
    def num_bytes(self, position: int) -> int:
        """Their number, without reading them."""

    def decode(self, position: int) -> np.ndarray:
        return decode(self._bytes(position))

    def decode_mask(self, position: int) -> StoredMask:
        return decoding.decode_mask(self._bytes(position))

    def header(self, position: int) -> Header:
        return decoding.decode_header(self._bytes(position))

    def held(self, positions: np.ndarray, limit: int) -> "BytesStore | None":
        """These files in memory, if they take at most `limit` bytes; a file that cannot be read is held empty."""
        places = positions.tolist()
        if any(total > limit for total in accumulate(map(self.num_bytes, places))):
            return None
        files = []
        for position in places:
            try:
                files.append(self._bytes(position))
            except BrokenImageError:
                files.append(b"")
        return BytesStore(files, [self.names[position] for position in places])

    def sizes(self, positions: Sequence[int]) -> list[int]:
        return [self.num_bytes(position) for position in positions]

    def _bytes(self, position: int) -> bytes:
        try:
            data = self.read(position)
        except (OSError, zlib.error, struct.error) as error:
            raise BrokenImageError(f"cannot be read: {reason(error)}") from error
        if not data:
            raise BrokenImageError("is an empty file")
        return data


class FileStore(EncodedStore):
    """Files on disk, by slash-separated names relative to a folder; `paths` are these as the disk has them."""

    def __init__(self, root: Path, names: Sequence[str], paths: Sequence[str] | None = None) -> None:
        self.root, self.names, self._paths = root, names, names if paths is None else paths

    def read(self, position: int) -> bytes:
        path = self._path(position)
        if path.exists() and not path.is_file():
            raise BrokenImageError("is no regular file")
        return path.read_bytes()

    def num_bytes(self, position: int) -> int:
        """Their number, from the file system; 0 where there is no such file."""
        try:
            found = os.stat(self._path(position))
        except (OSError, ValueError):
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def sizes(self, positions: Sequence[int]) -> list[int]:
        """The bytes of each file, by several threads, and a checksum of some sixty files, which their names choose."""
        share = 1 << (len(positions) // 64).bit_length()

        def size(position: int) -> int:
            name = self.names[position]
            try:
                found = os.stat(path := self._path(position)).st_size
                if zlib.crc32(os.fsencode(name)) % share == 0:
                    with open(path, "rb") as file:
                        found |= zlib.crc32(file.read(2**20)) << 48
                return found
            except (OSError, ValueError):  # a name may hold what no name can
                return 0

        chunks = [positions[start : start + 1024] for start in range(0, len(positions), 1024)]
        with ThreadPoolExecutor(16) as threads:
            return list(chain.from_iterable(threads.map(lambda chunk: list(map(size, chunk)), chunks)))

    def header(self, position: int) -> Header:
        """The header of one file, of which only the beginning is read."""
        if not self.num_bytes(position):
            self._bytes(position)  # raises, with the reason
        return decoding.decode_header(self._path(position))

    def _path(self, position: int) -> Path:
        return self.root / self._paths[position]


class OpenFiles:
    """Files that are read by offset and stay open; without a position, reads are safe from many threads and forks."""

    def __init__(self) -> None:
        self._opened = lru_cache(64)(_Handle)

    def __reduce__(self) -> Any:
        return OpenFiles, ()

    def read(self, path: Path, count: int, offset: int) -> bytes:
        if not hasattr(os, "pread"):  # Windows: opened for each read
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(count)
        handle = self._opened(path)
        return os.pread(handle.number, count, offset)


class _Handle:
    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if "number" in self.__dict__:
            os.close(self.number)


class ZipStore(EncodedStore):
    """Members of a zip, read in place by offset: no worker parses the list again (half a second for 60,000)."""

    def __init__(self, path: Path, members: Sequence[zipfile.ZipInfo], names: Sequence[str]) -> None:
        self.path, self.names = path, names
        fields = [
            (m.header_offset, m.compress_size, m.file_size, m.compress_type, m.CRC, m.flag_bits & 1) for m in members
        ]
        whole = np.minimum(np.asarray(fields, dtype=object), 2**62)  # a damaged zip may claim anything
        self._fields = whole.astype(np.int64).reshape(-1, 6)
        self._num_bytes, self._files = path.stat().st_size, OpenFiles()

    def read(self, position: int) -> bytes:
        """The bytes of one member, its checksum verified."""
        offset, packed, size, method, checksum, encrypted = self._fields[position].tolist()
        if encrypted:
            raise BrokenImageError("is encrypted in the zip")
        header = self._files.read(self.path, 30, offset)
        if header[:4] != b"PK\x03\x04":
            raise BrokenImageError("is not where the zip says")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        decoding.check_memory(size, packed if packed <= self._num_bytes else 0)
        start = offset + 30 + name_length + extra_length
        data = self._files.read(self.path, min(packed, self._num_bytes), start)
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        elif method != zipfile.ZIP_STORED:
            raise BrokenImageError("is compressed by another method than deflate; repack the zip")
        if len(data) != size or zlib.crc32(data) != checksum:
            raise BrokenImageError("fails the checksum of the zip")
        return data

    def num_bytes(self, position: int) -> int:
        return int(self._fields[position, 2])

    def sizes(self, positions: Sequence[int]) -> list[int]:
        """Size and checksum of each member, as one number."""
        return [int(self._fields[position, 2]) << 32 | int(self._fields[position, 4]) for position in positions]


class BytesStore(EncodedStore):
    """Encoded files held in memory, in one block, so that forked workers share it."""

    def __init__(self, files: Sequence[bytes], names: Sequence[str]) -> None:
        self.names = names
        self._bounds = np.cumsum([0] + [len(file) for file in files], dtype=np.int64)
        self._block = np.frombuffer(b"".join(files), dtype=np.uint8)

    def read(self, position: int) -> bytes:
        return self._block[slice(*self._bounds[position : position + 2])].tobytes()

    def num_bytes(self, position: int) -> int:
        return int(self._bounds[position + 1] - self._bounds[position])


class ArrayStore(Store):
    """Images of one size in one array: (N, H, W), (N, C, H, W) or (N, H, W, C), the bands by the rule of `decoding`."""

    def __init__(self, images: np.ndarray, *, spec: str) -> None:
        one = images.ndim == 3 and images.shape[2] <= 4 < min(images.shape[:2])  # no gray images of four columns
        if images.ndim not in (3, 4) or not len(images) or one:
            raise ValueError(
                f"Source.images must have the shape (N, H, W), (N, C, H, W) or (N, H, W, C) with N > 0; "
                f"got {images.shape}{' (one image?)' * one} in {spec}. Stack the images along the first axis."
            )
        if images.ndim == 3 and len(images) <= 4:
            LOG.info("%s of %s is read as %d gray image(s).", images.shape, spec, len(images))
        try:
            images = images[:, None] if images.ndim == 3 else np.moveaxis(images, band_axis(images.shape[1:]) + 1, 1)
            self.array = plain(images)
        except BrokenImageError as error:
            raise ValueError(
                f"Source.images must be an array of images; got {images.shape} in {spec}, one of which {error}."
            ) from error
        self.names = [str(number) for number in range(len(images))]

    def decode(self, position: int) -> np.ndarray:
        return self.array[position]

    def sizes(self, positions: Sequence[int]) -> list[int]:
        """A checksum of each image, whose shape all share: they are in memory."""
        return [zlib.crc32(self.array[position].tobytes()) for position in positions]

    def header(self, position: int) -> Header:
        _, channels, height, width = self.array.shape
        return Header(channels, height, width, self.array.dtype.name)


class PictureStore(Store):
    """Pictures that another library hands out one by one, or (as a mapping with `bytes` or `path`) their files."""

    def __init__(self, fetch: Callable[[int], Image.Image | np.ndarray | Mapping[str, Any]], num_images: int) -> None:
        EpsImagePlugin.gs_binary = False  # that library may open what Pillow starts Ghostscript for
        self._fetch = fetch
        self.names = [str(number) for number in range(num_images)]

    def decode(self, position: int) -> np.ndarray:
        """One image, by the rules of `decoding`."""
        try:
            if isinstance(picture := self._fetch(position), Mapping):
                return decode(picture["bytes"] or Path(picture["path"]))
        except Exception as error:  # whatever the other library's decoder raises
            raise BrokenImageError(reason(error)) from error
        if isinstance(picture, Image.Image):
            return decoding.from_picture(picture)
        return plain(bands_first(np.asarray(picture)))

    def header(self, position: int) -> Header:
        """By decoding: the other library has no headers."""
        channels, height, width = (image := self.decode(position)).shape
        return Header(channels, height, width, image.dtype.name)
