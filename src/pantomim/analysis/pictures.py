"""Images of any number and range of bands as 8-bit pictures, and rows of such pictures in a file."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pantomim.core.files import write_npz
from pantomim.data.dataset import Dataset
from pantomim.data.scales import Scale
from pantomim.data.stream import evaluation_batches

STRETCH = (2.0, 98.0)  # percentiles of the originals that become black and white where values are not 8-bit


@dataclass(frozen=True)
class Row:
    """Pictures of one kind, one an image."""

    title: str  # whose they are
    text: str  # what there is to know of them
    pictures: UInt8[np.ndarray, "n H W C"]


@dataclass(frozen=True)
class PictureRows:
    """The same images in several ways."""

    items: tuple[str, ...]  # names of the images
    rows: tuple[Row, ...]  # the images first
    caption: str  # what one must know to read the pictures


def write_rows(found: PictureRows, path: Path) -> Path:
    """Write `row_0`, `row_1` ... (n, H, W, 1 or 3), and titles, texts, names and caption as JSON in `about`."""
    about = {
        "titles": [row.title for row in found.rows],
        "texts": [row.text for row in found.rows],
        "items": list(found.items),
        "caption": found.caption,
    }
    pictures = {f"row_{number}": row.pictures for number, row in enumerate(found.rows)}
    return write_npz(path, {"about": np.array(json.dumps(about)), **pictures})


def read_images(
    dataset: Dataset, image_size: tuple[int, int], indices: np.ndarray
) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...]]:
    """Images at once, in the order of `indices`, and their names; broken ones are left out."""
    batches = evaluation_batches(dataset, image_size, len(indices), "cpu", indices)
    images, found = zip(*batches, strict=True)
    return torch.cat(images), tuple(dataset.names[int(index)] for ids in found for index in ids)


def shown_bands(channels: int) -> list[int]:
    """The bands to show: the first three as red, green and blue, or the first as gray."""
    return [0, 1, 2] if channels >= 3 else [0]


def to_picture(
    values: Float[np.ndarray, "B C H W"], originals: Float[np.ndarray, "n C H W"], scale: Scale
) -> UInt8[np.ndarray, "B H W c"]:
    """8-bit pictures; what lies outside the range becomes black or white.

    The range is 0 to 1 for 8-bit images, else robust ends of the originals, band by band.
    """
    bands = shown_bands(values.shape[1])
    low, high = np.zeros(len(bands)), np.ones(len(bands))
    if scale.divisor != 255.0:
        low, high = np.percentile(originals[:, bands], STRETCH, axis=(0, 2, 3))
        high = np.where(high > low, high, low + 1.0)
    stretched = (values[:, bands] - low[:, None, None]) / (high - low)[:, None, None]
    return (stretched.clip(0.0, 1.0) * 255.0).round().astype(np.uint8).transpose(0, 2, 3, 1)
