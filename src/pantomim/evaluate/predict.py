"""Predictions of a fine-tuned network for images without labels, in a file that other programs read."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from pantomim.core.files import check_out, replace_file
from pantomim.data.dataset import Broken, Contents, Dataset
from pantomim.data.decoding import is_image
from pantomim.data.sources import read_contents
from pantomim.data.stores import FileStore
from pantomim.evaluate.classification import find_head, open_classifier
from pantomim.formats.native import CLASSIFIER


@dataclass(frozen=True)
class Predicted:
    """How many images have a prediction, and which ones have an error instead."""

    num_predicted: int
    unreadable: list[Broken]


def predict(
    run: str | Path,
    images: str,
    out: Path,
    *,
    top: int = 3,
    every_class: bool = False,
    overwrite: bool = False,
    chunk: int = 256,
    device: torch.device | None = None,
) -> Predicted:
    """Write what the network of a fine-tuned run predicts for each image of a source; which network decides the file.

    Raises `ValueError` before the work if the file exists and is not to be overwritten.
    """
    folder, kind = find_head(run, tuple(PREDICTORS))
    if out.exists() and not overwrite:
        raise ValueError(f"predict.out must be a new file; got {out}, which exists. Name another, or set overwrite.")
    dataset = open_images(images)
    return PREDICTORS[kind](folder, dataset, out, top, every_class, chunk, device or torch.device("cpu"))


def open_images(spec: str) -> Dataset:
    """All images of a source, or one image file, in order; as long as one can be read, the others may be broken."""
    path = Path(spec).expanduser()
    is_picture = path.is_file() and is_image(path.name)
    contents = Contents(path.stem, FileStore(path.parent, [path.name]), {}) if is_picture else read_contents(spec)
    return Dataset(spec, "all", contents, np.arange(len(contents.store)), max_broken=1.0)


def classify(
    folder: Path, dataset: Dataset, out: Path, top: int, every_class: bool, chunk: int, device: torch.device
) -> Predicted:
    """A CSV table with a row for each image: its name, its class and the probability of that, and more.

    More are the next classes up to the `top`-th with theirs, or by `every_class` a column for each class. The last
    column has the reason why an image cannot be read; the others are empty then.
    """
    check_out("predict.out", out, [".csv"])
    trained = open_classifier(folder, device)
    classes, top = trained.classes, min(top, len(trained.classes))
    more = [name for place in range(2, top + 1) for name in (f"class_{place}", f"probability_{place}")]
    header = ["file", "class", "probability", *(classes if every_class else more), "error"]

    def cells(chances: Float[np.ndarray, " classes"]) -> list[str]:
        ranks, texts = np.argsort(-chances, kind="stable"), [f"{chance:.6f}" for chance in chances]
        best = [text for place in ranks[: 1 if every_class else top] for text in (classes[place], texts[place])]
        return [*best, *(texts if every_class else []), ""]

    rows: dict[int, list[str]] = {}
    for logits, indices in trained.logits(dataset, chunk):
        rows |= dict(zip(indices.tolist(), map(cells, logits.double().softmax(dim=1).numpy()), strict=True))
    reasons, names = dataset.broken_reasons(), dataset.names
    rows |= {index: [*[""] * (len(header) - 2), reason] for index, reason in reasons.items()}
    table = csv.writer(text := io.StringIO(newline=""))
    table.writerows([header, *([name, *rows[index]] for index, name in enumerate(names))])
    replace_file(out, text.getvalue().encode("utf-8", "surrogateescape"))  # names as the file system has them
    return Predicted(len(names) - len(reasons), dataset.broken)


PREDICTORS: dict[str, Callable[..., Predicted]] = {CLASSIFIER: classify}  # by the pair of files that a run has
