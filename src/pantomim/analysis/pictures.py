"""Rows of 8-bit pictures in a file, and the images that they are made of."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pantomim.core.files import write_npz
from pantomim.data.dataset import Dataset
from pantomim.data.stream import evaluation_batches


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
