"""Predictions of a fine-tuned network for images without labels, in files that other programs read."""

import csv
import inspect
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pantomim.core.files import OWN_FOLDER, check_out, replace_file
from pantomim.core.progress import tracked
from pantomim.data.dataset import Broken, Contents, Dataset
from pantomim.data.decoding import BrokenImageError, is_image
from pantomim.data.mask_files import write_mask, write_overlay
from pantomim.data.pictures import to_photo
from pantomim.data.sources import read_contents
from pantomim.data.stores import FileStore
from pantomim.data.transforms import fitted, scaled
from pantomim.evaluate.classification import TrainedClassifier
from pantomim.evaluate.features import check_images
from pantomim.evaluate.segmenter import TrainedSegmenter
from pantomim.evaluate.trained import find_head
from pantomim.formats.native import CLASSIFIER, SEGMENTER

LOG = logging.getLogger(__name__)
ERRORS, CLASSES = "errors.csv", "classes.json"  # beside predicted masks


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
    overwrite: bool = False,
    scale: float | None = None,
    device: torch.device | None = None,
    **options: Any,
) -> Predicted:
    """Write what the network of a fine-tuned run predicts for each image of a source: `classify`, or `segment`.

    `options` are those of these two; None and False are as if they were left out. What cannot be is refused at first.
    """
    folder, kind = find_head(run, tuple(PREDICTORS))
    write = PREDICTORS[kind]
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"predict.{name} must be at least 1; got {value}.")
    if other := [name for name in given if name not in inspect.signature(write).parameters]:
        raise ValueError(
            f"predict.{other[0]} must be left out for a {kind}, which has no use for it; got {given[other[0]]} for "
            f"{run}. Leave it out."
        )
    if not overwrite and (any(out.iterdir()) if out.is_dir() and kind == SEGMENTER else out.exists()):
        rule = "a new or an empty folder" if kind == SEGMENTER else "a new file"
        raise ValueError(f"predict.out must be {rule}; got {out}, which exists. Name another, or set overwrite.")
    dataset = open_images(images, scale)
    return write(folder, dataset, out, device or torch.device("cpu"), **given)


def open_images(spec: str, scale: float | None = None) -> Dataset:
    """All images of a source, or one image file, in order; as long as one can be read, the others may be broken."""
    path = Path(spec).expanduser()
    is_picture = path.is_file() and is_image(path.name)
    contents = Contents(path.stem, FileStore(path.parent, [path.name]), {}) if is_picture else read_contents(spec)
    contents = replace(contents, scale=scale)
    if outside := contents.left_out["outside the splits"]:
        LOG.warning("%d images of %s lie outside its splits and are left out; name their own folder.", outside, spec)
    return Dataset(spec, "all", contents, np.arange(len(contents.store)), max_broken=1.0)


def classify(
    folder: Path,
    dataset: Dataset,
    out: Path,
    device: torch.device,
    *,
    top: int | None = None,
    all: bool = False,
    chunk: int = 256,
) -> Predicted:
    """A CSV table with a row for each image: its name, its class and the probability of that, and more.

    More are the next classes up to the `top`-th (3) with theirs, or by `all` a column for each class. The last column
    has the reason why an image cannot be read; the others are empty then.
    """
    check_out("predict.out", out, [".csv"])
    if all and top is not None:
        raise ValueError(f"predict.top must be left out beside predict.all; got {top}. Keep one of the two.")
    trained = TrainedClassifier.open(folder, device)
    classes, top = trained.classes, min(top or 3, len(trained.classes))
    more = [name for place in range(2, top + 1) for name in (f"class_{place}", f"probability_{place}")]
    header = ["file", "class", "probability", *(classes if all else more), "error"]

    def cells(chances: Float[np.ndarray, " classes"]) -> list[str]:
        ranks, texts = np.argsort(-chances, kind="stable"), [f"{chance:.6f}" for chance in chances]
        best = [text for place in ranks[: 1 if all else top] for text in (classes[place], texts[place])]
        return [*best, *(texts if all else []), ""]

    rows: dict[int, list[str]] = {}
    for logits, indices in trained.logits(dataset, chunk):
        rows |= dict(zip(indices.tolist(), map(cells, logits.double().softmax(dim=1).numpy()), strict=True))
    reasons, names = dataset.broken_reasons(), dataset.names
    rows |= {index: [*[""] * (len(header) - 2), reason] for index, reason in reasons.items()}
    _write_table(out, [header, *([name, *rows[index]] for index, name in enumerate(names))])
    return Predicted(len(names) - len(reasons), dataset.broken)


def segment(folder: Path, dataset: Dataset, out: Path, device: torch.device, *, overlays: bool = False) -> Predicted:
    """A folder with an indexed PNG for each image, of its name and size, whose ids are those of the training's masks.

    By `overlays` a NAME.overlay.png beside it has the classes over the image. `classes.json` names the ids, and
    `errors.csv` the images that cannot be read and why, if there are any.
    """
    trained = TrainedSegmenter.open(folder, device)
    check_images(trained.module.encoder, dataset)
    source = Path(dataset.spec).expanduser().resolve()
    taken = (source, source.parent if source.is_file() else source)
    if out.is_file() or out.suffix == ".csv" or out.resolve() in taken:
        raise ValueError(
            f"predict.out must be a folder apart from the images, as a segmenter writes a mask for each; got {out}. "
            f"Name another."
        )
    if (largest := max(trained.about["class_ids"])) > 255:
        raise ValueError(
            f"Segmenter.class_ids must be at most 255 to be written as PNG; got {largest} in {folder}. Train on masks "
            f"with smaller ids."
        )
    replace_file(out / OWN_FOLDER, b"")
    names = dataset.names
    for index, place in enumerate(tracked(mask_places(names), "masks", len(names))):
        with suppress(BrokenImageError):  # it is in `dataset.broken` then
            image = dataset.read(index)
            whole = scaled(fitted(image, trained.base), dataset.scale)[None]
            ids = trained.stored(trained.predicted(whole, image.shape[1:])[0].cpu().numpy())
            write_mask(out / f"{place}.png", ids)
            if overlays:
                write_overlay(out / f"{place}.overlay.png", to_photo(image, dataset.scale), ids)
    legend = dict(zip(trained.about["class_ids"], trained.classes, strict=True))
    replace_file(out / CLASSES, (json.dumps(legend, indent=2, ensure_ascii=False) + "\n").encode())
    (out / ERRORS).unlink(missing_ok=True)
    if broken := dataset.broken:
        _write_table(out / ERRORS, [["file", "error"], *([image.name, image.reason] for image in broken)])
    return Predicted(len(names) - len(broken), broken)


def mask_places(names: Sequence[str]) -> list[str]:
    """Where masks lie below a folder, always inside it; an ending stays where names differ in nothing else."""
    parts = [[part for part in PurePosixPath(name).parts if part != "/"] for name in names]
    inside = ["/".join("__" if part == ".." else part for part in path) for path in parts]
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in inside}
    counts = Counter(stems.values())
    return [stems[name] if counts[stems[name]] == 1 else name for name in inside]


def _write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    csv.writer(text := io.StringIO(newline="")).writerows(rows)
    replace_file(path, text.getvalue().encode("utf-8", "surrogateescape"))  # names as the file system has them


PREDICTORS: dict[str, Callable[..., Predicted]] = {CLASSIFIER: classify, SEGMENTER: segment}  # by the pair of files
