"""From the bytes of one image file to an array (channels, height, width), with nothing clipped or rescaled.

The rules are those of docs/data.md, "From file to number". What a file is, its content tells, not its name; what it
claims to be is compared with its size and with a limit before memory is taken. simplejpeg gives the same bits as Pillow
in a fifth of the time on small images; Pillow reads a JPEG where it is not installed, and one with EXIF or other than
gray or YCbCr.
"""

import contextlib
import io
import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar, cast

import numpy as np
import tifffile
from jaxtyping import Int
from PIL import Image, ImageOps

from pantomim.core.foreign import reason

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
T = TypeVar("T")

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .webp".split()  # noqa: SIM905
)
EXTRAS = {} if pillow_heif else dict.fromkeys((".heic", ".heif"), "pantomim[heic]")  # what reads them, and is not here
PICTURE_SUFFIXES |= frozenset({".heic", ".heif"} - EXTRAS.keys())
SUFFIXES = PICTURE_SUFFIXES | TIFF_SUFFIXES | {".npy"}
# Pillow's names of what it may read; it knows more, and starts Ghostscript for one of them. TGA has no mark: the last.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
DTYPES = ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64")
MAX_BANDS = 64
MAX_MEGAPIXELS = 250.0
LIMIT = "PANTOMIM_MAX_MEGAPIXELS"  # the environment's word for another limit

_GRAY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_MODES = {"1": "bool", "F": "float32", **dict.fromkeys(("L", "P", "RGB", "YCbCr", "CMYK"), "uint8")}
_MODES |= dict.fromkeys(("I;16", "I;16B"), "uint16")  # number types of Pillow's modes
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_COLOURS = ("SEPARATED", "YCBCR", "CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV")  # samples that are no bands
_PNM = re.compile(rb"P([2356])" + rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})" * 3 + rb"\s")  # gray, colour; as text, or not


class BrokenImageError(ValueError):
    """An image that cannot be read; its text says why, in a few words."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded."""

    channels: int
    height: int
    width: int
    dtype: str


class StoredMask(NamedTuple):
    """A mask as its file has it."""

    ids: Int[np.ndarray, "H W"]
    palette: bytes = b""  # red, green and blue of each id, where the file says


class _Opened(NamedTuple):
    """An image file whose beginning was read."""

    header: Header
    values: Callable[[], np.ndarray]  # (C, H, W); of a mask as they are stored, else as pictures show them
    palette: bytes = b""


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image (hidden files are not)."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def decode(data: bytes | Path) -> np.ndarray:
    """One image file, given by its bytes or its path, as (C, H, W); raises `BrokenImageError`."""
    if isinstance(data, bytes) and (image := _plain_jpeg(data)) is not None:
        return image
    return _guarded(data, lambda file: plain(_opened(file).values()))


def decode_mask(data: bytes | Path) -> StoredMask:
    """One mask's ids as they are stored (of a palette the indices, of one bit 0 and 1); raises `BrokenImageError`."""

    def read(file: IO[bytes]) -> StoredMask:
        opened = _opened(file, as_stored=True)
        return StoredMask(as_ids(opened.values()), opened.palette)

    return _guarded(data, read)


def as_ids(image: np.ndarray) -> Int[np.ndarray, "H W"]:
    """A decoded image (1, H, W) of whole numbers as a mask."""
    if len(image) != 1:
        raise BrokenImageError(f"has {len(image)} bands; a mask has one class id a pixel")
    if image.dtype.kind not in "biu":
        raise BrokenImageError(f"holds {image.dtype.name} numbers; a mask holds whole ones")
    return image[0].astype(np.int32)


def decode_header(data: bytes | Path) -> Header:
    """Size, channels and number type of one image file, without decoding its pixels."""
    return _guarded(data, lambda file: _opened(file).header)


def open_picture(file: IO[bytes]) -> Image.Image:
    """A picture of one of `FORMATS` within our limit of size; that of `Image.open` holds for a whole process."""
    Image.init()
    file.seek(0)
    prefix = file.read(16)
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        accepted = accepts is None or accepts(prefix)
        if factory is None or not accepted or isinstance(accepted, str):  # words: it was built without that format
            continue
        file.seek(0)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # Pillow's ways to say that it is another format
            continue
        check_memory(4 * image.width * image.height)
        return image
    raise BrokenImageError("is no picture that can be read, or its beginning is damaged")


def check_memory(num_bytes: int, file_bytes: int = 0) -> None:
    """Refuse an image that claims more than the limit; one whose file is as large itself may."""
    text = os.environ.get(LIMIT, str(MAX_MEGAPIXELS))
    limit = float(text) if re.fullmatch(r"\d+(\.\d*)?", text) else 0
    if not limit:
        raise BrokenImageError(f"cannot be read while {LIMIT} is not a number above 0; got {text!r}")
    if num_bytes > max(4e6 * limit, file_bytes):
        raise BrokenImageError(
            f"takes as much memory as {num_bytes / 4e6:,.0f} megapixels, and {limit:g} are the limit, against attacks; "
            f"if it is none, raise it: {LIMIT}={math.ceil(num_bytes / 4e6)}"
        )


def read_npy(file: IO[bytes], num_bytes: int) -> np.ndarray:
    """The array of a .npy of so many bytes, which must be as long as it claims to be; nothing is unpickled."""
    _npy_layout(file, num_bytes)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


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
    return plain(_pixels(ImageOps.exif_transpose(image) if _orientation(image) != 1 else image))


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
        held = "Python objects" if dtype.hasobject else f"{dtype.name} numbers"
        raise BrokenImageError(f"holds {held}; supported are {', '.join(DTYPES)}")


def _guarded(data: bytes | Path, read: Callable[[IO[bytes]], T]) -> T:
    """What `read` makes of an open file; any failure of a decoder on it is a broken image."""
    try:
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
            return read(file)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:
        raise BrokenImageError(reason(error)) from error


def _opened(file: IO[bytes], as_stored: bool = False) -> _Opened:
    mark = file.read(6)
    kinds = {_TIFF_MARKS: _tiff, (np.lib.format.MAGIC_PREFIX,): _npy, (b"P2", b"P3", b"P5", b"P6"): _pnm}
    read = next((read for marks, read in kinds.items() if mark.startswith(marks)), _picture)
    return read(file, as_stored)


def _size(file: IO[bytes]) -> int:
    """Bytes of an open file, which is then at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _header_of(shape: tuple[int, ...], axes: str, dtype: np.dtype) -> Header:
    dtype = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    _check_dtype(dtype)
    whole = np.broadcast_to(np.empty((), dtype), shape)  # of this shape, without memory
    channels, height, width = bands_first(whole, axes).shape
    return Header(channels, height, width, dtype.name)


def _npy(file: IO[bytes], as_stored: bool) -> _Opened:
    size = _size(file)
    return _Opened(_header_of(*_npy_layout(file, size)), lambda: bands_first(read_npy(file, size)))


def _npy_layout(file: IO[bytes], num_bytes: int) -> tuple[tuple[int, ...], str, np.dtype]:
    """Shape, no names of axes, and number type of a .npy that is as long as its header claims."""
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:  # NumPy's own words may advise to load it unsafely
        raise BrokenImageError("has a damaged header") from error
    if dtype.hasobject:
        _check_dtype(dtype)
    claimed, found = math.prod(shape) * dtype.itemsize, num_bytes - file.tell()
    if claimed > found or min(shape, default=0) < 0:
        raise BrokenImageError(f"claims an array of {claimed:,} bytes, and has {found:,}")
    return shape, "", dtype


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """A JPEG without rotation as (C, H, W), or None if it is for Pillow to read, or to say what is wrong with it."""
    if simplejpeg is None or data[:2] != b"\xff\xd8" or b"Exif\0\0" in data or b"ns.adobe.com" in data:
        return None
    try:
        height, width, found, _ = simplejpeg.decode_jpeg_header(data)
        space = {"Gray": "GRAY", "YCbCr": "RGB"}.get(found)
        if space is None:
            return None
        check_memory(4 * height * width)
        return simplejpeg.decode_jpeg(data, space).transpose(2, 0, 1)  # bands last in memory, as is resized fastest
    except ValueError:
        return None


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where there is none or another."""
    keys = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
    found = image.getexif().get(0x0112, 1) if any(key in image.info for key in keys) else 1
    return found if found in range(2, 9) else 1


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


def _picture(file: IO[bytes], as_stored: bool) -> _Opened:
    image = open_picture(file)
    mode, turn = image.mode, _orientation(image)
    width, height = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
    raw = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""  # type: ignore[attr-defined]
    if as_stored:
        if image.format == "JPEG":
            raise BrokenImageError("is a JPEG, which does not keep class ids; save masks as PNG")
        if mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise BrokenImageError(f"is {mode}; a mask has one class id a pixel")
        palette = bytes(image.getpalette("RGB") or ())
        step = {"L;2": 85, "L;4": 17}.get(raw, 1)  # by which Pillow multiplies gray of few bits
        return _Opened(Header(1, height, width, "int32"), lambda: np.asarray(image)[None] // step, palette)
    if raw in ("LA;16B", "RGB;16B", "RGBA;16B"):
        if raw == "LA;16B" or "transparency" in image.info or turn != 1:
            raise BrokenImageError("is a 16-bit PNG with a rotation, a transparent colour or gray; save it without")
        return _Opened(Header(3, height, width, "uint16"), lambda: _deep_png(file, image))
    dtype = "uint16" if mode.startswith("I;16") else {"I": "int32", "F": "float32"}.get(mode, "uint8")
    return _Opened(Header(1 if mode in _GRAY else 3, height, width, dtype), lambda: from_picture(image))


def _deep_png(file: IO[bytes], image: Image.Image) -> np.ndarray:
    """A PNG of 16 bits, whose samples Pillow cuts to their first byte; transparency on white."""
    first = np.asarray(image).transpose(2, 0, 1).astype(np.uint16)
    again: Any = open_picture(file)
    again.tile = [tile._replace(args=tile.args.replace("16B", "16L")) for tile in again.tile]  # to their second
    samples = first << 8 | np.asarray(again).transpose(2, 0, 1)
    share = samples[3:] / 65535 if len(samples) > 3 else np.ones(1)
    return np.rint(samples[:3] * share + 65535 * (1 - share)).astype(np.uint16)


def _pnm(file: IO[bytes], as_stored: bool) -> _Opened:
    """A PGM or PPM, scaled to 8 or 16 bits by the largest value that it states; Pillow would cut those to 8 bits."""
    file.seek(0)
    if (found := _PNM.match(file.read(4096))) is None:
        raise BrokenImageError("has a damaged header")
    width, height, top = (int(found[number]) for number in (2, 3, 4))
    channels, text = 3 if found[1] in b"36" else 1, found[1] in b"23"
    if not 0 < top < 2**16:
        raise BrokenImageError(f"has {top} as its largest value, which must be from 1 to 65535")
    check_memory(4 * height * width)
    dtype: np.dtype[Any] = np.dtype(np.uint16 if top > 255 else np.uint8)
    count, whole = height * width * channels, 65535 if top > 255 else 255

    def values() -> np.ndarray:
        file.seek(found.end())
        if text:
            stored = np.array(file.read(6 * count + 2**16).split()[:count]).astype(np.int64)
        else:
            stored = np.frombuffer(file.read(count * dtype.itemsize), dtype.newbyteorder(">"))
        if len(stored) < count or stored.max(initial=0) > top:
            raise BrokenImageError("is cut, or has values above the largest that it states")
        stored = stored if as_stored or top == whole else np.rint(stored * (whole / top))
        return stored.reshape(height, width, channels).astype(dtype).transpose(2, 0, 1)

    return _Opened(Header(channels, height, width, dtype.name), values)


def _tiff(file: IO[bytes], as_stored: bool) -> _Opened:
    """A TIFF; not `as_stored`: in its palette's colours, white-is-zero inverted, fewer bits scaled to whole bytes."""
    size = _size(file)
    tiff = tifffile.TiffFile(file)
    series, page = tiff.series[0], cast(Any, tiff.pages[0])
    if series.dtype is None:
        raise BrokenImageError("holds numbers of a type that is not supported")
    dtype, kind, bits = np.dtype(series.dtype), getattr(page.photometric, "name", ""), page.bitspersample
    check_memory(math.prod(series.shape) * dtype.itemsize, size)
    kept = [axis for axis, length in enumerate(series.shape) if length > 1 or series.axes[axis] in "YXS"]
    shape, axes = tuple(series.shape[axis] for axis in kept), "".join(series.axes[axis] for axis in kept)
    if kind in _TIFF_COLOURS:
        shape, axes = (page.imagelength, page.imagewidth, 3), "YXS"
    image = _tiff_picture(file, page, shape, dtype, kind)
    colours = (np.asarray(page.colormap) >> 8).astype(np.uint8) if kind == "PALETTE" else None
    if kind == "MINISWHITE" and dtype.kind == "f":
        raise BrokenImageError("has floats of which 0 is white, and no other is black; invert them")

    def values() -> np.ndarray:
        array = series.asarray().reshape(shape) if image is None else _picture_samples(image, axes)
        if as_stored:
            return bands_first(array, axes)
        if colours is not None:
            return bands_first(colours[:, array], "S" + axes)
        array = ~array if kind == "MINISWHITE" else array
        if dtype.kind == "u" and bits < 8 * dtype.itemsize:
            top = 2**bits - 1
            array = np.rint((array & top) * (np.iinfo(dtype.name).max / top)).astype(dtype)
        return bands_first(array, axes)

    if colours is None or as_stored:
        return _Opened(_header_of(shape, axes, dtype), values, b"" if colours is None else colours.T.tobytes())
    return _Opened(_header_of((3, *shape), "S" + axes, np.dtype(np.uint8)), values)


def _tiff_picture(file: IO[bytes], page: Any, shape: tuple[int, ...], dtype: np.dtype, kind: str) -> Image.Image | None:
    """Opened by Pillow, where tifffile cannot read it; refused if Pillow would give other numbers. None: it can."""
    tables, missing = tifffile.TIFF, ""
    try:
        _ = page.compression == 1 or tables.DECOMPRESSORS[page.compression]
        _ = page.predictor == 1 or tables.UNPREDICTORS[page.predictor]
    except KeyError:
        missing = getattr(page.compression, "name", str(page.compression))
    if not missing and kind not in _TIFF_COLOURS:
        return None
    with contextlib.suppress(BrokenImageError, OSError):
        image = open_picture(file)
        converted, place = image.mode in ("YCbCr", "CMYK"), (page.imagewidth, page.imagelength)
        pixels = math.prod(place) * (3 if converted or image.mode == "RGB" else 1)
        alike = (image.size, _MODES.get(image.mode), pixels) == (place, dtype.name, math.prod(shape))
        if alike and page.bitspersample not in (2, 4) and converted <= (kind in _TIFF_COLOURS):
            return image
    if missing:
        raise BrokenImageError(f"is a TIFF compressed by {missing}, which needs `pip install imagecodecs`")
    raise BrokenImageError(f"is a TIFF of {dtype.name} in {kind}; save it in gray, RGB, or as bands")


def _picture_samples(image: Any, axes: str) -> np.ndarray:
    """The samples of a TIFF that Pillow reads, as they are stored."""
    raw = image.tile[0][3]
    array = np.asarray(image.convert("RGB") if image.mode in ("YCbCr", "CMYK") else image)
    if re.match("[1L];I", raw if isinstance(raw, str) else raw[0]):  # Pillow has inverted white-is-zero
        array = ~array
    return np.moveaxis(array, 2, axes.index("S")) if array.ndim == 3 else array
