"""Data sets that other libraries open: torchvision's, and those of the Hugging Face hub."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pantomim.data.dataset import Contents
from pantomim.data.layout import SPLITS, canonical_split
from pantomim.data.stores import ArrayStore, PictureStore, Store


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
    if "train" in parameters:
        variants: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        variants = {"train": {"split": "train"}, "test": {"split": "test"}}
    else:
        variants = {"": {}}
    common = {"download": False} if "download" in parameters else {}
    try:
        parts = {split: build(root, **common, **arguments) for split, arguments in variants.items()}
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"Source.spec must be a data set that torchvision finds in {root}; got {spec!r}: {error} Fetch it with "
            f'python -c "import torchvision; torchvision.datasets.{name}({str(root)!r}, download=True)", '
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
    loaded = datasets.load_dataset(spec.partition(":")[2])
    by_split = {split: loaded[key] for key in loaded if (split := canonical_split(key))}
    parts = {split: by_split[split] for split in SPLITS if split in by_split} or {"": next(iter(loaded.values()))}
    features = next(iter(parts.values())).features
    image_column = next((key for key, value in features.items() if isinstance(value, datasets.Image)), None)
    if image_column is None:
        raise ValueError(
            f"Source.images must be a column of images; got {', '.join(features)} in {spec}. Use another set."
        )
    label_column = next((key for key, value in features.items() if isinstance(value, datasets.ClassLabel)), None)
    labels = [None if label_column is None else np.asarray(part[label_column]) for part in parts.values()]
    classes = None if label_column is None else features[label_column].names
    store = _one_after_the_other(list(parts.values()), image_column)
    return _contents(spec.rpartition("/")[2].removeprefix("hf:"), store, parts, labels, classes)


def _torchvision_labels(part: Any) -> np.ndarray | None:
    for attribute in ("targets", "labels", "_labels"):
        if (values := getattr(part, attribute, None)) is not None and len(values) == len(part):
            return np.asarray(values)
    return None


def _one_after_the_other(parts: list[Any], key: int | str) -> PictureStore:
    """The pictures of several sets; `key` is where an item of theirs holds its picture."""
    ends = np.cumsum([len(part) for part in parts])

    def fetch(position: int) -> Any:
        part = int(np.searchsorted(ends, position, side="right"))
        return parts[part][position - (int(ends[part - 1]) if part else 0)][key]

    return PictureStore(fetch, int(ends[-1]))


def _contents(
    name: str, store: Store, parts: dict[str, Any], labels: list[np.ndarray | None], classes: Sequence[str] | None
) -> Contents:
    ends = np.cumsum([0] + [len(part) for part in parts.values()])
    splits = {split: np.arange(ends[k], ends[k + 1]) for k, split in enumerate(parts) if split}
    if all(values is None for values in labels):
        return Contents(name, store, splits)
    lengths = np.diff(ends)
    ids = [np.full(n, -1) if values is None else values for n, values in zip(lengths, labels, strict=True)]
    joined = np.concatenate(ids).astype(np.int64)
    known = tuple(classes) if classes else tuple(str(number) for number in range(joined.max() + 1))
    return Contents(name, store, splits, known, joined)
