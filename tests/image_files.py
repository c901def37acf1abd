"""Folders of small images, whole and broken."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, size: tuple[int, int] = (8, 10), channels: int = 3) -> bytes:
    shape = size if channels == 1 else (*size, channels)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def broken_folder(root: Path, num_good: int, num_broken: int) -> str:
    files = {f"{k:04}.png": png(k) for k in range(num_good)}
    good = png(0)
    for number in range(num_broken):  # whole header, cut pixels
        files[f"{number * 7 + 3:04}.png"] = good[: len(good) - 60]
    return str(fill(root, files))


def png_of(samples: np.ndarray, shape: tuple[int, int] | None = None) -> bytes:
    """A PNG of 16 bits, (H, W, 3) or (H, W, 4), which Pillow does not write; it may claim another height and width."""
    height, width, channels = samples.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    rows[:, 2 * channels :] -= rows[:, : -2 * channels].copy()  # each less the pixel before it: filter 1
    claimed = struct.pack(">IIBBBBB", *(shape or (height, width))[::-1], 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\1" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", claimed) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def npy_of(shape: tuple[int, ...], descr: str = "<f4", data: bytes = b"") -> bytes:
    """A .npy whose header claims this shape, whatever follows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def zip_claiming(path: Path, name: str, data: bytes, claimed: int) -> Path:
    """A zip with one member, of which it claims another size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
        archive.infolist()[0].file_size = claimed
    return path
