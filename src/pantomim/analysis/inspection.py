"""What every analysis of encoders shares: which encoders, on which images, and where the result goes.

`Spectrum(("RUN", "timm:NAME")).run()` measures several encoders on the same images; `write_block_facts` leaves the
arrays beside a page and in each run folder, where the report finds them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import tyro
from torch import Tensor

from pantomim.analysis.block_facts import BlockFacts
from pantomim.analysis.runs import choose, place, shown_images
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.data.dataset import Dataset
from pantomim.data.sources import open_source
from pantomim.evaluate.features import AnyEncoder, check_images, collapse_warning, images_for
from pantomim.formats import load_encoder
from pantomim.formats.files import hash_weights
from pantomim.nn.vit import Encoder

Arrays = dict[str, np.ndarray]
BATCH = 16  # images at once; attention of a block is (B, heads, T, T)


@frozen
class Inspection(ABC):
    """One way to look into runs and encoders, side by side."""

    # Run folders, files, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE
    encoders: tyro.conf.Positional[tuple[str, ...]]
    images: str | None = None  # As for pre-training, all of a source; None: held-out images of the first run's data
    # The stored value that becomes 1; None: as in the first run, and for other images by the number type
    scale: Positive | None = None
    # The page, FILE.html, or FILE.png or FILE.svg where it is of pictures; other files of that name are put beside it.
    # None: in the folder analysis of the first run
    out: Path | None = None
    # How many images, a seeded draw; all, where there are fewer. None: 128 for numbers, 6 to 12 that are shown one by
    # one, and up to 1,000 that are compared with each other, fewer for large encoders
    count: AtLeastOne | None = None
    seed: int = 0  # Of the draw

    name: ClassVar[str]  # of the command and of the files
    title: ClassVar[str]  # of pages
    stem: ClassVar[str] = ""  # of files, where it is another
    usual: ClassVar[int] = 128  # number of images
    held_out: ClassVar[int] = 0  # images that a run must hold out; all are shown where these are fewer
    endings: ClassVar[tuple[str, ...]] = (".html", ".htm")  # of the page

    def __post_init__(self) -> None:
        if not self.encoders:
            raise ValueError(
                "Inspection.encoders must name at least one run folder or encoder; got none. Add one, such as "
                "runs/first, or several."
            )

    @abstractmethod
    def run(self) -> Any:
        """What was found: `BlockFacts`, or one or several `PictureRows`."""

    def dataset(self) -> Dataset:
        """The images that are named, all of them; else those that the first run holds out, scaled as there."""
        if self.images is not None:
            return open_source(self.images, "all", self.scale)
        return shown_images(self.first_run, None, self.scale, self.held_out)

    def whose(self, dataset: Dataset) -> str:
        """The name of the images, and which of a source they are."""
        return dataset.name + place(dataset, self.encoders[0] if self.images is None else None)

    @property
    def first_run(self) -> Path:
        """Whose images are shown where no others are named."""
        first = Path(self.encoders[0])
        if not first.exists() and ":" not in str(first):
            raise ValueError(f"Inspection.encoders must name runs or encoders; got {first}, which does not exist.")
        if not (first / "config.yaml").is_file():
            raise ValueError(
                f"Inspection.images must be given where the first encoder is no run folder; got none, and {first}."
            )
        return first

    @property
    def page(self) -> Path:
        """Where the page goes."""
        if self.out is not None:
            return self.out
        folder = Path(self.encoders[0])
        if not folder.is_dir():
            raise ValueError(
                f"Inspection.out must be given where the first encoder is no run folder; got {folder}. Name one."
            )
        stem = self.stem or self.name
        return folder / "analysis" / (f"{stem}.html" if len(self.encoders) == 1 else f"{stem}-compared.html")


@dataclass(frozen=True)
class Images:
    """The images that all encoders are shown, each at its own size."""

    dataset: Dataset
    indices: np.ndarray

    @property
    def healthy(self) -> int:
        """How many of them can be read, as far as that is known."""
        return int((~np.isin(self.indices, list(self.dataset.broken_reasons()))).sum())

    def batches(self, encoder: AnyEncoder) -> Iterator[Tensor]:
        """As this encoder sees them."""
        for images, _ in images_for(encoder, self.dataset, BATCH, "cpu", self.indices):
            yield images


class LayerAnalysis(Inspection):
    """Numbers of every block, counted from 1 on pages; `chart` is how the report draws what `panels` gives."""

    chart: ClassVar[str]  # heads: a dot a head; shares: a line a singular value; map: a matrix of layers
    explained: ClassVar[str]  # what one must know to read the charts; {images} tells which were looked at

    @abstractmethod
    def measure(self, encoders: Sequence[AnyEncoder], images: Images) -> tuple[Arrays, dict[str, Any]]:
        """Arrays as `BlockFacts` has them, and what else is to be known of them."""

    @classmethod
    def caption(cls, about: dict[str, Any], images: str) -> str:
        """`explained`, of what was found."""
        return cls.explained.format_map(about | {"images": images})

    @staticmethod
    @abstractmethod
    def panels(found: BlockFacts) -> list[tuple[str, tuple[Any, ...]]]:
        """Title and arguments of each chart; axes are the same in all."""

    @staticmethod
    @abstractmethod
    def finding(found: BlockFacts) -> str:
        """What was found, in a sentence for each encoder, with its numbers."""

    @staticmethod
    @abstractmethod
    def table(found: BlockFacts) -> tuple[list[str], list[list[str]]]:
        """Headings and rows: the numbers behind the charts, a row a layer."""

    def run(self) -> BlockFacts:
        """Measure the encoders on the same images."""
        dataset = self.dataset()
        images = Images(dataset, np.sort(choose(dataset, self.count or self.usual, self.seed)))
        encoders = [load_encoder(spec).eval() for spec in self.encoders]
        for encoder in encoders:
            check_images(encoder, dataset)
        told = dict(zip(self.encoders, (collapse_warning(encoder, dataset) for encoder in encoders), strict=True))
        with torch.inference_mode():
            arrays, facts = self.measure(encoders, images)
        names = [spec if ":" in spec else Path(spec).name or spec for spec in self.encoders]
        about = {
            "analysis": self.name,
            "encoders": [
                {
                    "name": spec if names.count(name) > 1 else name,
                    "spec": spec,
                    "depth": encoder.depth if isinstance(encoder, Encoder) else encoder.num_blocks,
                    "image_size": list(encoder.image_size),
                    "grid": list(encoder.grid),
                    "num_prefix": encoder.num_prefix,
                    "sha256": hash_weights(encoder.state_dict()),
                }
                for name, spec, encoder in zip(names, self.encoders, encoders, strict=True)
            ],
            "source": dataset.spec,
            "dataset": self.whose(dataset),
            "split": dataset.split,
            "images": images.healthy,
            "seed": self.seed,
            "warnings": [f"{spec}: {warning}" for spec, warning in told.items() if warning is not None],
            **facts,
        }
        return BlockFacts(self.name, arrays, about)


class LayerMeans(LayerAnalysis):
    """Means over images of numbers of each block, encoder by encoder; the arrays that are `drawn`, by their names."""

    drawn: ClassVar[tuple[str, ...]]
    told: ClassVar[str]  # what the table has of a block

    @abstractmethod
    def sums(self, encoder: AnyEncoder, images: Tensor) -> dict[str, Tensor]:
        """Sums over a batch, so that each image counts once whatever the size of its batch."""

    @staticmethod
    @abstractmethod
    def cell(found: BlockFacts, number: int, layer: int) -> str:
        """`told`, of one layer of one encoder."""

    def measure(self, encoders: Sequence[AnyEncoder], images: Images) -> tuple[Arrays, dict[str, Any]]:
        """The arrays that `sums` names, with the number of the encoder behind the name."""
        arrays: Arrays = {}
        for number, encoder in enumerate(encoders):
            totals: dict[str, Tensor] = {}
            count = 0
            for batch in images.batches(encoder):
                for name, value in self.sums(encoder, batch).items():
                    totals[name] = totals.get(name, 0) + value
                count += len(batch)
            arrays |= {f"{name}_{number}": (total / count).numpy() for name, total in totals.items()}
        return arrays, {}

    @classmethod
    def panels(cls, found: BlockFacts) -> list[tuple[str, tuple[Any, ...]]]:
        """What is drawn of each encoder, the largest value of all, and the title."""
        drawn = [[found.of(array, number) for array in cls.drawn] for number in range(len(found.names))]
        highest = max(float(values.max()) for of_encoder in drawn for values in of_encoder)
        return [(name, (*values, highest, name)) for name, values in zip(found.names, drawn, strict=True)]

    @classmethod
    def table(cls, found: BlockFacts) -> tuple[list[str], list[list[str]]]:
        """A column an encoder, a row a layer."""
        depths = list(enumerate(found.depths))
        rows = [
            [str(layer + 1), *(cls.cell(found, number, layer) if layer < depth else "" for number, depth in depths)]
            for layer in range(max(found.depths))
        ]
        return ["block", *(f"{name}: {cls.told}" for name in found.names)], rows
