"""From the bytes of one image file to an array (channels, height, width), with nothing clipped or rescaled.

The rules are those of docs/data.md, "From file to number". simplejpeg gives the same bits as Pillow in a fifth of the
time on small images; Pillow reads a JPEG where it is not installed, and one with EXIF or other than gray or YCbCr.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Int
from PIL import Image, ImageOps

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .webp".split()  # noqa: SIM905
)
EXTRAS = {} if pillow_heif else dict.fromkeys((".heic", ".heif"), "pantomim[heic]")  # what reads them, and is not here
PICTURE_SUFFIXES |= frozenset({".heic", ".heif"} - EXTRAS.keys())
SUFFIXES = PICTURE_SUFFIXES | TIFF_SUFFIXES | {".npy"}
DTYPES = ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64")
MAX_BANDS = 64

_CHANNELS = {"1": 1, "L": 1, "LA": 1, "La": 1, "I": 1, "F": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "I;16N": 1}


class BrokenImageError(ValueError):
    """An image that cannot be read; its text says why, in a few words."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded."""

    channels: int
    height: int
    width: int
    dtype: str


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image (hidden files are not)."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def decode(data: bytes | Path, suffix: str) -> np.ndarray:
    """Decode one image file, given by its bytes or its path, to (C, H, W); the suffix chooses the reader.

    Raises `BrokenImageError` if the file cannot be read by the rules above.
    """
    if isinstance(data, bytes) and (image := _plain_jpeg(data)) is not None:
        return image
    return _guarded(_reader(suffix)[0], data)


def decode_ids(data: bytes | Path, suffix: str) -> Int[np.ndarray, "H W"]:
    """Decode one mask: class ids as they are stored; of a palette the indices, of one bit 0 and 1.

    Raises `BrokenImageError` if the file cannot be read, or holds anything but one whole number a pixel.
    """
    if suffix.lower() in PICTURE_SUFFIXES:
        return _guarded(_picture_ids, data)
    return as_ids(decode(data, suffix))


def as_ids(image: np.ndarray) -> Int[np.ndarray, "H W"]:
    """A decoded image (1, H, W) of whole numbers as a mask."""
    if len(image) != 1:
        raise BrokenImageError(f"has {len(image)} bands; a mask has one class id a pixel")
    if image.dtype.kind not in "iu":
        raise BrokenImageError(f"holds {image.dtype.name} numbers; a mask holds whole ones")
    return image[0].astype(np.int32)


def decode_header(data: bytes | Path, suffix: str) -> Header:
    """Size, channels and number type of one image file, without decoding its pixels."""
    return _guarded(_reader(suffix)[1], data)


def bands_first(array: np.ndarray, axes: str = "") -> np.ndarray:
    """Turn (H, W), (C, H, W) or (H, W, C) into (C, H, W); in `axes`, as tifffile names them, "S" marks the bands."""
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise BrokenImageError(f"has shape {array.shape}, not that of one image")
    return np.moveaxis(array, band_axis(array.shape, axes), 0)


def band_axis(shape: tuple[int, ...], axes: str = "") -> int:
    """Which of three axes is the bands, by the rule of docs/data.md."""
    if "S" in axes:
        return axes.index("S")
    axis = 0 if shape[0] <= shape[2] else 2
    if shape[0] == shape[1] != shape[2] or shape[1] == shape[2] != shape[0]:  # a square image
        axis = 0 if shape[1] == shape[2] else 2
    if shape[axis] > MAX_BANDS:
        raise BrokenImageError(f"has shape {shape}, with no axis of at most {MAX_BANDS} bands first or last")
    return axis


def from_picture(image: Image.Image) -> np.ndarray:
    """A Pillow image as an array (C, H, W), by the rule of docs/data.md."""
    image.load()
    may_be_rotated = any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"))
    return plain(_pixels(ImageOps.exif_transpose(image) if may_be_rotated else image))


def plain(array: np.ndarray) -> np.ndarray:
    """Bring images to one of `DTYPES`, native byte order and contiguous memory; refuse NaN and infinity."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    _check_dtype(array.dtype)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BrokenImageError("holds NaN or infinite values")
    return array


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.name not in DTYPES:
        raise BrokenImageError(f"holds {dtype.name} numbers; supported are {', '.join(DTYPES)}")


def _reader(suffix: str) -> tuple[Callable[[Any], np.ndarray], Callable[[Any], Header]]:
    suffix = suffix.lower()
    if suffix in TIFF_SUFFIXES:
        return _decode_tiff, _tiff_header
    if suffix == ".npy":
        return _decode_npy, _npy_header
    return _decode_picture, _picture_header


def _guarded(read: Callable[[Any], Any], data: bytes | Path) -> Any:
    """Any failure of a decoder on a user's file is a broken image; what our own code raises is passed on."""
    try:
        return read(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImageError(reason[:200]) from error


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """A JPEG without rotation as (C, H, W), or None if it is for Pillow to read, or to say what is wrong with it."""
    if simplejpeg is None or data[:2] != b"\xff\xd8" or b"Exif\0\0" in data or b"ns.adobe.com" in data:
        return None
    try:
        space = {"Gray": "GRAY", "YCbCr": "RGB"}.get(simplejpeg.decode_jpeg_header(data)[2])
        if space is None:
            return None
        return np.ascontiguousarray(simplejpeg.decode_jpeg(data, space).transpose(2, 0, 1))
    except ValueError:
        return None


def _refuse_lossy(image: Any) -> None:
    colour_png = image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA")
    if colour_png and any(";16B" in str(tile[3]) for tile in image.tile):
        raise BrokenImageError("is a 16-bit colour PNG, which would be cut to 8 bits; save it as TIFF or .npy")


def _decode_picture(file: Any) -> np.ndarray:
    with Image.open(file) as image:
        _refuse_lossy(image)
        return from_picture(image)


def _picture_ids(file: Any) -> np.ndarray:
    with Image.open(file) as image:
        if image.format == "JPEG":
            raise BrokenImageError("is a JPEG, which does not keep class ids; save masks as PNG")
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise BrokenImageError(f"is {image.mode}; a mask has one class id a pixel")
        return np.asarray(image).astype(np.int32)


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image).transpose(2, 0, 1)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[None]
    if image.mode in ("I", "F"):
        return np.asarray(image)[None]
    if image.has_transparency_data:
        gray = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("L" if gray else "RGB")
    else:
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _picture_header(file: Any) -> Header:
    with Image.open(file) as image:
        _refuse_lossy(image)
        width, height = image.size
        if "exif" in image.info and image.getexif().get(0x0112, 1) >= 5:
            width, height = height, width
        mode = image.mode
        dtype = {"I": "int32", "F": "float32"}.get(mode, "uint16" if mode.startswith("I;16") else "uint8")
        return Header(_CHANNELS.get(mode, 3), height, width, dtype)


def _decode_tiff(file: Any) -> np.ndarray:
    try:
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            array, axes, page = series.asarray(), series.axes, tiff.pages[0]
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:  # type: ignore[union-attr]
                colors = (np.asarray(page.colormap) >> 8).astype(np.uint8)  # type: ignore[union-attr]
                array, axes = colors[:, array], "S" + axes
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype == np.bool_:  # type: ignore[union-attr]
                array = ~array
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _decode_compressed_tiff(file)
    shape, axes = _squeezed(array.shape, axes)
    return plain(bands_first(array.reshape(shape), axes))


def _decode_compressed_tiff(file: Any) -> np.ndarray:
    """Pillow reads the compressions for which tifffile wants the package imagecodecs, in plain gray and RGB only."""
    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        with Image.open(file) as image:
            if image.mode in ("1", "L", "RGB", "I;16", "I;16B", "F"):
                return plain(_pixels(image))
    except OSError:
        pass
    raise BrokenImageError("is a TIFF whose compression needs `pip install imagecodecs`")


def _squeezed(shape: tuple[int, ...], axes: str) -> tuple[tuple[int, ...], str]:
    """Without axes of length one, rows, columns and samples apart."""
    kept = [axis for axis, length in enumerate(shape) if length > 1 or axes[axis] in "YXS"]
    return tuple(shape[axis] for axis in kept), "".join(axes[axis] for axis in kept)


def _tiff_header(file: Any) -> Header:
    with tifffile.TiffFile(file) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        shape, axes = _squeezed(series.shape, series.axes)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:  # type: ignore[union-attr]
            return _array_header((3, *shape), "S" + axes, np.dtype(np.uint8))
        return _array_header(shape, axes, np.dtype(series.dtype))


def _decode_npy(file: Any) -> np.ndarray:
    return plain(bands_first(np.load(file, allow_pickle=False)))


def _npy_header(file: Any) -> Header:
    array = np.load(file, allow_pickle=False, mmap_mode=None if isinstance(file, io.BytesIO) else "r")
    return _array_header(array.shape, "", array.dtype)


def _array_header(shape: tuple[int, ...], axes: str, dtype: np.dtype) -> Header:
    dtype = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    _check_dtype(dtype)
    whole = np.broadcast_to(np.empty((), dtype), shape)  # of this shape, without memory
    channels, height, width = bands_first(whole, axes).shape
    return Header(channels, height, width, dtype.name)
