"""Batches of images: for training, addressed by (seed, step) so that any can be made again; for evaluation, in order.

A batch depends on data set, seed, step and batch size alone: not on workers, processes, or where training was resumed.
A set of one image size that fits in memory lies there decoded, on the device that trains, and is cropped there in
batches; any other is decoded by workers, from its files held in memory if those fit.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from pantomim.core.batch import Batch
from pantomim.core.host import to_device
from pantomim.data.augment import Augment, augmented, draw_augment
from pantomim.data.dataset import Dataset, TooManyBrokenError, num_threads
from pantomim.data.decoding import BrokenImageError
from pantomim.data.transforms import (
    Crop,
    View,
    centred_boxes,
    crop_boxes,
    draw_uniforms,
    resize_one,
    resized_crop,
    scaled,
)

_PURPOSE = 1  # keeps the order apart from other draws of the same seed


class Stream:
    """Training batches, addressed by (seed, step).

    Each epoch is a new permutation of the images; a last incomplete batch is left out. A set smaller than one batch is
    passed as often as a batch needs. A broken image is replaced by the next healthy one.

    Args:
        batch_size: Images a step, over all processes and accumulation steps.
        image_size: (height, width) of the batches.
        crop: How an image becomes one of that size.
        seed: Of order and crops, 0 or more.
        device: Where batches go, and where images are augmented.
        micro: Accumulation steps; micro-batch a of rank r holds the rows from (a * world + r) * b on, of b each.
        workers: Decoding processes; None chooses. Unused where the set lies in memory decoded.
        memory_gib: Most memory to hold images in, on the device or as files.
        augment: What is done to an image after the crop.
        second: How another view of the same images is made, if there is one; its draws differ.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        image_size: tuple[int, int],
        crop: Crop,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
        micro: int = 1,
        workers: int | None = None,
        memory_gib: float = 4.0,
        augment: Augment | None = None,
        second: View | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % (micro * world):
            raise ValueError(
                f"Stream.batch_size must be a multiple of accumulation x processes = {micro} x {world}; got "
                f"{batch_size}. Choose another batch size or number of accumulation steps."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.image_size = image_size
        first = View(crop, augment or Augment())
        self.views = (first,) if second is None else (first, second)
        self.seed = seed
        self.device = torch.device(device)
        self.micro = micro
        self.steps_per_epoch = max(1, len(dataset) // batch_size)
        self.wait_s = 0.0  # spent so far on waiting for batches or on making them
        self._rank, self._world = rank, world
        self._rows = batch_size // (micro * world)
        self._workers = max(1, (num_threads() - 1) // world) if workers is None else workers
        array = dataset.array(memory_gib)
        self._images: Tensor | None = None
        if array is None:
            dataset.hold_encoded(memory_gib)
        else:
            self._images = torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)
            self._healthy_ids = np.arange(len(dataset))  # the row of a broken image holds the next healthy one
            for index in dataset.broken_reasons():
                self._healthy_ids[index] = dataset.read_healthy(index)[0]

    def batches(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """For each step from `start_step` up to `stop_step` a list of `micro` batches, this process's rows only."""
        items = self._from_workers(start_step, stop_step) if self._images is None else None
        for step in range(start_step, stop_step):
            begin = time.perf_counter()
            rows = [self._from_memory(step, part) if items is None else next(items) for part in range(self.micro)]
            self.wait_s += time.perf_counter() - begin
            yield rows

    def first_images(self, least: int) -> Iterator[Tensor]:
        """This process's images of the first steps, at least so many, to look at; training gets the same ones again."""
        steps, waited = -(-least // (self._rows * self.micro)), self.wait_s
        for batches in self.batches(0, steps):
            yield from (batch.images for batch in batches)
        self.wait_s = waited

    def ids(self, step: int) -> np.ndarray:
        """Indices of the images in the global batch of a step, in order (broken ones not yet replaced)."""
        num_images = len(self.dataset)
        if num_images >= self.batch_size:
            epoch, place = divmod(step, self.steps_per_epoch)
            order = _permutation(num_images, self.seed, epoch)
            return order[place * self.batch_size : (place + 1) * self.batch_size]
        places = step * self.batch_size + np.arange(self.batch_size)
        epochs = [_permutation(num_images, self.seed, int(epoch)) for epoch in np.unique(places // num_images)]
        return np.concatenate(epochs)[places - places[0] // num_images * num_images]

    def rows(self, part: int) -> slice:
        """The rows of the global batch that are this process's micro-batch number `part`."""
        first = (part * self._world + self._rank) * self._rows
        return slice(first, first + self._rows)

    def uniforms(self, step: int, part: int, view: int) -> np.ndarray:
        """Crop draws of this process's rows in one micro-batch, for one view."""
        return draw_uniforms(self.batch_size, self.seed, step, view)[self.rows(part)]

    def _from_memory(self, step: int, part: int) -> Batch:
        assert self._images is not None
        ids = self._healthy_ids[self.ids(step)[self.rows(part)]]
        on_device = self._put(ids)
        images = scaled(self._images[on_device], self.dataset.scale)
        views = [self._cropped(images, step, part, view) for view in range(len(self.views))]
        return self._batch(views, on_device, ids, step, part)

    def _cropped(self, images: Tensor, step: int, part: int, view: int) -> Tensor:
        crop, sizes = self.views[view].crop, np.tile(images.shape[2:], (len(images), 1))
        boxes, flips = crop_boxes(sizes, self.uniforms(step, part, view), crop, self.image_size)
        if (boxes == [0, 0, *self.image_size]).all() and not flips.any():
            return images
        cut = resized_crop(images, self._put(boxes), self.image_size, self._put(flips), crop.interpolation)
        return _without_overshoot(cut, self.dataset)

    def _from_workers(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        items = range(start_step * self.micro, stop_step * self.micro)
        decoded = _decoded(self.dataset, self._read, items, self._workers, self.device)
        for item, (images, ids) in zip(items, decoded, strict=True):
            on_device = ids.to(self.device, non_blocking=True)
            yield self._batch(images.split(len(ids)), on_device, ids.numpy(), *divmod(item, self.micro))

    def _read(self, item: int) -> tuple[list[Tensor], list[int]]:
        """Micro-batch number step x micro + a from files: all rows of the first view, then of the second; their ids."""
        step, part = divmod(item, self.micro)
        uniforms = [self.uniforms(step, part, view) for view in range(len(self.views))]
        images: list[list[Tensor]] = [[] for _ in self.views]
        healthy = []
        for row, index in enumerate(self.ids(step)[self.rows(part)]):
            index, image = self.dataset.read_healthy(int(index))
            healthy.append(index)
            for view, drawn, made in zip(self.views, uniforms, images, strict=True):
                (box,), (flip,) = crop_boxes(
                    np.asarray([image.shape[1:]]), drawn[row : row + 1], view.crop, self.image_size
                )
                made.append(resize_one(image, box, self.image_size, bool(flip), view.crop.interpolation))
        return [image for made in images for image in made], healthy

    def _batch(self, views: Sequence[Tensor], ids: Tensor, host_ids: np.ndarray, step: int, part: int) -> Batch:
        labels = None if self.dataset.labels is None else self._put(self.dataset.labels[host_ids])
        rows, made = self.rows(part), []
        for number, (view, images) in enumerate(zip(self.views, views, strict=True)):
            if view.augment.active:
                draws = draw_augment(view.augment, self.batch_size, self.image_size, self.seed, step, number)
                images = augmented(images, draws.rows(rows), view.augment)
            made.append(images)
        return Batch(made[0], ids, labels, rows.start, self.batch_size, made[1] if len(made) > 1 else None)

    def _put(self, values: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(values), self.device)


def evaluation_batches(
    dataset: Dataset,
    image_size: tuple[int, int],
    batch_size: int,
    device: torch.device | str,
    indices: np.ndarray | None = None,
    *,
    workers: int | None = None,
    memory_gib: float = 4.0,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Images in order (all, or those of `indices`), each by its largest centred part of the right proportions, resized.

    Broken ones are left out. `workers` and `memory_gib` are those of `Stream`.

    Yields: images (B, C, h, w), scaled; and their indices.
    """
    device = torch.device(device)
    indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, dtype=np.int64)
    array = dataset.array(memory_gib) if 2 * len(indices) > len(dataset) else None  # of a few, decode those alone
    indices = indices[~np.isin(indices, list(dataset.broken_reasons()))]
    chunks = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    if array is None:
        workers = max(1, num_threads() - 1) if workers is None else workers
        workers = min(workers, len(chunks) // 4)  # a few batches are not worth a process
        read = partial(_read_centred, dataset, image_size, chunks)
        for images, healthy in _decoded(dataset, read, range(len(chunks)), workers, device):
            if len(healthy):
                yield images, healthy.numpy()
        return
    box = torch.from_numpy(centred_boxes(np.asarray([array.shape[2:]]), image_size)).to(device)
    for ids in chunks:
        images = scaled(torch.from_numpy(array[ids]).to(device), dataset.scale)
        if array.shape[2:] != tuple(image_size):
            images = _without_overshoot(resized_crop(images, box.expand(len(ids), 4), image_size), dataset)
        yield images, ids


def centre_crops(
    dataset: Dataset, image_size: tuple[int, int], margin: float, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """What `evaluation_batches` gives, `margin` times as large, and of that the centre: how classifiers are tested."""
    (height, width), larger = image_size, (round(image_size[0] * margin), round(image_size[1] * margin))
    top, left = (larger[0] - height) // 2, (larger[1] - width) // 2
    for images, indices in evaluation_batches(dataset, larger, batch_size, device):
        yield images[:, :, top : top + height, left : left + width], indices


def _read_centred(
    dataset: Dataset, image_size: tuple[int, int], chunks: list[np.ndarray], item: int
) -> tuple[list[Tensor], list[int]]:
    """The healthy images of a chunk, by their centred parts, and their indices."""
    images, healthy = [], []
    for index in chunks[item]:
        try:
            image = dataset.read(int(index))
        except BrokenImageError:
            continue
        box = centred_boxes(np.asarray([image.shape[1:]]), image_size)[0]
        images.append(resize_one(image, box, image_size, flip=False))
        healthy.append(int(index))
    return images, healthy


def _without_overshoot(images: Tensor, dataset: Dataset) -> Tensor:
    """Resized 8-bit images stay in [0, 1]; others keep what the kernel makes of them."""
    return images.clamp_(0, 1) if dataset.facts.dtype == "uint8" else images


class _Items(torch.utils.data.Dataset[tuple[Tensor, Tensor, dict[int, str]]]):
    """By number: images as stored, their ids, and all images found broken so far.

    Where these are too many, there are no images, and the process that trains raises the error: out of a worker it
    would come as a traceback.
    """

    def __init__(self, dataset: Dataset, read: Callable[[int], tuple[list[Tensor], list[int]]]) -> None:
        self._dataset, self._read = dataset, read

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, dict[int, str]]:
        try:
            images, ids = self._read(item)
        except TooManyBrokenError:
            images, ids = [], []
        stacked = torch.stack(images) if images else torch.empty(0)
        return stacked, torch.tensor(ids, dtype=torch.int64), self._dataset.broken_reasons()


def _decoded(
    dataset: Dataset,
    read: Callable[[int], tuple[list[Tensor], list[int]]],
    items: range,
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The items in order, read by workers ahead of time: images on the device, scaled, and their ids on the host."""
    options: dict[str, Any] = {}
    if workers and sys.platform == "linux":
        options["multiprocessing_context"] = "fork"  # workers share the files held in memory
    loader = torch.utils.data.DataLoader(
        _Items(dataset, read),
        sampler=items,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else starting the loader would draw from the global one
        **options,
    )
    for images, ids, broken in loader:
        dataset.mark_broken(broken)
        yield scaled(images.to(device, non_blocking=True), dataset.scale), ids


@lru_cache(maxsize=4)
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, _PURPOSE])).permutation(num_images)
