"""Batches of images: for training, addressed by (seed, step) so that any can be made again; for evaluation, in order.

A batch depends on data set, seed, step and batch size alone: not on workers, processes, or where training was resumed.
A set of one image size that fits in memory lies there decoded, on the device that trains, and is cropped there in
batches; any other is decoded by workers, from its files held in memory if those fit.
"""

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.batch import IGNORE, Batch
from pantomim.core.host import to_device
from pantomim.core.progress import tracked
from pantomim.core.scales import Scale
from pantomim.data.augment import Augment, augmented, draw_augment
from pantomim.data.dataset import Dataset, TooManyBrokenError, num_threads
from pantomim.data.decoding import BrokenImageError
from pantomim.data.mask_crops import PADDING, MaskCrop, cropped_pair, row_random
from pantomim.data.masks import Masks
from pantomim.data.stores import Parts
from pantomim.data.transforms import (
    Crop,
    Interpolation,
    View,
    centred_boxes,
    crop_boxes,
    draw_uniforms,
    fitted,
    resize_one,
    resized_crop,
    scaled,
)
from pantomim.data.workers import hand_over, read_ahead, take_over

_PURPOSE = 1  # keeps the order apart from other draws of the same seed
AT_ONCE = 512  # images, at most, that a worker reads or that are cropped together: a step may have many thousand


class Stream:
    """Training batches, addressed by (seed, step).

    Each epoch is a new permutation of the images; a last incomplete batch is left out. A set smaller than one batch is
    passed as often as a batch needs. A broken image is replaced by the next healthy one.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,  # images a step, over all processes and accumulation steps
        image_size: tuple[int, int],
        crop: Crop | MaskCrop,  # a `MaskCrop` with masks
        seed: int,  # of order and crops, 0 or more
        device: torch.device | str,  # where batches go, and where images are augmented
        rank: int = 0,
        world: int = 1,
        micro: int = 1,  # accumulation steps; number a of rank r has the rows from (a * world + r) * b on, of b each
        workers: int | None = None,  # that decode, where the set does not lie in memory decoded; None chooses
        memory_gib: float = 4.0,  # most to hold images in, on the device or as files
        augment: Augment | None = None,
        second: View | None = None,  # how another view of the same images is made; its draws differ
        repeats: int = 1,  # how often each image comes in a row
        masks: Masks | None = None,  # with a list of classes; images without a mask that fits are broken
        compiled: bool = False,  # crop images that lie on the device by compiled code, equal to rounding
    ) -> None:
        if batch_size < 1 or batch_size % (micro * world):
            raise ValueError(
                f"Stream.batch_size must be a multiple of accumulation x processes = {micro} x {world}; got "
                f"{batch_size}. Choose another batch size or number of accumulation steps."
            )
        self.dataset = dataset
        self._parts = dataset.parts
        self.batch_size = batch_size
        self.image_size = image_size
        self._crop, self._masks = crop, masks
        self.views: tuple[View, ...] = ()  # of images without masks
        if masks is not None or isinstance(crop, MaskCrop):
            _check_pairs(dataset, masks, crop, alone=augment is None and second is None)
        else:
            first = View(crop, augment or Augment())
            self.views = (first,) if second is None else (first, second)
        self.seed, self.repeats = seed, repeats
        self.device = torch.device(device)
        self.micro = micro
        self.steps_per_epoch = max(1, len(dataset) // batch_size)
        self.wait_s = 0.0  # spent so far on waiting for batches or on making them
        self.trouble: list[str] = []  # how workers died: batches still come, but slower
        self._rank, self._world = rank, world
        self._rows = batch_size // (micro * world)
        self._cuts = -(-self._rows // AT_ONCE)
        self._pieces = micro * self._cuts  # of a step: micro-batches, cut
        self._workers = _num_workers(workers)
        self._cut = torch.compile(_cut, fullgraph=True, dynamic=False) if compiled else _cut
        array = dataset.array(memory_gib) if self.views else None
        self._images: Tensor | None = None
        if array is None:
            dataset.hold_encoded(memory_gib)
        else:
            self._images = torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)
            self._healthy_ids = np.arange(len(dataset))  # the row of a broken image holds the next healthy one
            for index in dataset.broken_reasons():
                self._healthy_ids[index] = dataset.read_healthy(index)[0]

    def batches(self, start_step: int, stop_step: int) -> Generator[list[Batch], None, None]:
        """For each step from `start_step` up to `stop_step` a list of `micro` batches, this process's rows only."""
        items = self._from_workers(start_step, stop_step) if self._images is None else None
        for step in range(start_step, stop_step):
            begin = time.perf_counter()
            pieces = [self._from_memory(step, part) if items is None else next(items) for part in range(self._pieces)]
            batches = [Batch.joined(pieces[first:][: self._cuts]) for first in range(0, self._pieces, self._cuts)]
            self.wait_s += time.perf_counter() - begin
            yield batches

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
            order = _permutation(num_images, self.seed, epoch, self._parts).repeat(self.repeats)
            return self._apart(order[place * self.batch_size : (place + 1) * self.batch_size])
        places = step * self.batch_size + np.arange(self.batch_size)
        length = num_images * self.repeats
        epochs = [_permutation(num_images, self.seed, int(epoch), self._parts) for epoch in np.unique(places // length)]
        return self._apart(np.concatenate(epochs).repeat(self.repeats)[places - places[0] // length * length])

    def _apart(self, ids: np.ndarray) -> np.ndarray:
        """A repeated image's copies half a batch away from each other, as mixing pairs neighbours."""
        return ids.reshape(2, -1).T.reshape(-1) if self.repeats > 1 and len(ids) % 2 == 0 else ids

    def rows(self, part: int) -> slice:
        """The rows of the global batch that are this process's piece number `part` of a step."""
        micro, cut = divmod(part, self._cuts)
        first = (micro * self._world + self._rank) * self._rows
        return slice(first + cut * AT_ONCE, first + min((cut + 1) * AT_ONCE, self._rows))

    def uniforms(self, step: int, part: int, view: int) -> np.ndarray:
        """Crop draws of this process's rows in one piece, for one view."""
        return draw_uniforms(self.batch_size, self.seed, step, view)[self.rows(part)]

    def _from_memory(self, step: int, part: int) -> Batch:
        assert self._images is not None
        ids = self._healthy_ids[self.ids(step)[self.rows(part)]]
        on_device = self._put(ids)
        stored = self._images[on_device]
        views = [self._cropped(stored, step, part, view) for view in range(len(self.views))]
        return self._batch(views, on_device, ids, step, part)

    def _cropped(self, stored: Tensor, step: int, part: int, view: int) -> Tensor:
        crop, sizes, scale = self.views[view].crop, np.tile(stored.shape[2:], (len(stored), 1)), self.dataset.scale
        boxes, flips = crop_boxes(sizes, self.uniforms(step, part, view), crop, self.image_size)
        if (boxes == [0, 0, *self.image_size]).all() and not flips.any():
            return scaled(stored, scale)
        placed = self._put(boxes), self._put(flips)
        bounded = self.dataset.facts.dtype == "uint8"  # see `_without_overshoot`
        cut: Tensor = self._cut(stored, *placed, scale, self.image_size, crop.interpolation, bounded)
        return cut

    def _from_workers(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        items = range(start_step * self._pieces, stop_step * self._pieces)
        read = self._read if self.views else self._read_pairs
        decoded = _decoded(self.dataset, read, items, self._workers, self.device, self.trouble.append)
        for item, (images, ids, masks) in zip(items, decoded, strict=True):
            on_device = ids.to(self.device, non_blocking=True)
            step, part = divmod(item, self._pieces)
            if masks is None:
                yield self._batch(images.split(len(ids)), on_device, ids.numpy(), step, part)
            else:
                yield self._pair_batch(images, masks, on_device, self.rows(part).start)

    def _read(self, item: int) -> "_Read":
        """Piece number `item` since the first step from files: all rows of each view in turn; their ids."""
        step, part = divmod(item, self._pieces)
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
        return _stacked([image for made in images for image in made], healthy)

    def _read_pairs(self, item: int) -> "_Read":
        """The same where there are masks."""
        assert isinstance(self._crop, MaskCrop)
        assert self._masks is not None
        step, part = divmod(item, self._pieces)
        rows, divisor, pairs, healthy = self.rows(part), self.dataset.scale.divisor, [], []
        for row, index in zip(range(rows.start, rows.stop), self.ids(step)[rows], strict=True):
            index, pair = self.dataset.first_healthy(int(index), partial(self._masks.read_pair, self.dataset))
            healthy.append(index)
            random = row_random(self.seed, step, row)
            pairs.append(cropped_pair(*pair, self._crop, self.image_size, random, ignore=IGNORE, divisor=divisor))
        images, masks = zip(*pairs, strict=True)
        return _stacked(images, healthy, masks)

    def _batch(self, views: Sequence[Tensor], ids: Tensor, host_ids: np.ndarray, step: int, part: int) -> Batch:
        labels = None if self.dataset.labels is None else self._put(self.dataset.labels[host_ids])
        rows, made = self.rows(part), []
        for number, (view, images) in enumerate(zip(self.views, views, strict=True)):
            if view.augment.active:
                draws = draw_augment(view.augment, self.batch_size, self.image_size, self.seed, step, number)
                images = augmented(images, draws.rows(rows), view.augment)
            made.append(images)
        return Batch(made[0], ids, labels, rows.start, self.batch_size, made[1] if len(made) > 1 else None)

    def _pair_batch(self, images: Tensor, masks: Tensor, ids: Tensor, start: int) -> Batch:
        assert isinstance(self._crop, MaskCrop)
        beside = masks == PADDING
        fill = self._put(np.asarray(self._crop.fill, dtype=np.float32)).view(-1, 1, 1)
        images = torch.where(beside[:, None], fill, _without_overshoot(images, self.dataset))
        return Batch(images, ids, None, start, self.batch_size, masks=masks.long().masked_fill(beside, IGNORE))

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
    margin: float = 1.0,
    interpolation: Interpolation = "bicubic",
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Images in order (all, or those of `indices`), each by its largest centred part of the right proportions, resized.

    With a `margin` that part is made so much larger than the image size, and its centre is taken: 256 / 224 is the test
    of ImageNet's recipes. Broken ones are left out. `workers` and `memory_gib` are those of `Stream`.

    Yields: images (B, C, h, w), scaled; and their indices.
    """
    if margin != 1.0:
        larger = (int(image_size[0] * margin + 1e-6), int(image_size[1] * margin + 1e-6))
        top, left = ((side - size) // 2 for side, size in zip(larger, image_size, strict=True))
        how: dict[str, Any] = {"workers": workers, "memory_gib": memory_gib, "interpolation": interpolation}
        for images, ids in evaluation_batches(dataset, larger, batch_size, device, indices, **how):
            yield images[:, :, top : top + image_size[0], left : left + image_size[1]], ids
        return
    device = torch.device(device)
    indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, dtype=np.int64)
    array = dataset.array(memory_gib) if 2 * len(indices) > len(dataset) else None  # of a few, decode those alone
    indices = indices[~np.isin(indices, list(dataset.broken_reasons()))]
    chunks = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    what = f"{dataset.name} ({dataset.split}): images"
    if array is None:
        workers = min(_num_workers(workers), len(chunks) // 4)  # a few batches are not worth a process
        read = partial(_read_centred, dataset, image_size, interpolation, chunks)
        decoded = _decoded(dataset, read, range(len(chunks)), workers, device)
        for images, healthy, _ in tracked(decoded, what, len(chunks)):
            if len(healthy):
                yield images, healthy.numpy()
        return
    box = torch.from_numpy(centred_boxes(np.asarray([array.shape[2:]]), image_size)).to(device)
    for ids in tracked(chunks, what, len(chunks)):
        images = scaled(torch.from_numpy(array[ids]).to(device), dataset.scale)
        if array.shape[2:] != tuple(image_size):
            images = resized_crop(images, box.expand(len(ids), 4), image_size, interpolation=interpolation)
            images = _without_overshoot(images, dataset)
        yield images, ids


def whole_images(
    dataset: Dataset,
    masks: Masks,
    base: tuple[int, int],
    device: torch.device | str,
    indices: np.ndarray | None = None,
    *,
    workers: int | None = None,
) -> Iterator[tuple[Float[Tensor, "1 C h w"], Int[Tensor, "H W"], int]]:
    """Images with masks in order (all, or those of `indices`), to test on: one by one, as their sizes differ.

    Broken ones are left out. `workers` are those of `Stream`.

    Yields: an image, scaled, resized to the longest and shortest side of `base`; the class numbers of its pixels at its
        own size, `IGNORE` where there are none; and its index.
    """
    device = torch.device(device)
    indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, dtype=np.int64)
    indices = indices[~np.isin(indices, list(dataset.broken_reasons()))]
    workers = min(_num_workers(workers), len(indices) // 16)
    read = partial(_read_whole, dataset, masks, base, indices)
    decoded = _decoded(dataset, read, range(len(indices)), workers, device)
    for image, ids, found in tracked(decoded, f"{dataset.name} ({dataset.split}): images", len(indices)):
        if found is not None:
            yield image, found[0].long(), int(ids)


def _num_workers(asked: int | None) -> int:
    """Of processes that decode; unless asked for, one core is left for what they decode for."""
    return max(1, num_threads() - 1) if asked is None else asked


def _read_whole(dataset: Dataset, masks: Masks, base: tuple[int, int], indices: np.ndarray, item: int) -> "_Read":
    """An image and its mask, if they are healthy."""
    index = int(indices[item])
    try:
        image, mask = masks.read_pair(dataset, index)
    except BrokenImageError:
        return _stacked()
    return _stacked([fitted(image, base)], [index], [torch.from_numpy(mask)])


def _check_pairs(dataset: Dataset, masks: Masks | None, crop: Crop | MaskCrop, *, alone: bool) -> None:
    """Refuse, before the first batch, what masks cannot be cropped by or with."""
    if masks is None or not isinstance(crop, MaskCrop) or not alone:
        raise ValueError(
            f"Stream.masks must go with a MaskCrop, without augment and second; got {type(crop).__name__} and "
            f"{'no ' if masks is None else ''}masks. MaskCrop.distortion changes the colours."
        )
    masks.class_ids()
    if len(crop.fill) not in (1, dataset.channels):
        raise ValueError(
            f"MaskCrop.fill must have one value, or one for each of the {dataset.channels} channel(s) of "
            f"{dataset.spec}; got {crop.fill}. Give the encoder's mean."
        )


def _read_centred(
    dataset: Dataset, image_size: tuple[int, int], interpolation: Interpolation, chunks: list[np.ndarray], item: int
) -> "_Read":
    """The healthy images of a chunk, by their centred parts, and their indices."""
    images, healthy = [], []
    for index in chunks[item]:
        try:
            image = dataset.read(int(index))
        except BrokenImageError:
            continue
        box = centred_boxes(np.asarray([image.shape[1:]]), image_size)[0]
        images.append(resize_one(image, box, image_size, flip=False, interpolation=interpolation))
        healthy.append(int(index))
    return _stacked(images, healthy)


def _cut(
    stored: Tensor,
    boxes: Tensor,
    flips: Tensor,
    scale: Scale,
    image_size: tuple[int, int],
    interpolation: Interpolation,
    bounded: bool,
) -> Tensor:
    """`resized_crop` of images as they are stored."""
    cut = resized_crop(scaled(stored, scale), boxes, image_size, flips, interpolation)
    return cut.clamp_(0, 1) if bounded else cut


def _without_overshoot(images: Tensor, dataset: Dataset) -> Tensor:
    """Resized 8-bit images stay in [0, 1]; others keep what the kernel makes of them."""
    return images.clamp_(0, 1) if dataset.facts.dtype == "uint8" else images


class _Read(NamedTuple):
    """Images as they are stored, the indices of healthy ones, and their masks where the data have any."""

    images: Tensor
    ids: Int[Tensor, " B"]
    masks: Int[Tensor, "B H W"] | None = None


def _stacked(images: Sequence[Tensor] = (), ids: Sequence[int] = (), masks: Sequence[Tensor] = ()) -> _Read:
    found = torch.stack(tuple(images)) if images else torch.empty(0)
    return _Read(found, torch.tensor(ids, dtype=torch.int64), torch.stack(tuple(masks)) if masks else None)


class _Items(torch.utils.data.Dataset[tuple[_Read, dict[int, str]]]):
    """By number: what is read, and all images found broken so far.

    Where these are too many, there are no images, and the process that trains raises the error: out of a worker it
    would come as a traceback.
    """

    def __init__(self, dataset: Dataset, read: Callable[[int], _Read]) -> None:
        self._dataset, self._read = dataset, read

    def __getitem__(self, item: int) -> tuple[_Read, dict[int, str]]:
        try:
            read = self._read(item)
        except TooManyBrokenError:
            read = _stacked()
        return hand_over(read), self._dataset.broken_reasons()


def _decoded(
    dataset: Dataset,
    read: Callable[[int], _Read],
    items: range,
    workers: int,
    device: torch.device,
    tell: Callable[[str], None] = warnings.warn,
) -> Iterator[_Read]:
    """The items in order, read by workers ahead of time: on the device, images scaled; the indices on the host."""
    pin = device.type == "cuda"
    for made, broken in read_ahead(_Items(dataset, read), items, workers, pin=pin, tell=tell):
        dataset.mark_broken(broken)
        images, ids, masks = take_over(made)
        masks = None if masks is None else masks.to(device, non_blocking=True)
        yield _Read(scaled(images.to(device, non_blocking=True), dataset.scale), ids, masks)


@lru_cache(maxsize=4)
def _permutation(num_images: int, seed: int, epoch: int, parts: Parts | None = None) -> np.ndarray:
    """The order of an epoch; where images are read in parts, these come in random order, so many at once, mixed."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, _PURPOSE]))
    order = rng.permutation(num_images)
    if parts is None:
        return order
    turns = rng.permutation(int(parts.of_image.max()) + 1) // parts.at_once
    return order[np.argsort(turns[parts.of_image[order]], kind="stable")]
