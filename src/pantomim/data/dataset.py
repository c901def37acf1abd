"""One split of a source, opened for reading."""

import contextlib
import copy
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np

from pantomim.core.files import cache_folder, replace_file
from pantomim.core.frozen import frozen
from pantomim.core.machine import num_cores
from pantomim.core.scales import Scale, scale_of
from pantomim.data.decoding import BrokenImageError, Header
from pantomim.data.identity import Identity
from pantomim.data.layout import draw_images, read_layout
from pantomim.data.names import common_folder, count_left_out, readable, sift
from pantomim.data.stores import ArrayStore, BytesStore, Parts, Store

T = TypeVar("T")

MAX_PROBED = 2_000
MAX_PARTS = 32  # that are read for a look at a source
MAX_BROKEN_SHARE = 0.01
MAX_LISTED = 50  # broken images in a message; more are listed in a file
MAX_LOOK_S = 60


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
    left_out: Counter[str] = field(default_factory=Counter)  # files that are no images of it, by reason
    problem: str = ""  # why the labels cannot be used, although some are there
    scale: float | None = None  # the stored value that becomes 1, where the user says it

    def identity(self) -> Identity:
        """Name, size and class of each image."""
        return Identity.of(self.store, np.arange(len(self.store)), self.classes, self.labels)

    @classmethod
    def arranged(
        cls,
        name: str,
        spec: str,
        raw: Sequence[str],
        open_store: Callable[[list[int], list[str]], Store],
        columns: Mapping[str, Sequence[str]] | None = None,
        *,
        classes: tuple[str, ...] | None = None,
        left_out: Counter[str] | None = None,
        same: Mapping[int, tuple[bool, Hashable]] | None = None,
        listed: bool = False,
    ) -> "Contents":
        """What names are and mean, whatever the source; `open_store` takes rows and names, the rest `read_layout`."""
        names = [readable(each) for each in raw]
        common = len(common_folder(names)) if listed else 0
        inside = [each[common:] for each in names]
        rows, others = sift(inside, listed=listed)
        left_out = others + (left_out or Counter())
        if not rows:
            raise ValueError(
                f"Source.spec must hold images; got {spec} with none, and {count_left_out(left_out)}. "
                f"Give a folder of JPEG, PNG, TIFF, WebP, BMP, GIF, PNM or .npy files."
            )
        chosen = {kind: [column[row] for row in rows] for kind, column in (columns or {}).items()}
        twins = {place: same[row] for place, row in enumerate(rows) if row in same} if same else None
        layout = read_layout([inside[row] for row in rows], spec, chosen, classes=classes, same=twins)
        used = [rows[place] for place in layout.rows]
        store, left_out = open_store(used, [names[row] for row in used]), left_out + layout.left_out
        return cls(readable(name), store, layout.splits, layout.classes, layout.labels, left_out, layout.problem)


class Dataset:
    """One split (train, val, test or all) of a source, opened for reading; `open_source` makes it.

    `positions` are those of the source's images that belong to the split. `labels` are class ids, int64, -1 for an
    image without one (see `labelled`), or None.
    Not all images may be broken, and no larger share than `max_broken`.
    """

    def __init__(
        self, spec: str, split: str, contents: Contents, positions: np.ndarray, *, max_broken: float = MAX_BROKEN_SHARE
    ) -> None:
        self.spec, self.split, self.name, self.left_out = spec, split, contents.name, contents.left_out
        self._max_broken, self._problem = max_broken, contents.problem
        self._store, self._positions = contents.store, positions
        self._array: np.ndarray | None = None
        self._encoded: BytesStore | None = None
        self._broken: dict[int, Broken] = {}
        labels = None if contents.labels is None else contents.labels[positions]
        self.labels: np.ndarray | None = None if labels is None or (labels < 0).all() else labels
        self.classes = contents.classes if self.labels is not None else None
        self.facts, reasons = self._probe(contents)
        self.mark_broken(reasons)
        self._dtype = np.dtype(self.facts.dtype)
        self.scale: Scale = scale_of(self.facts.dtype, contents.scale)

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

    def labelled(self) -> "Dataset":
        """Without images that have no label; all, where none has one. `ValueError` where labels cannot be used."""
        if self._problem:
            raise ValueError(self._problem)
        if self.labels is None or (self.labels >= 0).all():
            return self
        return self.subset(np.flatnonzero(self.labels >= 0))

    def part(
        self,
        images: int | None = None,
        fraction: float | None = None,
        labels_per_class: int | None = None,
        draw: int = 0,
    ) -> "Dataset":
        """All, or a fixed draw: so many `images`, even over classes; a share of each class; or so many of each."""
        if images is not None:
            return self.subset(draw_images(len(self), self.labels, images, seed=draw))
        if fraction is None and labels_per_class is None:
            return self
        if self.labels is None:
            raise ValueError(
                f"DataConfig.fraction and labels_per_class must be left out for images without labels; got them for "
                f"{self.spec}. Use images, a number of all."
            )
        order = np.random.default_rng(np.random.SeedSequence([draw, 10])).permutation(len(self))
        kept = []
        for label in np.unique(self.labels):
            rows = order[self.labels[order] == label]
            kept.append(rows[: labels_per_class if fraction is None else math.ceil(fraction * len(rows) - 1e-9)])
        return self.subset(np.sort(np.concatenate(kept)))

    def identity(self) -> Identity:
        """Name, size and class of each image."""
        return Identity.of(self._store, self._positions, self.classes, self.labels)

    def key(self) -> dict[str, Any]:
        """What identifies these images: split, count, and a hash of the name, size and class of each."""
        return {"split": self.split, **self.identity().key}

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.facts.channels

    @property
    def parts(self) -> Parts | None:
        """Those of the source's parts in which these images lie, by index."""
        parts = self._store.parts
        return None if parts is None else Parts(parts.of_image[self._positions], parts.at_once)

    def spread(self, most: int) -> np.ndarray:
        """At most so many indices, evenly spaced, to look at."""
        return evenly_spaced(len(self), most, self.parts)

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
        """One image, (C, H, W), in the source's number type; raises `BrokenImageError`, and it is then in `broken`."""
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
        """All images (N, C, H, W), broken ones as the next healthy; None if sizes differ or memory is short."""
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

    def _probe(self, contents: Contents) -> tuple[Facts, dict[int, str]]:
        """Facts of the split, and what is broken; channels and number type are those of the whole source."""
        headers: dict[int, Header] = {}
        reasons: dict[int, str] = {}
        whole = np.arange(len(contents.store))
        probed = (
            whole[evenly_spaced(len(whole), MAX_PROBED, contents.store.parts)],
            self._positions[self.spread(MAX_PROBED)],
        )
        for position in dict.fromkeys(np.concatenate(probed).tolist()):
            try:
                headers[position] = contents.store.header(position)
            except BrokenImageError as error:
                reasons[position] = str(error)
        mine = {int(position): index for index, position in enumerate(self._positions)}
        if not any(position in mine for position in headers):
            self.mark_broken({mine[position]: reason for position, reason in reasons.items() if position in mine})
        channels, dtype, odd = _common_kind(headers, contents.store.names, self.spec, self._max_broken)
        reasons |= odd
        sides = [(header.height, header.width) for position, header in headers.items() if position in mine.keys() - odd]
        size, shorter = sides[0] if len(set(sides)) == 1 else None, int(np.median([min(side) for side in sides]))
        num_classes = None if self.classes is None else len(self.classes)
        facts = Facts(len(self), channels, size, shorter, dtype, num_classes)
        return facts, {mine[position]: reason for position, reason in reasons.items() if position in mine}

    def _too_many_broken(self) -> TooManyBrokenError:
        found, own, place = self._look_for_broken(), set(self._positions.tolist()), ""
        broken, ours = [found[position] for position in sorted(found)], len(found.keys() & own)
        if len(broken) > MAX_LISTED:
            lines = "".join(f"{item.name}\t{item.reason}\n" for item in broken).encode("utf-8", "surrogateescape")
            file = cache_folder() / "broken" / f"{sha256(lines).hexdigest()[:12]}.txt"
            with contextlib.suppress(OSError):
                replace_file(file, lines)
                place = f"; all of them are listed in {file}"
        listed = "".join(f"\n  {item.name}: {item.reason}" for item in broken[:MAX_LISTED])
        listed += f"\n  and {len(broken) - MAX_LISTED} more{place}" if len(broken) > MAX_LISTED else ""
        rule = (
            "be fewer than all" if self._max_broken == 1 else f"stay within {100 * self._max_broken:g} % of the images"
        )
        more = f", and {len(broken) - ours} beyond these" if len(broken) > ours else ""
        return TooManyBrokenError(
            f"Dataset.broken must {rule}; got {ours} of {len(self)} in {self.spec} ({self.split}){more}. "
            f"Repair or remove these files:{listed}"
        )

    def _look_for_broken(self) -> dict[int, Broken]:
        """What is broken in the source by position, other splits too, as far as a minute goes; no worker looks."""
        until = time.monotonic() + (MAX_LOOK_S if multiprocessing.parent_process() is None else 0)
        found = {int(self._positions[index]): broken for index, broken in self._broken.items()}

        def look(position: int) -> None:
            if position not in found and time.monotonic() < until:
                try:
                    self._store.decode(position)
                except BrokenImageError as error:
                    found[position] = Broken(self._store.names[position], str(error))

        own_first = dict.fromkeys([*self._positions.tolist(), *range(len(self._store))])
        with ThreadPoolExecutor(num_threads()) as threads:
            list(threads.map(look, own_first))
        return found


def num_threads() -> int:
    """Threads for decoding: this process's share of those that it may use beside others of its run, at most 16."""
    return max(1, min(16, num_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))))  # set by torchrun


def evenly_spaced(length: int, most: int, parts: Parts | None = None) -> np.ndarray:
    """At most so many indices of a sequence, evenly spaced, the first and the last among them; in few of its parts."""
    if parts is not None:
        known = np.unique(parts.of_image)
        inside = np.flatnonzero(np.isin(parts.of_image, known[evenly_spaced(len(known), MAX_PARTS)]))
        return inside[evenly_spaced(len(inside), most)]
    return np.linspace(0, length - 1, min(length, most)).round().astype(np.int64)


def _common_kind(
    headers: dict[int, Header], names: Sequence[str], spec: str, max_broken: float
) -> tuple[int, str, dict[int, str]]:
    """The number of channels and the number type of most images, and what is wrong with each of the few others."""
    kinds = {position: (header.channels, header.dtype) for position, header in headers.items()}
    if (3, "uint8") in kinds.values():  # in such a set gray images are replicated
        kinds = {position: (3, "uint8") if kind == (1, "uint8") else kind for position, kind in kinds.items()}
    counts = Counter(kinds.values())
    common = counts.most_common(1)[0][0]
    odd = {position: kind for position, kind in kinds.items() if kind != common}
    if len(odd) > max_broken * len(headers):
        told = ", ".join(f"{count} of {channels} x {dtype}" for (channels, dtype), count in sorted(counts.items()))
        raise ValueError(
            f"Source.images must share one number of channels and one number type; got {told} in {spec}, the rarer "
            f"ones among them {', '.join(names[position] for position in list(odd)[:5])}. Name a sub folder that holds "
            f"images of one kind, or list the right files in a .txt."
        )
    return *common, {
        position: f"is {channels} x {dtype} in a set of {common[0]} x {common[1]}"
        for position, (channels, dtype) in odd.items()
    }
