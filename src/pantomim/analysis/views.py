"""Analyses that give pictures: of runs, and of any encoder that looks at photos.

`Neighbours(("RUN",), images="photos/").run()` gives `PictureRows`, one for each encoder; the page, the file of a run
folder and the report draw them alike.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from pantomim.analysis.inspection import Inspection
from pantomim.analysis.pictures import PictureRows, read_images, read_rows, shown_words, shrunk, write_rows
from pantomim.analysis.runs import NUM_PHOTOS, choose, shown_images
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne
from pantomim.data.dataset import Dataset
from pantomim.data.pictures import to_picture
from pantomim.evaluate.base import Memo
from pantomim.evaluate.features import AnyEncoder, check_finite, check_images, collapse_warning, images_for
from pantomim.formats import load_encoder
from pantomim.formats.files import hash_weights
from pantomim.formats.transform import Transform
from pantomim.formats.wrapped import resized_encoder

LOG = logging.getLogger(__name__)
PHOTO, THUMB = 192, 128  # the longer side of pictures of photos, and of those of a large sample, at most
BATCH = 32
SAMPLE = 1_000  # images that are compared with each other, where their number is not given
WORK = 6e12  # and the multiplications these may cost: 1,000 images of ViT-S, 350 of ViT-B at 224 pixels


class PictureAnalysis(Inspection):
    """An analysis whose result is pictures."""

    endings: ClassVar[tuple[str, ...]] = (".html", ".htm", ".png", ".svg")

    def run(self) -> list[PictureRows]:
        """What there is to see in the images that are named, or in those of a run."""
        return self.looks(self.dataset())

    @abstractmethod
    def looks(self, dataset: Dataset) -> list[PictureRows]:
        """What there is to see in these images; one for each encoder, or one of all."""

    def drawn(self, dataset: Dataset, shown: int) -> str:
        """Which images are shown, as sentences."""
        few = " There are no more." if shown == len(dataset) < NUM_PHOTOS else ""
        return f"{shown:,} images of {self.whose(dataset)}, drawn with seed {self.seed}.{few}{shown_words(dataset)}"


def write_rows_of(kind: type[PictureAnalysis], run: str | Path, source: str | None = None, **options: Any) -> Path:
    """The pictures of a run in RUN/analysis, for its report; of its data, which lie at `source` now."""
    (found,) = kind((str(run),), **options).looks(shown_images(run, source, None, kind.held_out))
    return write_rows(found, Path(run) / "analysis" / f"{kind.stem or kind.name}.npz")[0]


@dataclass(frozen=True)
class Sample:
    """Many images, as an encoder sees them and what it makes of them."""

    indices: np.ndarray  # in the data set
    names: list[str]
    unit: Float[np.ndarray, "n D"]  # mean of the patch features, minus its mean over the images, divided by its length
    thumbs: UInt8[np.ndarray, "n H W C"]


@dataclass(frozen=True)
class Shown:
    """An encoder and the images that it is shown; a sample is kept for the next analysis."""

    encoder: AnyEncoder
    dataset: Dataset
    memo: Memo = field(default_factory=Memo)

    def photos(self, count: int, seed: int) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...], np.ndarray]:
        """Some images as the encoder sees them, their names, and pictures of them, smaller where they are large."""
        found, how = choose(self.dataset, count, seed), Transform.of(self.encoder).interpolation
        images, names = read_images(self.dataset, self.encoder.image_size, found, how)
        small = shrunk(images, PHOTO).numpy()
        return images, names, to_picture(small, small, self.dataset.scale)

    def sample(self, count: int | None, seed: int) -> Sample:
        """A draw of images with their features; the photos of that seed are among them."""
        weights = sum(parameter.numel() for parameter in self.encoder.parameters())
        affordable = int(WORK / (weights * self.encoder.grid[0] * self.encoder.grid[1]))
        chosen = choose(self.dataset, count or min(SAMPLE, max(100, affordable)), seed)
        return self.memo.once((count, seed), lambda: self._sample(np.sort(chosen)))

    @torch.inference_mode()
    def _sample(self, chosen: np.ndarray) -> Sample:
        features, thumbs, found = [], [], []
        first: np.ndarray | None = None  # its range of values is that of all pictures
        for images, ids in images_for(self.encoder, self.dataset, BATCH, "cpu", chosen):
            features.append(self.encoder(images).patches.mean(dim=1).double())
            small = shrunk(images, THUMB).numpy()
            first = small if first is None else first
            thumbs.append(to_picture(small, first, self.dataset.scale))
            found.append(ids)
        indices, values = np.concatenate(found), check_finite(torch.cat(features), self.dataset.spec)
        unit = F.normalize(values - values.mean(dim=0), dim=1).numpy()
        return Sample(indices, [self.dataset.name_of(index) for index in indices], unit, np.concatenate(thumbs))


@frozen
class EncoderPictures(PictureAnalysis):
    """Pictures of any encoder, one encoder after the other on the same images."""

    # Height and width at which images are encoded, positions resampled; None: the encoder's own
    image_size: tuple[AtLeastOne, AtLeastOne] | None = None

    usual: ClassVar[int] = NUM_PHOTOS
    held_out: ClassVar[int] = NUM_PHOTOS
    least: ClassVar[int] = 1  # images

    @abstractmethod
    def look(self, shown: Shown) -> PictureRows:
        """What there is to see of an encoder that is in order."""

    def looks(self, dataset: Dataset) -> list[PictureRows]:
        """One for each encoder."""
        found = []
        for spec in self.encoders:
            encoder = load_encoder(spec)
            found.append(self.of(Shown(resized_encoder(encoder, self.image_size or encoder.image_size), dataset), spec))
        return found

    def of(self, shown: Shown, spec: str) -> PictureRows:
        """The same of one encoder, or why nothing is to be seen."""
        check_images(shown.encoder, shown.dataset)
        trouble = collapse_warning(shown.encoder, shown.dataset)
        if (healthy := len(shown.dataset) - len(shown.dataset.broken)) < self.least:
            trouble = f"{self.title} needs at least {self.least} images; {shown.dataset.spec} has {healthy}."
        found = self.look(shown) if trouble is None else PictureRows((), (), "", warnings=(trouble,))
        sha256, labelled = hash_weights(shown.encoder.state_dict()), shown.dataset.labels is not None
        return replace(found, encoder=spec, sha256=sha256, labelled=labelled)


def write_views(kinds: Iterable[type[EncoderPictures]], run: Path, source: str | None = None) -> None:
    """The pictures of several kinds in RUN/analysis, for the report of a run; those of its weights stay as they are."""
    encoder = load_encoder(run).eval()
    paths = {kind: run / "analysis" / f"{kind.name}.npz" for kind in kinds}
    sha256 = hash_weights(encoder.state_dict())
    missing = [kind for kind, path in paths.items() if not path.is_file() or read_rows(path).sha256 != sha256]
    if not missing:
        return
    shown = Shown(encoder, shown_images(run, source, None, NUM_PHOTOS))
    for number, kind in enumerate(missing, 1):
        LOG.info("Pictures %d of %d: %s", number, len(missing), kind.title)
        write_rows(kind((str(run),)).of(shown, str(run)), paths[kind])
