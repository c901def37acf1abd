"""Where the images of a source lie: files, members of a zip, bytes in memory, an array, or another library's set."""

import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pantomim.data.decoding import (
    BrokenImageError,
    Header,
    as_ids,
    band_axis,
    bands_first,
    decode,
    decode_header,
    decode_ids,
    from_picture,
    plain,
)


class Store(ABC):
    """Images by position."""

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def decode(self, position: int) -> np.ndarray:
        """One image, (C, H, W), in the number type of the source; raises `BrokenImageError`."""

    def decode_ids(self, position: int) -> np.ndarray:
        """One mask, (H, W), class ids as they are stored; raises `BrokenImageError`."""
        return as_ids(self.decode(position))

    @abstractmethod
    def header(self, position: int) -> Header:
        """What is known of that image without decoding it; raises `BrokenImageError`."""

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
        """One image, decoded from its file."""
        return decode(self._bytes(position), self._suffix(position))

    def decode_ids(self, position: int) -> np.ndarray:
        """One mask, decoded from its file."""
        return decode_ids(self._bytes(position), self._suffix(position))

    def header(self, position: int) -> Header:
        """The header of one file."""
        return decode_header(self._bytes(position), self._suffix(position))

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

    def _suffix(self, position: int) -> str:
        return PurePosixPath(self.names[position]).suffix

    def _bytes(self, position: int) -> bytes:
        try:
            data = self.read(position)
        except (OSError, zlib.error, struct.error) as error:
            raise BrokenImageError(f"cannot be read: {error}") from error
        if not data:
            raise BrokenImageError("is an empty file")
        return data


class FileStore(EncodedStore):
    """Files on disk, by slash-separated names relative to a folder."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def read(self, position: int) -> bytes:
        """The bytes of one file."""
        return (self.root / self.names[position]).read_bytes()

    def num_bytes(self, position: int) -> int:
        """Their number, from the file system; 0 where there is no such file."""
        path = self.root / self.names[position]
        return path.stat().st_size if path.is_file() else 0

    def header(self, position: int) -> Header:
        """The header of one file, of which only the beginning is read."""
        if not self.num_bytes(position):
            self._bytes(position)  # raises, with the reason
        path = self.root / self.names[position]
        return decode_header(path, path.suffix)


class ZipStore(EncodedStore):
    """Members of a zip, read in place.

    Members are read by offset instead of through `zipfile`: reads without a file position are safe from many threads,
    and a worker need not parse the list of members again (60,000 take half a second).
    """

    def __init__(self, path: Path, members: Sequence[zipfile.ZipInfo], names: Sequence[str]) -> None:
        self.path, self.names = path, names
        fields = [
            (m.header_offset, m.compress_size, m.file_size, m.compress_type, m.CRC, m.flag_bits & 1) for m in members
        ]
        self._fields = np.asarray(fields, dtype=np.int64).reshape(-1, 6)
        self._descriptor: tuple[int, int] | None = (os.getpid(), os.open(path, os.O_RDONLY))  # one handle a process

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        descriptor = self.__dict__.get("_descriptor")
        if descriptor is not None and descriptor[0] == os.getpid():
            os.close(descriptor[1])

    def read(self, position: int) -> bytes:
        """The bytes of one member, its checksum verified."""
        offset, packed, size, method, checksum, encrypted = self._fields[position].tolist()
        if encrypted:
            raise BrokenImageError("is encrypted in the zip")
        header = self._read_at(30, offset)
        if header[:4] != b"PK\x03\x04":
            raise BrokenImageError("is not where the zip says")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        data = self._read_at(packed, offset + 30 + name_length + extra_length)
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompress(data, -zlib.MAX_WBITS, max(size, 1))
        elif method != zipfile.ZIP_STORED:
            raise BrokenImageError("is compressed by another method than deflate; repack the zip")
        if len(data) != size or zlib.crc32(data) != checksum:
            raise BrokenImageError("fails the checksum of the zip")
        return data

    def num_bytes(self, position: int) -> int:
        """Size of one member, unpacked."""
        return int(self._fields[position, 2])

    def _read_at(self, count: int, offset: int) -> bytes:
        process = os.getpid()
        if not hasattr(os, "pread"):  # Windows: a file of its own for each read
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(count)
        if self._descriptor is None or self._descriptor[0] != process:
            self._descriptor = (process, os.open(self.path, os.O_RDONLY))
        return os.pread(self._descriptor[1], count, offset)


class BytesStore(EncodedStore):
    """Encoded files held in memory, in one block, so that forked workers share it."""

    def __init__(self, files: Sequence[bytes], names: Sequence[str]) -> None:
        self.names = names
        self._bounds = np.cumsum([0] + [len(file) for file in files], dtype=np.int64)
        self._block = np.frombuffer(b"".join(files), dtype=np.uint8)

    def read(self, position: int) -> bytes:
        """The bytes of one file."""
        return self._block[slice(*self._bounds[position : position + 2])].tobytes()

    def num_bytes(self, position: int) -> int:
        """Their number."""
        return int(self._bounds[position + 1] - self._bounds[position])


class ArrayStore(Store):
    """Images of one size in one array: (N, H, W), (N, C, H, W) or (N, H, W, C), the bands by the rule of `decoding`."""

    def __init__(self, images: np.ndarray, *, spec: str) -> None:
        if images.ndim not in (3, 4) or not len(images):
            raise ValueError(
                f"Source.images must have the shape (N, H, W), (N, C, H, W) or (N, H, W, C) with N > 0; "
                f"got {images.shape} in {spec}. Stack the images along the first axis."
            )
        try:
            images = images[:, None] if images.ndim == 3 else np.moveaxis(images, band_axis(images.shape[1:]) + 1, 1)
            self.array = plain(images)
        except BrokenImageError as error:
            raise ValueError(
                f"Source.images must be an array of images; got {images.shape} in {spec}, one of which {error}."
            ) from error
        self.names = [str(number) for number in range(len(images))]

    def decode(self, position: int) -> np.ndarray:
        """One image."""
        return self.array[position]

    def header(self, position: int) -> Header:
        """The same for all."""
        _, channels, height, width = self.array.shape
        return Header(channels, height, width, self.array.dtype.name)


class PictureStore(Store):
    """Pictures that another library hands out one by one."""

    def __init__(self, fetch: Callable[[int], Image.Image | np.ndarray], num_images: int) -> None:
        self._fetch = fetch
        self.names = [str(number) for number in range(num_images)]

    def decode(self, position: int) -> np.ndarray:
        """One image, by the rules of `decoding`."""
        try:
            picture = self._fetch(position)
        except Exception as error:  # whatever the other library's decoder raises
            raise BrokenImageError(str(error)[:200]) from error
        return from_picture(picture) if isinstance(picture, Image.Image) else plain(bands_first(np.asarray(picture)))

    def header(self, position: int) -> Header:
        """By decoding: the other library has no headers."""
        channels, height, width = (image := self.decode(position)).shape
        return Header(channels, height, width, image.dtype.name)
