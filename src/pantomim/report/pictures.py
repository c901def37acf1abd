"""Pictures as data URIs, and the triplets of original, masked and reconstruction."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pantomim.report.folder import Alignment, Pictures


@dataclass(frozen=True)
class Triplet:
    """One held-out image three times, each a PNG as a data URI; hidden patches of `masked` are transparent."""

    item: str
    original: str
    masked: str
    reconstruction: str


def triplets(pictures: Pictures) -> list[Triplet]:
    """Every picture of a file of reconstructions."""
    items = [str(item) for item in pictures.about.get("items", [])]
    found = []
    for index, original in enumerate(pictures.original):
        height, width = original.shape[:2]
        rows, cols = pictures.mask[index].shape
        hidden = pictures.mask[index].repeat(height // rows, axis=0).repeat(width // cols, axis=1)
        found.append(
            Triplet(
                item=items[index] if index < len(items) else str(index + 1),
                original=png(original),
                masked=png(np.dstack([original, np.where(hidden, 0, 255).astype(np.uint8)])),
                reconstruction=png(pictures.pasted[index]),
            )
        )
    return found


def png(picture: np.ndarray) -> str:
    """A data URI of an 8-bit picture (H, W, C): gray, gray and opacity, RGB, or RGB and opacity."""
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[picture.shape[2]]
    buffer = io.BytesIO()
    height, width = picture.shape[:2]
    Image.frombytes(mode, (width, height), np.ascontiguousarray(picture).tobytes()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def jpeg(picture: np.ndarray) -> str:
    """A data URI of an 8-bit picture (H, W, C), gray or RGB, slightly lossy and much smaller."""
    buffer = io.BytesIO()
    shown = picture[:, :, 0] if picture.shape[2] == 1 else picture
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def alignment_rows(alignment: Alignment | None) -> list[tuple[str, str, list[str]]]:
    """Title, text and data URIs of each row; empty where there is no such file."""
    if alignment is None:
        return []
    return [(title, text, [png(picture) for picture in pictures]) for title, text, pictures in alignment.rows]
