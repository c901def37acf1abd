"""Opening images by name: a folder, a zip, an .npz, a list of files, an embedded set, or another library's set.

| spec | what it is |
|---|---|
| `mnist` | an embedded set, see `embedded`; a folder of that name is `./mnist` |
| `FOLDER` | images at any depth; see `layout` for splits and classes |
| `FILE.zip`, `FILE.zip/inner/folder` | the same, read in place |
| `FILE.npz` | `images` (N, H, W), (N, C, H, W) or (N, H, W, C); optionally `labels`, and `split` of train/val/test |
| `FILE.txt` | one file a line, relative to the list; optionally a tab (or a space) and its class; `#` is a comment |
| `torchvision:CIFAR10` | `torchvision.datasets.CIFAR10` in the folder `PANTOMIM_DATA`, else `./data`; no download |
| `hf:NAME` | a data set of the Hugging Face hub, with the extra `pantomim[hf]` |

Pre-training reads the split train, and class ids come from train. A source without splits is divided once and for all,
80 % train and 20 % test (stratified by class, fixed by the seed): pre-training sees the 80 %, so that an evaluation on
the same source stays honest. `split="all"` takes everything.

All images of a source have one number of channels and one number type. Only 8-bit gray and RGB may be mixed: gray ones
are then replicated to RGB. Files of other types are ignored and counted.
"""

import inspect
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pantomim.data.decoding import BrokenImageError, Header, is_image
from pantomim.data.embedded import EMBEDDED
from pantomim.data.layout import SPLITS, canonical_split, divide, read_layout
from pantomim.data.scales import Scale, scale_of
from pantomim.data.stores import ArrayStore, BytesStore, FileStore, PictureStore, Store, ZipStore
from pantomim.frozen import frozen

MAX_PROBED = 2_000
MAX_BROKEN_SHARE = 0.01
LIST_SUFFIXES = (".txt", ".lst", ".tsv")


@frozen
class Facts:
    """What is known of a split before training, from headers alone (of at most 2,000 images, evenly spaced).

    Args:
        num_images: Images in the split, broken ones included.
        channels: Of every image.
        size: (height, width) where all have the same, else None.
        median_shorter_side: In pixels.
        dtype: Number type of the files.
        num_classes: None without labels.
    """

    num_images: int
    channels: int
    size: tuple[int, int] | None
    median_shorter_side: int
    dtype: str
    num_classes: int | None


@frozen
class Broken:
    """An image that was skipped, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Contents:
    """All that a source holds: its images, the splits of its own, class names, class ids (-1 for none)."""

    name: str
    store: Store
    splits: dict[str, np.ndarray]
    classes: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    num_ignored: int = 0


class Dataset:
    """One split of a source, opened for reading; `open_source` makes it.

    Args:
        spec: What was opened.
        split: train, val, test or all.
        contents: The source.
        positions: Those of its images that belong to the split.

    Attributes:
        name: Short, for files.
        labels: Class ids, int64, or None.
        num_ignored: Files of other types beside the images.
    """

    def __init__(self, spec: str, split: str, contents: Contents, positions: np.ndarray) -> None:
        self.spec = spec
        self.split = split
        self.name = contents.name
        self.num_ignored = contents.num_ignored
        self._store = contents.store
        self._positions = positions
        self._array: np.ndarray | None = None
        self._encoded: BytesStore | None = None
        self._broken: dict[int, Broken] = {}
        labels = None if contents.labels is None else contents.labels[positions]
        self.labels: np.ndarray | None = None if labels is None or (labels < 0).any() else labels
        self.classes = contents.classes if self.labels is not None else None
        self.facts = self._probe(contents)
        self._dtype = np.dtype(self.facts.dtype)
        self.scale: Scale = scale_of(self.facts.dtype)

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"Dataset({self.spec!r}, split={self.split!r}, {len(self)} images)"

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.facts.channels

    @property
    def names(self) -> list[str]:
        """Name of each image, relative to the source."""
        return [self._store.names[position] for position in self._positions]

    @property
    def broken(self) -> list[Broken]:
        """The images found unreadable so far."""
        return [self._broken[index] for index in sorted(self._broken)]

    def read(self, index: int) -> np.ndarray:
        """One image, (C, H, W), in the number type of the source.

        Raises:
            BrokenImageError: if it cannot be read; it is then in `broken`.
            ValueError: if more than 1 % of the images are broken.
        """
        if self._array is not None and index not in self._broken:
            return self._array[index]
        try:
            if self._encoded is not None:
                return self._conform(self._encoded.decode(index))
            return self._conform(self._store.decode(int(self._positions[index])))
        except BrokenImageError as error:
            self.mark_broken({index: str(error)})
            raise

    def read_healthy(self, index: int) -> tuple[int, np.ndarray]:
        """The image of this index or, if it is broken, of the next index whose image is not; and that index."""
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            if candidate in self._broken:
                continue
            try:
                return candidate, self.read(candidate)
            except BrokenImageError:
                continue
        raise self._too_many_broken()

    def mark_broken(self, reasons: dict[int, str]) -> None:
        """Count images as broken, by index.

        Raises:
            ValueError: if more than 1 % of the images are broken now; it lists them.
        """
        for index, reason in reasons.items():
            self._broken.setdefault(index, Broken(self._store.names[self._positions[index]], reason))
        if len(self._broken) > MAX_BROKEN_SHARE * len(self):
            raise self._too_many_broken()

    def broken_reasons(self) -> dict[int, str]:
        """The images found unreadable so far, by index, as `mark_broken` takes them."""
        return {index: broken.reason for index, broken in self._broken.items()}

    def array(self, memory_gib: float) -> np.ndarray | None:
        """All images as one array (N, C, H, W), decoded once and kept; None if sizes differ or it needs more memory.

        The row of a broken image holds the next healthy one.
        """
        if self._array is None and self._fits(memory_gib):
            self._array = self._decode_all()
        return self._array

    def hold_encoded(self, memory_gib: float) -> bool:
        """Keep the files of this split in memory as they are; says whether they fit."""
        if self._encoded is None:
            self._encoded = self._store.held(self._positions, int(memory_gib * 2**30))
        return self._encoded is not None

    def _fits(self, memory_gib: float) -> bool:
        if self.facts.size is None:
            return False
        item = np.dtype(self.facts.dtype).itemsize * self.channels * self.facts.size[0] * self.facts.size[1]
        return item * len(self) <= memory_gib * 2**30

    def _decode_all(self) -> np.ndarray | None:
        if isinstance(self._store, ArrayStore):
            whole = len(self) == len(self._store) and (np.diff(self._positions) == 1).all()
            return self._store.array if whole else self._store.array[self._positions]
        assert self.facts.size is not None
        array = np.empty((len(self), self.channels, *self.facts.size), dtype=self.facts.dtype)
        chunks = np.array_split(np.arange(len(self)), max(1, len(self) // 256))
        with ThreadPoolExecutor(num_threads()) as threads:
            if not all(threads.map(lambda chunk: self._decode_into(array, chunk), chunks)):
                return None
        for index in sorted(self._broken):
            array[index] = self.read_healthy(index)[1]
        return array

    def _decode_into(self, array: np.ndarray, indices: np.ndarray) -> bool:
        """Decode these images into their rows; False if one has another size than the probed ones."""
        for index in indices:
            try:
                image = self.read(int(index))
            except BrokenImageError:
                continue
            if image.shape != array.shape[1:]:
                return False
            array[index] = image
        return True

    def _conform(self, image: np.ndarray) -> np.ndarray:
        """Replicate gray in a colour set; refuse what does not belong in the set."""
        if image.dtype != self._dtype:
            raise BrokenImageError(f"is {image.dtype.name} in a set of {self.facts.dtype}")
        if min(image.shape) < 1:
            raise BrokenImageError(f"is empty: shape {image.shape}")
        if len(image) == self.channels:
            return image
        if len(image) == 1 and self.channels == 3 and image.dtype == np.uint8:
            return np.repeat(image, 3, axis=0)
        raise BrokenImageError(f"has {len(image)} channels in a set of {self.channels}")

    def _probe(self, contents: Contents) -> Facts:
        """Facts of the split; channels and number type are those of the whole source, so that splits cannot differ."""
        headers: dict[int, Header] = {}
        reasons: dict[int, str] = {}
        everything = (
            np.concatenate(list(contents.splits.values())) if contents.splits else np.arange(len(contents.store))
        )
        for position in _evenly(np.sort(everything)) + _evenly(self._positions):
            if position in headers or position in reasons:
                continue
            try:
                headers[position] = contents.store.header(position)
            except BrokenImageError as error:
                reasons[position] = str(error)
        mine = {int(position): index for index, position in enumerate(self._positions)}
        self.mark_broken({mine[position]: reason for position, reason in reasons.items() if position in mine})
        channels, dtype = _common_kind(headers.values(), self.spec)
        sides = [(header.height, header.width) for position, header in headers.items() if position in mine]
        return Facts(
            num_images=len(self),
            channels=channels,
            size=sides[0] if len(set(sides)) == 1 else None,
            median_shorter_side=int(np.median([min(side) for side in sides])),
            dtype=dtype,
            num_classes=None if self.classes is None else len(self.classes),
        )

    def _too_many_broken(self) -> ValueError:
        broken = self.broken
        listed = "".join(f"\n  {item.name}: {item.reason}" for item in broken[:50])
        more = f"\n  and {len(broken) - 50} more" if len(broken) > 50 else ""
        return ValueError(
            f"Dataset.broken must stay within 1 % of the images; got {len(broken)} of {len(self)} in {self.spec} "
            f"({self.split}). Repair or remove these files:{listed}{more}"
        )


def open_source(spec: str, split: str = "train", *, seed: int = 0) -> Dataset:
    """Open one split of a source.

    Args:
        spec: See the table in this module's first lines.
        split: train, val, test, or all. A source without splits of its own has train (a fixed 80 %) and test (20 %).
        seed: Of that division.

    Raises:
        ValueError: if there is no such source or split, if it holds no images, if its images differ in channels or
            number type, or if more than 1 % of them are found broken.
    """
    contents = read_contents(spec)
    if split == "all":
        found = (
            np.sort(np.concatenate(list(contents.splits.values())))
            if contents.splits
            else np.arange(len(contents.store))
        )
        return Dataset(spec, split, contents, found)
    parts = contents.splits or divide(len(contents.store), contents.labels, seed=seed)
    if split not in parts or not len(parts[split]):
        have = ", ".join(name for name, rows in parts.items() if len(rows))
        raise ValueError(
            f"Source.split must be one that {spec} has; got {split!r}. It has {have}, and all for everything."
        )
    return Dataset(spec, split, contents, parts[split])


def splits(spec: str) -> tuple[str, ...]:
    """The splits that a source has of its own, in the order train, val, test; () if it has none."""
    return tuple(read_contents(spec).splits)


def num_threads() -> int:
    """Threads for decoding: those that this process may use, at most 16."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def read_contents(spec: str) -> Contents:
    """List what a source holds; reads no images."""
    if spec in EMBEDDED:
        embedded = EMBEDDED[spec]()
        store = ArrayStore(embedded.images, spec=spec)
        return Contents(spec, store, embedded.splits, embedded.classes, embedded.labels)
    if spec.startswith("torchvision:"):
        return _torchvision(spec)
    if spec.startswith("hf:"):
        return _hugging_face(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, spec)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".zip":
            return _zip(path, "", spec)
        if suffix == ".npz":
            return _npz(path, spec)
        if suffix in LIST_SUFFIXES:
            return _list(path, spec)
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return _zip(parent, path.relative_to(parent).as_posix() + "/", spec)
    raise ValueError(
        f"Source.spec must be a folder, a .zip, an .npz, a list of files (.txt), {', '.join(EMBEDDED)}, "
        f"torchvision:NAME or hf:NAME; got {spec!r}, which is none of these. Check the path."
    )


def _evenly(positions: np.ndarray) -> list[int]:
    """At most `MAX_PROBED` of these positions, evenly spaced, the first and the last among them."""
    count = min(len(positions), MAX_PROBED)
    return [int(position) for position in positions[np.linspace(0, len(positions) - 1, count).round().astype(int)]]


def _common_kind(headers: Iterable[Header], spec: str) -> tuple[int, str]:
    """The number of channels and the number type that all images share."""
    kinds = Counter((header.channels, header.dtype) for header in headers)
    if set(kinds) == {(1, "uint8"), (3, "uint8")}:
        return 3, "uint8"
    if len(kinds) == 1:
        return next(iter(kinds))
    counts = ", ".join(f"{count} of {channels} x {dtype}" for (channels, dtype), count in sorted(kinds.items()))
    raise ValueError(
        f"Source.images must share one number of channels and one number type; got {counts} in {spec}. "
        f"Name a sub folder that holds images of one kind, or list the wanted files in a .txt."
    )


def _named_contents(name: str, spec: str, store: Store, layout_names: Sequence[str], num_ignored: int) -> Contents:
    if not len(store):
        raise ValueError(
            f"Source.spec must hold images; got {spec} with none, and {num_ignored} other files. "
            f"Give a folder of JPEG, PNG, TIFF, WebP, BMP, GIF, PNM or .npy files."
        )
    layout = read_layout(layout_names, spec)
    num_ignored += layout.num_outside
    return Contents(name, store, layout.splits, layout.classes, layout.labels, num_ignored)


def _folder(root: Path, spec: str) -> Contents:
    names, num_ignored = [], 0
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        inner = Path(folder).relative_to(root)
        images = [(inner / file).as_posix() for file in files if is_image(file)]
        names += images
        num_ignored += len(files) - len(images)
    names.sort()
    return _named_contents(root.resolve().name, spec, FileStore(root, names), names, num_ignored)


def _zip(path: Path, inner: str, spec: str) -> Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and m.filename.startswith(inner)]
    except zipfile.BadZipFile as error:
        raise ValueError(f"Source.spec must be a readable zip; got {path}: {error}. Fetch or pack it again.") from error
    kept = [m for m in members if is_image(m.filename) and not m.filename.startswith("__MACOSX/")]
    kept.sort(key=lambda member: member.filename)
    names = [member.filename[len(inner) :] for member in kept]
    name = inner.rstrip("/").rsplit("/", 1)[-1] if inner else path.stem
    return _named_contents(name, spec, ZipStore(path, kept, names), names, len(members) - len(kept))


def _list(path: Path, spec: str) -> Contents:
    entries = [entry for line in path.read_text().splitlines() if (entry := _list_entry(line))]
    names = [name for name, _ in entries]
    given = [label for _, label in entries]
    if not names:
        raise ValueError(f"Source.spec must list at least one image; got none in {spec}. Write one file a line.")
    if any(given) and not all(given):
        bare = names[given.index(None)]
        raise ValueError(
            f"Source.labels must be given for all or none; got none for {bare} in {spec}. Complete the list."
        )
    store = FileStore(path.parent, names)
    if not all(given):
        return Contents(path.stem, store, {})
    classes, labels = np.unique(np.asarray(given, dtype=str), return_inverse=True)
    return Contents(path.stem, store, {}, tuple(classes.tolist()), labels.astype(np.int64))


def _list_entry(line: str) -> tuple[str, str | None] | None:
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    for separator in ("\t", " "):
        name, found, label = line.rpartition(separator)
        if found and is_image(name.strip()):
            return name.strip(), label.strip()
    return line, None


def _npz(path: Path, spec: str) -> Contents:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "images" not in arrays.files:
                raise ValueError(
                    f"Source.images must be an array of the .npz; got {', '.join(arrays.files)} in {spec}. "
                    f"Save it as np.savez(file, images=..., labels=..., split=...)."
                )
            images = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays.files else None
            split = arrays["split"] if "split" in arrays.files else None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"Source.spec must be a readable .npz; got {spec}: {error}. Save it again.") from error
    store = ArrayStore(images, spec=spec)
    for name, values in (("labels", labels), ("split", split)):
        if values is not None and values.shape != (len(images),):
            raise ValueError(
                f"Source.{name} must have one value an image; got shape {values.shape} for {len(images)} images "
                f"in {spec}. Give an array of shape ({len(images)},)."
            )
    parts = {} if split is None else _split_array(split, spec)
    if labels is None:
        return Contents(path.stem, store, parts)
    classes, ids = _class_ids(labels, parts.get("train"), spec)
    return Contents(path.stem, store, parts, classes, ids)


def _split_array(values: np.ndarray, spec: str) -> dict[str, np.ndarray]:
    names = {str(value): canonical_split(str(value)) for value in np.unique(values.astype(str))}
    unknown = [name for name, split in names.items() if split is None]
    if unknown:
        raise ValueError(
            f"Source.split must hold train, val and test; got {', '.join(unknown[:5])} in {spec}. Rename them."
        )
    canonical = np.asarray([names[str(value)] for value in values.astype(str)])
    return {split: np.flatnonzero(canonical == split) for split in SPLITS if (canonical == split).any()}


def _class_ids(values: np.ndarray, train: np.ndarray | None, spec: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names in order, and class ids; the classes are those that occur in train."""
    known = np.unique(values if train is None else values[train])
    ids = np.searchsorted(known, values).clip(max=len(known) - 1)
    if (unknown := np.unique(values[known[ids] != values])).size:
        raise ValueError(
            f"Source.labels must be classes of train; got {unknown[:10].tolist()} in {spec}. Remove those images."
        )
    return tuple(str(value) for value in known.tolist()), ids.astype(np.int64)


def _torchvision(spec: str) -> Contents:
    from torchvision import datasets

    name = spec.partition(":")[2]
    kind: Any = getattr(datasets, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, datasets.VisionDataset):
        raise ValueError(
            f"Source.spec must name a class of torchvision.datasets; got {spec!r}. Try torchvision:CIFAR10."
        )
    root = Path(os.environ.get("PANTOMIM_DATA", "data"))
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        variants: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        variants = {"train": {"split": "train"}, "test": {"split": "test"}}
    else:
        variants = {"": {}}
    common = {"download": False} if "download" in parameters else {}
    try:
        parts = {split: kind(root, **common, **arguments) for split, arguments in variants.items()}
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"Source.spec must be a data set that torchvision finds in {root}; got {spec!r}: {error} Fetch it with "
            f'python -c "import torchvision; torchvision.datasets.{name}({str(root)!r}, download=True)", '
            f"or set PANTOMIM_DATA to the folder that holds it."
        ) from error
    return _joined(spec, name.lower(), parts, [_torchvision_labels(part) for part in parts.values()])


def _torchvision_labels(part: Any) -> np.ndarray | None:
    for attribute in ("targets", "labels", "_labels"):
        if (values := getattr(part, attribute, None)) is not None and len(values) == len(part):
            return np.asarray(values, dtype=np.int64)
    return None


def _joined(spec: str, name: str, parts: dict[str, Any], labels: list[np.ndarray | None]) -> Contents:
    """Splits of another library put one after the other."""
    ends = np.cumsum([0] + [len(part) for part in parts.values()])
    rows = {split: np.arange(ends[k], ends[k + 1]) for k, split in enumerate(parts) if split}
    ids = np.concatenate([np.full(len(p), -1) if v is None else v for p, v in zip(parts.values(), labels, strict=True)])
    first = next(iter(parts.values()))
    names = getattr(first, "classes", None)
    known = ids.max(initial=-1) >= 0
    classes = tuple(names) if known and names else tuple(str(k) for k in range(ids.max() + 1)) if known else None
    arrays = [getattr(part, "data", None) for part in parts.values()]
    store: Store
    if all(
        getattr(array, "ndim", 0) in (3, 4) and len(array) == len(p)
        for array, p in zip(arrays, parts.values(), strict=True)
    ):
        store = ArrayStore(np.concatenate([np.asarray(array) for array in arrays]), spec=spec)
    else:
        sets = list(parts.values())

        def fetch(position: int) -> Any:
            part = int(np.searchsorted(ends, position, side="right")) - 1
            return sets[part][position - int(ends[part])][0]

        store = PictureStore(fetch, int(ends[-1]))
    return Contents(name, store, rows, classes, ids.astype(np.int64) if known else None)


def _hugging_face(spec: str) -> Contents:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"Source.spec must be readable here; got {spec!r}. Run `pip install pantomim[hf]` first."
        ) from error
    loaded = datasets.load_dataset(spec.partition(":")[2])
    parts = {split: loaded[key] for key in loaded if (split := canonical_split(key))}
    parts = {split: parts[split] for split in SPLITS if split in parts} or {"": next(iter(loaded.values()))}
    features = next(iter(parts.values())).features
    image_column = _column(features, datasets.Image, spec)
    label_column = next((key for key, value in features.items() if isinstance(value, datasets.ClassLabel)), None)
    sets = list(parts.values())
    ends = np.cumsum([0] + [len(part) for part in sets])

    def fetch(position: int) -> Any:
        part = int(np.searchsorted(ends, position, side="right")) - 1
        return sets[part][position - int(ends[part])][image_column]

    rows = {split: np.arange(ends[k], ends[k + 1]) for k, split in enumerate(parts) if split}
    store = PictureStore(fetch, int(ends[-1]))
    name = spec.rstrip("/").rpartition("/")[2].removeprefix("hf:")
    if label_column is None:
        return Contents(name, store, rows)
    ids = np.concatenate([np.asarray(part[label_column], dtype=np.int64) for part in sets])
    return Contents(name, store, rows, tuple(features[label_column].names), ids)


def _column(features: Any, kind: type, spec: str) -> str:
    for key, value in features.items():
        if isinstance(value, kind):
            return str(key)
    raise ValueError(
        f"Source.images must be a column of images; got {', '.join(features)} in {spec}. Choose another set."
    )
