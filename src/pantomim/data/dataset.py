"""One split of a source, opened for reading."""

import contextlib
import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np

from pantomim.core.frozen import frozen
from pantomim.data.decoding import BrokenImageError, Header
from pantomim.data.layout import draw_images
from pantomim.data.scales import Scale, scale_of
from pantomim.data.stores import ArrayStore, BytesStore, Store

T = TypeVar("T")

MAX_PROBED = 2_000
MAX_BROKEN_SHARE = 0.01
NUM_HASHED = 64  # images whose pixels stand for all in `Dataset.key`


@frozen
class Facts:
    """What is known of a split before training, from headers alone (of at most 2,000 images, evenly spaced)."""

    num_images: int  # broken ones included
    channels: int
    size: tuple[int, int] | None  # (height, width) where all have the same
    median_shorter_side: int  # in pixels
    dtype: str  # number type of the files
    num_classes: int | None  # None without labels


@frozen
class Broken:
    """An image that was skipped, and why."""

    name: str
    reason: str


class TooManyBrokenError(ValueError):
    """More images of a split are broken than may be: 1 % of them, or all where some are expected to be."""


@dataclass(frozen=True)
class Contents:
    """All that a source holds: its images, its splits, class names, class ids (-1 for none)."""

    name: str
    store: Store
    splits: dict[str, np.ndarray]
    classes: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    num_ignored: int = 0  # files of other types beside the images

    def everything(self) -> np.ndarray:
        """Positions of all images, but for those outside the splits where there are splits."""
        return np.sort(np.concatenate(list(self.splits.values()))) if self.splits else np.arange(len(self.store))


class Dataset:
    """One split (train, val, test or all) of a source, opened for reading; `open_source` makes it.

    `positions` are those of the source's images that belong to the split. `labels` are class ids, int64, or None.
    Not all images may be broken, and no larger share than `max_broken`.
    """

    def __init__(
        self,
        spec: str,
        split: str,
        contents: Contents,
        positions: np.ndarray,
        *,
        max_broken: float = MAX_BROKEN_SHARE,
    ) -> None:
        self._max_broken = max_broken
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

    def subset(self, indices: np.ndarray) -> "Dataset":
        """Only these images, in this order; what is held in memory is not shared."""
        part = copy.copy(self)
        part._positions = self._positions[indices]
        part._array = part._encoded = None
        new = {int(old): index for index, old in enumerate(indices)}
        part._broken = {new[old]: broken for old, broken in self._broken.items() if old in new}
        part.labels = None if self.labels is None else self.labels[indices]
        part.facts = replace(self.facts, num_images=len(indices))
        return part

    def relabelled(self, labels: np.ndarray) -> "Dataset":
        """The same images under other class ids; an image found broken in one of the two is broken in both."""
        other = copy.copy(self)
        other.labels = labels
        return other

    def drawn(self, count: int | None) -> "Dataset":
        """A fixed draw of `count` images, as even over the classes as these allow; the same for every seed of a run."""
        return self if count is None else self.subset(draw_images(len(self), self.labels, count, seed=0))

    def part(
        self,
        images: int | None = None,
        fraction: float | None = None,
        labels_per_class: int | None = None,
        draw: int = 0,
    ) -> "Dataset":
        """All images, or the part that settings of a run ask for; at most one of three is given."""
        if images is not None:
            return self.subset(draw_images(len(self), self.labels, images, seed=draw))
        if fraction is None and labels_per_class is None:
            return self
        return self._drawn_by_class(fraction, labels_per_class, draw)

    def _drawn_by_class(self, fraction: float | None, number: int | None, draw: int) -> "Dataset":
        """A share of every class, rounded up, or so many images of every class as far as it has them."""
        if self.labels is None:
            raise ValueError(
                f"DataConfig.fraction and labels_per_class must be left out for images without labels; got them for "
                f"{self.spec}. Use images, a number of all."
            )
        order = np.random.default_rng(np.random.SeedSequence([draw, 10])).permutation(len(self))
        kept = []
        for label in np.unique(self.labels):
            rows = order[self.labels[order] == label]
            kept.append(rows[: math.ceil(fraction * len(rows) - 1e-9) if fraction is not None else number])
        return self.subset(np.sort(np.concatenate(kept)))

    def key(self) -> dict[str, Any]:
        """What identifies these images: split, count, and a hash of all names and of 64 images, evenly spaced."""
        digest = sha256("\n".join(self.names).encode())
        for index in np.unique(np.linspace(0, len(self) - 1, NUM_HASHED).astype(int)):
            found, image = self.read_healthy(int(index))
            digest.update(f"{found} {image.shape} {image.dtype};".encode() + image.tobytes())
        return {"split": self.split, "images": len(self), "sha256": digest.hexdigest()}

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.facts.channels

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of one image, from its header; raises `BrokenImageError`."""
        header = self._store.header(int(self._positions[index]))
        return header.height, header.width

    @property
    def names(self) -> list[str]:
        """Name of each image, relative to the source."""
        return [self._store.names[position] for position in self._positions]

    def name_of(self, index: int) -> str:
        """The name of one image."""
        return self._store.names[self._positions[index]]

    @property
    def broken(self) -> list[Broken]:
        """The images found unreadable so far."""
        return [self._broken[index] for index in sorted(self._broken)]

    def read(self, index: int) -> np.ndarray:
        """One image, (C, H, W), in the number type of the source.

        Raises `BrokenImageError` if it cannot be read; it is then in `broken`.
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
        return self.first_healthy(index, self.read)

    def first_healthy(self, index: int, read: Callable[[int], T]) -> tuple[int, T]:
        """The same of what `read` gives of an index; it marks what is broken, and raises `BrokenImageError`."""
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            if candidate not in self._broken:
                with contextlib.suppress(BrokenImageError):
                    return candidate, read(candidate)
        raise self._too_many_broken()

    def mark_broken(self, reasons: dict[int, str]) -> None:
        """Count images as broken, by index; raises `TooManyBrokenError` if they are too many now."""
        for index, reason in reasons.items():
            self._broken.setdefault(index, Broken(self.name_of(index), reason))
        if len(self._broken) > self._max_broken * len(self) or 0 < len(self._broken) == len(self):
            raise self._too_many_broken()

    def broken_reasons(self) -> dict[int, str]:
        """The images found unreadable so far, by index, as `mark_broken` takes them."""
        return {index: broken.reason for index, broken in self._broken.items()}

    def array(self, memory_gib: float) -> np.ndarray | None:
        """All images as one array (N, C, H, W), decoded once and kept; None if sizes differ or it needs more memory.

        The row of a broken image holds the next healthy one.
        """
        if self._array is None and self.facts.size is not None:
            shape = (len(self), self.channels, *self.facts.size)
            if math.prod(shape) * self._dtype.itemsize <= memory_gib * 2**30:
                self._array = self._decode_all(shape)
        return self._array

    def hold_encoded(self, memory_gib: float) -> bool:
        """Keep the files of this split in memory as they are; False if they do not fit."""
        if self._encoded is None:
            self._encoded = self._store.held(self._positions, int(memory_gib * 2**30))
        return self._encoded is not None

    def _decode_all(self, shape: tuple[int, ...]) -> np.ndarray | None:
        if isinstance(self._store, ArrayStore):
            whole = len(self) == len(self._store) and (np.diff(self._positions) == 1).all()
            return self._store.array if whole else self._store.array[self._positions]
        array = np.empty(shape, dtype=self._dtype)
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
        probed = (part[evenly_spaced(len(part), MAX_PROBED)] for part in (contents.everything(), self._positions))
        for position in dict.fromkeys(np.concatenate(list(probed)).tolist()):
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

    def _too_many_broken(self) -> TooManyBrokenError:
        broken = self.broken
        listed = "".join(f"\n  {item.name}: {item.reason}" for item in broken[:50])
        listed += f"\n  and {len(broken) - 50} more" if len(broken) > 50 else ""
        rule = (
            "be fewer than all" if self._max_broken == 1 else f"stay within {100 * self._max_broken:g} % of the images"
        )
        return TooManyBrokenError(
            f"Dataset.broken must {rule}; got {len(broken)} of {len(self)} in {self.spec} ({self.split}). "
            f"Repair or remove these files:{listed}"
        )


def num_threads() -> int:
    """Threads for decoding: those that this process may use, at most 16."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def evenly_spaced(length: int, most: int) -> np.ndarray:
    """At most so many indices of a sequence, evenly spaced, the first and the last among them."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(np.int64)


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
        f"Name a sub folder that holds images of one kind, or list the right files in a .txt."
    )
