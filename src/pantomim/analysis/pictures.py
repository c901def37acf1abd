"""Rows of 8-bit pictures, the files they are kept in, and the images that they are made of."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.files import replace_file, write_npz
from pantomim.data.dataset import Dataset
from pantomim.data.pictures import STRETCH, shown_bands
from pantomim.data.stream import evaluation_batches
from pantomim.data.transforms import Interpolation

PLAIN = ("caption", "lead", "warnings", "encoder", "sha256", "labelled", "columns")  # of `PictureRows`, as JSON


@dataclass(frozen=True)
class Row:
    """Pictures that belong together."""

    title: str  # whose they are
    text: str  # what there is to know of them
    pictures: UInt8[np.ndarray, "n H W C"]  # gray, RGB, or RGB with opacity
    labels: tuple[str, ...] = ()  # what stands below each; () for nothing


@dataclass(frozen=True)
class PictureRows:
    """What an analysis has to show: the same images in several ways, or several images in the same ways."""

    items: tuple[str, ...]  # what the pictures of a row are of: images, or ways to see one
    rows: tuple[Row, ...]
    caption: str  # what one must know to read the pictures
    lead: str = ""  # what one sees, in a sentence
    warnings: tuple[str, ...] = ()
    encoder: str = ""  # whose pictures they are, where that is one encoder
    sha256: str = ""  # of its weights
    labelled: bool = True  # whether the images are
    columns: int = 0  # pictures that lie side by side where there is room; 0: as many as items
    table: tuple[tuple[str, ...], ...] = ()  # titles, then lines: a list of what the pictures show a part of
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # what lies in the file in the place of the rows

    @property
    def across(self) -> int:
        """How many pictures lie side by side where there is room."""
        return self.columns or max(len(self.items), 1)

    @property
    def aspect(self) -> float:
        """Width over height of a picture, of the narrowest row."""
        return min((row.pictures.shape[2] / row.pictures.shape[1] for row in self.rows), default=1.0)


def write_rows(found: PictureRows, path: Path) -> list[Path]:
    """Write FILE.npz (`row_0` ... and JSON in `about`, or the `arrays`) and, of a list, FILE.csv; gives their paths."""
    about = {name: getattr(found, name) for name in ("items", *PLAIN)}
    for name, attribute in (("titles", "title"), ("texts", "text"), ("labels", "labels")):
        about[name] = [getattr(row, attribute) for row in found.rows]
    pictures = {f"row_{number}": row.pictures for number, row in enumerate(found.rows)}
    arrays = found.arrays or pictures | {"about": np.array(json.dumps(about))}
    written = [write_npz(path, arrays, compressed=True)]
    if found.table:
        csv.writer(text := io.StringIO()).writerows(found.table)
        written.append(path.with_suffix(".csv"))
        replace_file(written[-1], text.getvalue().encode("utf-8", "surrogateescape"))
    return written


def read_rows(path: Path) -> PictureRows:
    """What `write_rows` wrote, without the list; also in files of earlier versions."""
    with np.load(path, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        named = zip(about["titles"], about["texts"], about.get("labels", repeat(())), strict=False)
        rows = tuple(Row(title, text, content[f"row_{k}"], tuple(of)) for k, (title, text, of) in enumerate(named))
    return PictureRows(tuple(about["items"]), rows, **{name: about[name] for name in PLAIN if name in about})


def read_images(
    dataset: Dataset, image_size: tuple[int, int], indices: np.ndarray, interpolation: Interpolation = "bicubic"
) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...]]:
    """Images at once, in the order of `indices`, and their names; broken ones are left out."""
    batches = evaluation_batches(dataset, image_size, len(indices), "cpu", indices, interpolation=interpolation)
    images, found = zip(*batches, strict=True)
    return torch.cat(images), tuple(dataset.names[int(index)] for ids in found for index in ids)


def shrunk(images: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C h w"]:
    """Images whose longer side is at most so many pixels."""
    height, width = images.shape[2:]
    if max(height, width) <= side:
        return images
    size = [max(1, round(length * side / max(height, width))) for length in (height, width)]
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def cells(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Values of patches (B, rows, cols, ...) as the pixels of pictures of a size, without smoothing."""
    rows, cols = (np.arange(side) * count // side for side, count in zip(size, values.shape[1:3], strict=True))
    return values[:, rows[:, None], cols]


def shown_words(dataset: Dataset) -> str:
    """Which bands are shown, and whether contrast was stretched, as sentences; empty for photos in colour."""
    bands, words = shown_bands(dataset.channels), ""
    if len(bands) < dataset.channels:
        words = f" {'Band 1' if len(bands) == 1 else 'Bands 1, 2, 3'} of {dataset.channels} shown."
    if dataset.scale.divisor != 255.0:
        words += f" Contrast stretched to the {STRETCH[0]:g} to {STRETCH[1]:g} % range of the originals."
    return words
