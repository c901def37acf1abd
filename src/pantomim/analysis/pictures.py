"""Images of any number and range of bands as 8-bit pictures, and rows of such pictures in a file."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pantomim.core.files import replace_file
from pantomim.data.dataset import Dataset
from pantomim.data.scales import Scale
from pantomim.data.stream import evaluation_batches

STRETCH = (2.0, 98.0)  # percentiles of the originals that become black and white where values are not 8-bit


@dataclass(frozen=True)
class Row:
    """Pictures of one kind, one an image.

    Args:
        title: Whose they are.
        text: What there is to know of them.
        pictures: 8-bit.
    """

    title: str
    text: str
    pictures: UInt8[np.ndarray, "n H W C"]


@dataclass(frozen=True)
class PictureRows:
    """The same images in several ways.

    Args:
        items: Names of the images.
        rows: The images first.
        caption: What one must know to read the pictures.
    """

    items: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str


def write_rows(found: PictureRows, path: Path) -> Path:
    """Write `row_0`, `row_1` ... (n, H, W, 1 or 3), and titles, texts, names and caption as JSON in `about`."""
    about = {
        "titles": [row.title for row in found.rows],
        "texts": [row.text for row in found.rows],
        "items": list(found.items),
        "caption": found.caption,
    }
    buffer = io.BytesIO()
    pictures = {f"row_{number}": row.pictures for number, row in enumerate(found.rows)}
    np.savez(buffer, about=np.array(json.dumps(about)), **pictures)  # type: ignore[arg-type]
    replace_file(path, buffer.getvalue())
    return path


def read_images(
    dataset: Dataset, image_size: tuple[int, int], indices: np.ndarray
) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...]]:
    """Images at once, in the order of `indices`, and their names; broken ones are left out."""
    batches = evaluation_batches(dataset, image_size, len(indices), torch.device("cpu"), indices=indices)
    images, found = zip(*batches, strict=True)
    return torch.cat(images), tuple(dataset.names[int(index)] for ids in found for index in ids)


def shown_bands(channels: int, bands: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The bands to show: one as gray, or three as red, green and blue; by default the first three, or the first.

    Raises:
        ValueError: if there is no such band, or their number is neither one nor three.
    """
    if bands is None:
        return (0, 1, 2) if channels >= 3 else (0,)
    if len(bands) not in (1, 3) or not all(0 <= band < channels for band in bands):
        raise ValueError(
            f"Reconstructions.bands must be one or three of 0 to {channels - 1}; got {bands}. "
            f"Name bands by their position, the first is 0."
        )
    return bands


def display_range(
    shown: Float[np.ndarray, "B C H W"], scale: Scale
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Values that become black and white, band by band: 0 and 1 for 8-bit images, else robust ends of the originals."""
    channels = shown.shape[1]
    if scale.divisor == 255.0:
        return np.zeros(channels), np.ones(channels)
    low, high = np.percentile(shown, STRETCH, axis=(0, 2, 3))
    return low, np.where(high > low, high, low + 1.0)


def to_picture(
    values: Float[np.ndarray, "B C H W"], low: Float[np.ndarray, " C"], high: Float[np.ndarray, " C"]
) -> UInt8[np.ndarray, "B H W C"]:
    """8-bit pictures; what lies outside the range becomes black or white."""
    stretched = (values - low[:, None, None]) / (high - low)[:, None, None]
    return (stretched.clip(0.0, 1.0) * 255.0).round().astype(np.uint8).transpose(0, 2, 3, 1)
