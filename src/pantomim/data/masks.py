"""Class ids for every pixel, beside the images of a source; the layout is that of docs/data.md, "Images with masks"."""

import json
import zipfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pantomim.core.batch import IGNORE
from pantomim.data.dataset import Contents, Dataset, num_threads
from pantomim.data.decoding import BrokenImageError
from pantomim.data.identity import Identity
from pantomim.data.layout import part_names
from pantomim.data.names import is_system
from pantomim.data.sources import browse, open_split, read_arrays, read_contents
from pantomim.data.stores import ArrayStore, Store
from pantomim.data.transforms import centred_boxes, nearest_pixels

ADE20K = ("annotations", "objectInfo150.txt")  # its folder of masks, and the names of its classes


@dataclass(frozen=True)
class Masks:
    """A source's masks, by the names of its images; ids are those of the files or, with `reduce_zero`, one less."""

    name: str  # of their folder or array
    ignore: int  # the id of pixels that have no class, in the files and here
    names: dict[int, str]  # of all classes, by id; empty where the source has no list of them
    store: Store
    positions: dict[str, int]  # in the store, by the name of an image without its ending
    reduce_zero: bool = False  # 0 in the files is no class, as in ADE20K
    palette: bytes = b""  # red, green and blue of each id in the files, where the first one says

    def read(self, image: str) -> Int[np.ndarray, "H W"]:
        """The mask of the image of this name; raises `BrokenImageError`, also where there is none."""
        position = self.positions.get(_stem(image))
        if position is None:
            raise BrokenImageError(f"has no mask in {self.name}")
        try:
            mask, palette = self.store.decode_mask(position)
            self._check_colours(mask, palette)
        except BrokenImageError as error:
            raise BrokenImageError(f"has a mask in {self.name} that {error}") from error
        if not self.reduce_zero:
            return mask
        return np.where((mask == 0) | (mask == self.ignore), self.ignore, mask.astype(np.int32) - 1)

    def numbered(self, image: str, size: tuple[int, ...]) -> UInt8[np.ndarray, "H W"]:
        """An image's mask as class numbers, `IGNORE` where there is none; `BrokenImageError` if size or ids misfit."""
        mask = self.read(image)
        numbers = self._numbers[mask.clip(-1, len(self._numbers) - 1)]
        if reason := self._misfit(mask.shape, size, _distinct(mask[numbers == IGNORE])):
            raise BrokenImageError(reason)
        return numbers

    def read_pair(self, dataset: Dataset, index: int) -> tuple[np.ndarray, UInt8[np.ndarray, "H W"]]:
        """An image of a split and its mask as `numbered` has it; where either is broken, as `Dataset.read`."""
        image = dataset.read(index)
        try:
            return image, self.numbered(dataset.name_of(index), image.shape[1:])
        except BrokenImageError as error:
            dataset.mark_broken({index: str(error)})
            raise

    def stem(self, name: str) -> str:
        """What an image and the file of its mask have in common."""
        return _stem(name.removeprefix(f"{self.name}/"))

    def identity(self, images: Iterable[str]) -> Identity:
        """Name and size of the mask of each of these images that has one."""
        places = [self.positions[stem] for image in images if (stem := _stem(image)) in self.positions]
        found = Identity.of(self.store, np.asarray(places, dtype=np.int64), None, None)
        return replace(found, names=[f"{self.name}/{name}" for name in found.names])

    def key(self, images: Iterable[str]) -> dict[str, Any]:
        """What identifies these masks among those of the same images."""
        settings = {"masks": self.name, "ignore": self.ignore, "reduce_zero": self.reduce_zero}
        return {**settings, "mask_files": self.identity(images).sha256}

    def listed(self, ids: Iterable[int]) -> "Masks":
        """With a list of classes: where the source has none, of these ids."""
        return replace(self, names=self.names or {class_id: f"class {class_id}" for class_id in ids})

    def class_ids(self) -> tuple[int, ...]:
        """The id of each class, by its number in a batch: those of the list of classes, rising."""
        if not 0 < len(self.names) <= IGNORE:
            raise ValueError(
                f"Masks.names must list the classes to train on, at most {IGNORE}; got {len(self.names)} for "
                f"{self.name}. Name those that occur, or merge rare ones."
            )
        if twice := [name for name, count in Counter(self.names.values()).items() if count > 1]:
            raise ValueError(
                f"Masks.names must be different; got {', '.join(twice[:5])} for several classes of {self.name}. Rename "
                f"them in the list of classes."
            )
        return tuple(sorted(self.names))

    def resized(
        self, dataset: Dataset, indices: np.ndarray, image_size: tuple[int, int]
    ) -> Int[Tensor, "B {image_size[0]} {image_size[1]}"]:
        """Masks of the images that `evaluation_batches` gives: the same centred part, the nearest pixel of each."""
        names = dataset.names
        masks = np.empty((len(indices), *image_size), dtype=np.int64)
        for row, index in enumerate(indices):
            mask = self.read(names[index])
            top, left, height, width = centred_boxes(np.asarray([mask.shape]), image_size)[0]
            rows, columns = top + nearest_pixels(height, image_size[0]), left + nearest_pixels(width, image_size[1])
            masks[row] = mask[rows[:, None], columns]
        return torch.from_numpy(masks)

    def survey(self, dataset: Dataset) -> "Survey":
        """Look at every mask of a split once; images whose masks do not fit them or the classes are broken then."""
        names, known = dataset.names, dataset.broken_reasons()

        def look(index: int) -> tuple[np.ndarray, tuple[int, int], int] | str:
            try:
                mask, size = self.read(names[index]), dataset.size(index)
            except BrokenImageError as error:
                return str(error)
            ids = _distinct(mask)
            return self._misfit(mask.shape, size, ids) or (ids, size, int((mask == self.ignore).sum()))

        indices = [index for index in range(len(dataset)) if index not in known]
        with ThreadPoolExecutor(num_threads()) as threads:
            seen = list(threads.map(look, indices))
        dataset.mark_broken({k: reason for k, reason in zip(indices, seen, strict=True) if isinstance(reason, str)})
        found, sizes, ignored = zip(*(mask for mask in seen if not isinstance(mask, str)), strict=True)
        ids = np.setdiff1d(np.concatenate(found), [self.ignore])
        if len(ids) and ids[0] < 0:
            raise ValueError(
                f"Masks.ignore must name the id of pixels without a class, all others being 0 or more; got "
                f"{self.ignore}, and {ids[0]} in {self.name} of {dataset.spec}. Set ignore to {ids[0]}."
            )
        height, width = np.median(sizes, axis=0)
        none = {"pixels": sum(ignored), "share": sum(ignored) / int(np.prod(sizes, axis=1).sum())}
        return Survey(tuple(ids.tolist()), (int(height), int(width)), none)

    @cached_property
    def _numbers(self) -> UInt8[np.ndarray, " ids"]:
        """The class number of every id, up to one beyond the largest (and for -1)."""
        ids = np.asarray(self.class_ids())
        numbers = np.full(ids[-1] + 2, IGNORE, dtype=np.uint8)
        numbers[ids] = np.arange(len(ids))
        return numbers

    def _check_colours(self, mask: Int[np.ndarray, "H W"], palette: bytes) -> None:
        """Refuse a mask in whose file an id has another colour than in the first: it numbers other things."""
        theirs, ours = (np.frombuffer(table, np.uint8).reshape(-1, 3) for table in (palette, self.palette))
        ids = np.intersect1d(np.setdiff1d(_distinct(mask), self.ignore), np.arange(min(len(theirs), len(ours))))
        if len(other := ids[(theirs[ids] != ours[ids]).any(axis=1)]):
            raise BrokenImageError(
                f"has another palette than the first: id {other[0]} is {theirs[other[0]].tolist()} instead of "
                f"{ours[other[0]].tolist()}; save all with one palette, or in gray"
            )

    def _misfit(self, shape: tuple[int, ...], size: tuple[int, ...], ids: Int[np.ndarray, " ids"]) -> str:
        """What is wrong with a mask of this shape that holds these ids; empty if nothing is."""
        if shape != size:
            return "has a mask of {}x{} pixels, itself {}x{}".format(*shape, *size)
        unknown = np.setdiff1d(ids, [self.ignore, *self.names]) if self.names else ids[:0]
        if not len(unknown):
            return ""
        stored = ", ".join(map(str, (unknown[:5] + self.reduce_zero).tolist()))
        return f"has a mask in {self.name} with class {stored}, neither in the list of classes nor ignored"


@dataclass(frozen=True)
class Survey:
    """What the masks of a split hold: the class ids that occur, rising, and the median height and width."""

    ids: tuple[int, ...]
    size: tuple[int, int]
    ignored: dict[str, float]  # how many "pixels" have no class, and which "share" of all these are


@dataclass(frozen=True)
class MaskedSource:
    """Images with masks, divided."""

    parts: dict[str, Dataset]  # "train", "test" and perhaps "val"; images whose masks cannot be used count as broken
    masks: Masks
    ids: tuple[int, ...]  # the classes that occur in any part, rising
    known: tuple[int, ...]  # those of them that occur in train
    size: tuple[int, int]  # median height and width of the training images
    ignored: dict[str, dict[str, float]] = field(default_factory=dict)  # of each part, the pixels without a class

    def key(self) -> dict[str, Any]:
        """What identifies images and masks of each part."""
        return {part: dataset.key() | self.masks.key(dataset.names) for part, dataset in self.parts.items()}

    def name_of(self, class_id: int) -> str:
        """Of a class."""
        return self.masks.names.get(class_id, f"class {class_id}")


def open_masked(
    spec: str,
    masks: str | None = None,
    ignore: int = 255,
    images: int | None = None,
    test_images: int | None = None,
    reduce_zero: bool | None = None,
    *,
    tested: bool = True,
    scale: float | None = None,
) -> MaskedSource:
    """Open a source of images with masks and look at every mask once; arguments as of `read_masked`.

    Train and test may be cut down to so many images by a fixed draw. Where the source has no list of its classes, those
    that occur are it. Unless it is to be `tested`, a test part whose masks cannot be used is left out. `scale`: see
    `open_source`.
    """
    contents, found = read_masked(spec, masks, ignore=ignore, reduce_zero=reduce_zero)
    contents = replace(contents, scale=scale)
    parts: dict[str, Dataset] = {}
    surveys: dict[str, Survey] = {}
    for part, split in part_names(contents.splits).items():
        try:
            dataset = open_split(contents, spec, split).part({"train": images, "test": test_images}.get(part))
            surveys[part], parts[part] = found.survey(dataset), dataset
        except ValueError:
            if tested or part != "test":
                raise
    known = surveys["train"].ids
    for part, survey in surveys.items():
        if len(survey.ids) < (2 if part == "train" else 1):
            raise ValueError(
                f"Masks must have pixels of a class in each part, and two classes in train; got {len(survey.ids)} in "
                f"{part} ({found.name} of {spec}), where the value {ignore}, of {survey.ignored['share']:.0%} of the "
                f"pixels, counts as no class. If it is one, set Segmentation.ignore to a value that no mask has, such "
                f"as {254 if ignore == 255 else 255}; else name other masks by Segmentation.masks."
            )
    ignored = {part: survey.ignored for part, survey in surveys.items()}
    ids = sorted({class_id for survey in surveys.values() for class_id in survey.ids})
    return MaskedSource(parts, found.listed(ids), tuple(ids), known, surveys["train"].size, ignored)


def read_masked(
    spec: str, name: str | None = None, *, ignore: int = 255, reduce_zero: bool | None = None
) -> tuple[Contents, Masks]:
    """List a source of images with masks (the table above); reads only the palette.

    `name` is that of the folder or array of masks. None: the only folder whose name begins with "masks" or is
    "annotations", or the array `masks`. `ignore` is the id of pixels that have no class; with `reduce_zero` 0 is
    another. None: in ADE20K, which lists its classes from 1 on.
    """
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file():
        contents, name = read_contents(spec), name or "masks"
        store, names = _arrays(path, spec, name)
        if len(store) != len(contents.store):
            raise ValueError(
                f"Masks.name must be an array with a mask for each image; got {len(store)} masks for "
                f"{len(contents.store)} images in {spec}. Save one mask an image."
            )
        reduce_zero = bool(reduce_zero)
    else:
        root = browse(spec)
        folders = _folders(root)
        if not folders and not path.exists():
            read_contents(spec)  # says what is wrong with the name
        inner = path
        while len(folders) == 1 and not folders[0].startswith(("images", "masks")):  # it merely wraps everything
            root, inner = root / folders[0], inner / folders[0]
            folders = _folders(root)
        name = _folder_of_masks(spec, folders, name)
        short = path.stem if path.suffix.lower() == ".zip" else path.resolve().name
        contents = replace(read_contents(str(inner / "images")), name=short)
        store = read_contents(str(inner / name)).store
        in_ade20k = name == ADE20K[0] and (root / ADE20K[1]).is_file()
        reduce_zero = in_ade20k if reduce_zero is None else reduce_zero
        names = _class_names(root / "classes.json", spec, name)
        if in_ade20k and not names:
            names = _ade20k_names((root / ADE20K[1]).read_text(encoding="utf-8"), spec)
    if reduce_zero:
        if ignore == 0 or ignore + 1 in names:
            raise ValueError(
                f"Masks.ignore must be a value that is no class, after 0 is taken away too; got {ignore} in {name} of "
                f"{spec}. Leave it at 255; where 0 alone has no class and numbers may stay, ignore 0."
            )
        names = {class_id - 1: text for class_id, text in names.items() if class_id > 0}
    names.pop(ignore, None)
    positions = _positions(store, spec)
    return contents, Masks(name, ignore, names, store, positions, reduce_zero, _first_palette(store))


def _first_palette(store: Store) -> bytes:
    """That of the first mask that has one, of the first few."""
    for position in range(min(8, len(store))):
        with suppress(BrokenImageError):
            if palette := store.decode_mask(position).palette:
                return palette
    return b""


def _folders(root: Path | zipfile.Path) -> list[str]:
    """The names of the folders in a folder, but for hidden ones."""
    names = [entry.name for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
    return sorted(name for name in names if not is_system(name))


def _folder_of_masks(spec: str, below: list[str], name: str | None) -> str:
    kinds = [folder for folder in below if folder.startswith("masks") or folder == ADE20K[0]]
    if "images" not in below or not kinds:
        raise ValueError(
            f"Evaluation.data must have masks beside its images; got {spec} with "
            f"{', '.join(below[:10]) or 'no folders'}. Lay it out as images/.../NAME.jpg and masks/.../NAME.png, below "
            f"them train, val and test, or save an .npz with the arrays images, masks and split."
        )
    if name is None and len(kinds) > 1:
        raise ValueError(
            f"Segmentation.masks must say which masks, where there are several; got {spec} with {', '.join(kinds)}. "
            f"Choose one of these."
        )
    if name is not None and name not in below:
        raise ValueError(f"Segmentation.masks must be a folder of {spec}; got {name}. It has {', '.join(kinds)}.")
    return name or kinds[0]


def _arrays(path: Path, spec: str, name: str) -> tuple[Store, dict[int, str]]:
    arrays, others = read_arrays(path, spec, (name, "mask_classes"))
    masks = arrays.get(name)
    if masks is None or masks.ndim != 3 or masks.dtype.kind not in "bui":
        what = "none of that name" if masks is None else f"{masks.dtype.name} {masks.shape}"
        raise ValueError(
            f"Segmentation.masks must be an array (N, H, W) of class ids; got {what} for {name} in {spec}, which also "
            f"has {', '.join(others)}. Save it as np.savez(file, images=..., masks=..., split=...)."
        )
    names = arrays["mask_classes"].tolist() if name == "masks" and "mask_classes" in arrays else []
    return ArrayStore(masks.astype(np.int32), spec=spec), dict(enumerate(names))


def _class_names(file: Path | zipfile.Path, spec: str, name: str) -> dict[int, str]:
    """What `classes.json` calls the classes of these masks; nothing where it does not say."""
    if not file.is_file():
        return {}
    try:
        found: Any = json.loads(file.read_bytes())
        found = found.get(name, found) if isinstance(found, dict) else found
        pairs = enumerate(found) if isinstance(found, list) else found.items()
        return {int(key): str(value) for key, value in pairs}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Masks.names must map class ids to names; got a classes.json in {spec} that does not for {name}. Write "
            f'{{"0": "background", "1": ...}}, or take the file away.'
        ) from error


def _ade20k_names(text: str, spec: str) -> dict[int, str]:
    """Of a table whose first column is the id and whose last is the name, below a line of titles."""
    try:
        rows = [line.split("\t") for line in text.splitlines()[1:] if line.strip()]
        return {int(row[0]): row[-1].strip() for row in rows}
    except ValueError as error:
        raise ValueError(
            f"Masks.names must be the last column of {ADE20K[1]}, ids the first, with tabs between; got another table "
            f"in {spec} ({error}). Fetch the file again, or take it away."
        ) from error


def _positions(store: Store, spec: str) -> dict[str, int]:
    positions = {_stem(name): position for position, name in enumerate(store.names)}
    if len(positions) < len(store):
        raise ValueError(
            f"Masks.name must be a folder with one mask an image; got {len(store)} files of {len(positions)} names in "
            f"{spec}. Keep one file for each."
        )
    return positions


def _stem(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def _distinct(mask: Int[np.ndarray, "H W"]) -> Int[np.ndarray, " ids"]:
    """The ids of a mask, rising; small ones are counted, which takes a tenth of the time of sorting."""
    if mask.size and mask.min() >= 0 and mask.max() < 1024:
        return np.flatnonzero(np.bincount(mask.reshape(-1)))
    return np.unique(mask)
