"""Masks as pictures: PNGs of class ids with colours, and photos with the classes laid over them."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from pantomim.core.files import replace_file


def palette() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's colours: the bits of an id, spread over red, green and blue from the highest down."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    colours = np.zeros((256, 3), dtype=np.uint8)
    for place in range(8):
        colours[:, place % 3] |= (bits[:, place] << 7 - place // 3).astype(np.uint8)
    return colours


def write_mask(path: Path, ids: Int[np.ndarray, "H W"]) -> Path:
    """Write a mask as an indexed PNG, an id a pixel; the colours of `palette` are for the eye."""
    if ids.min() < 0 or ids.max() > 255:
        raise ValueError(
            f"write_mask.ids must be in [0, 255], as a PNG's palette is; got {ids.min()} to {ids.max()} for {path}. "
            f"Write larger ids as .npy or TIFF."
        )
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(palette().tobytes())  # whole: Pillow would pack ids into the bits that fewer colours need
    return _write(path, picture)


def overlaid(
    photo: UInt8[np.ndarray, "3 H W"], ids: Int[np.ndarray, "H W"], ignore: int | None = None, opacity: float = 0.5
) -> UInt8[np.ndarray, "H W 3"]:
    """A photo under the half-transparent colours of its classes; pixels of the id `ignore` stay as they are."""
    flat = photo.transpose(1, 2, 0)
    mixed = np.rint((1 - opacity) * flat + opacity * palette()[ids]).astype(np.uint8)
    return mixed if ignore is None else np.where((ids == ignore)[:, :, None], flat, mixed)


def write_overlay(path: Path, photo: UInt8[np.ndarray, "3 H W"], ids: Int[np.ndarray, "H W"]) -> Path:
    """Write what `overlaid` gives as a PNG."""
    return _write(path, Image.fromarray(overlaid(photo, ids)))


def _write(path: Path, picture: Image.Image) -> Path:
    picture.save(buffer := io.BytesIO(), "PNG")
    replace_file(path, buffer.getvalue())
    return path
