"""Class ids for every pixel, beside the images of a source; the layout is that of docs/data.md, "Images with masks"."""

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pantomim.data.dataset import Contents, Dataset, num_threads
from pantomim.data.decoding import BrokenImageError
from pantomim.data.sources import browse, read_arrays, read_contents
from pantomim.data.stores import ArrayStore, Store
from pantomim.data.transforms import centred_boxes


@dataclass(frozen=True)
class Masks:
    """The masks of a source; found by the names of its images, so that they serve any split and any draw of it."""

    name: str  # of their folder or array
    ignore: int  # the id of pixels that have no class
    names: dict[int, str]  # of the classes, by id, as far as known
    store: Store
    positions: dict[str, int]  # in the store, by the name of an image without its ending

    def read(self, image: str) -> Int[np.ndarray, "H W"]:
        """The mask of the image of this name; raises `BrokenImageError`, also where there is none."""
        position = self.positions.get(_stem(image))
        if position is None:
            raise BrokenImageError(f"has no mask in {self.name}")
        try:
            return self.store.decode_ids(position)
        except BrokenImageError as error:
            raise BrokenImageError(f"has a mask in {self.name} that {error}") from error

    def resized(
        self, dataset: Dataset, indices: np.ndarray, image_size: tuple[int, int]
    ) -> Int[Tensor, "B {image_size[0]} {image_size[1]}"]:
        """Masks of the images that `evaluation_batches` gives: the same centred part, the nearest pixel of each."""
        names = dataset.names
        masks = np.empty((len(indices), *image_size), dtype=np.int64)
        for row, index in enumerate(indices):
            mask = self.read(names[index])
            top, left, height, width = centred_boxes(np.asarray([mask.shape]), image_size)[0]
            rows = top + ((np.arange(image_size[0]) + 0.5) * height / image_size[0]).astype(np.int64)
            columns = left + ((np.arange(image_size[1]) + 0.5) * width / image_size[1]).astype(np.int64)
            masks[row] = mask[rows[:, None], columns]
        return torch.from_numpy(masks)

    def survey(self, dataset: Dataset) -> "Survey":
        """Look at every mask of a split once; images without a mask that fits count as broken from then on."""
        names, known = dataset.names, dataset.broken_reasons()

        def look(index: int) -> tuple[np.ndarray, tuple[int, int]] | str:
            try:
                mask, size = self.read(names[index]), dataset.size(index)
            except BrokenImageError as error:
                return str(error)
            if mask.shape != size:
                return "has a mask of {}x{} pixels, itself {}x{}".format(*mask.shape, *size)
            return _distinct(mask), size

        indices = [index for index in range(len(dataset)) if index not in known]
        with ThreadPoolExecutor(num_threads()) as threads:
            seen = list(threads.map(look, indices))
        dataset.mark_broken({k: reason for k, reason in zip(indices, seen, strict=True) if isinstance(reason, str)})
        found, sizes = zip(*(mask for mask in seen if not isinstance(mask, str)), strict=True)
        ids = np.setdiff1d(np.concatenate(found), [self.ignore])
        if len(ids) and ids[0] < 0:
            raise ValueError(
                f"Masks.ignore must name the id of pixels without a class, all others being 0 or more; got "
                f"{self.ignore}, and {ids[0]} in {self.name} of {dataset.spec}. Set ignore to {ids[0]}."
            )
        height, width = np.median(sizes, axis=0)
        return Survey(tuple(ids.tolist()), (int(height), int(width)))


@dataclass(frozen=True)
class Survey:
    """What the masks of a split hold: the class ids that occur, rising, and the median height and width."""

    ids: tuple[int, ...]
    size: tuple[int, int]


def read_masked(spec: str, name: str | None = None, *, ignore: int = 255) -> tuple[Contents, Masks]:
    """List a source of images with masks (the table above); reads none of them.

    `name` is that of the folder or array of masks. None: the only folder whose name begins with "masks", or the array
    `masks`. `ignore` is the id of pixels that have no class.
    """
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file():
        contents = read_contents(spec)
        store, names = _arrays(path, spec, name or "masks")
        if len(store) != len(contents.store):
            raise ValueError(
                f"Masks.name must be an array with a mask for each image; got {len(store)} masks for "
                f"{len(contents.store)} images in {spec}. Save one mask an image."
            )
        return contents, Masks(name or "masks", ignore, names, store, _positions(store, spec))
    root = browse(spec)
    below = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    if not below and not path.exists():
        read_contents(spec)  # says what is wrong with the name
    name = _folder_of_masks(spec, below, name)
    short = path.stem if path.suffix.lower() == ".zip" else path.resolve().name
    contents = replace(read_contents(str(path / "images")), name=short)
    store = read_contents(str(path / name)).store
    names = _class_names(root / "classes.json", spec, name)
    return contents, Masks(name, ignore, names, store, _positions(store, spec))


def _folder_of_masks(spec: str, below: list[str], name: str | None) -> str:
    kinds = [folder for folder in below if folder.startswith("masks")]
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
