"""Images with masks as a frozen encoder sees them: features of its patches, and the classes of their pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.data.dataset import Dataset
from pantomim.data.masks import Masks, read_masked
from pantomim.data.sources import open_split
from pantomim.data.stream import evaluation_batches
from pantomim.evaluate.features import AnyEncoder
from pantomim.evaluate.parts import drawn, part_names
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.tokens import patchify

MAX_STRETCH = 2  # the shorter side of the patch grid over the encoder's own
MAX_PIXEL_SIDE = 16  # of a patch among the raw pixels; larger ones are shrunk
MAX_VALUES = 2**25  # features and targets held of one contender, as numbers (128 MiB); beyond, patches are drawn
_PURPOSE = 12  # keeps these draws apart from others of the same seed

PatchExtractor = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B N D"]]


@dataclass(frozen=True)
class MaskedParts:
    """Images with masks, divided.

    Args:
        parts: The splits "train", "test" and perhaps "val"; images whose masks cannot be used count as broken.
        masks: Of all of them.
        ids: The class ids that occur in any part, rising.
        known: Those of them that occur in train.
        size: Median height and width of the training images.
    """

    parts: dict[str, Dataset]
    masks: Masks
    ids: tuple[int, ...]
    known: tuple[int, ...]
    size: tuple[int, int]

    def name_of(self, class_id: int) -> str:
        """Of a class."""
        return self.masks.names.get(class_id, f"class {class_id}")

    def size_for(self, encoder: AnyEncoder) -> tuple[int, int]:
        """See `fitting_size`."""
        return fitting_size(encoder, self.size)

    def about(self, encoder: AnyEncoder) -> dict[str, Any]:
        """For the record, of the images as this encoder sees them."""
        unknown = sorted(set(self.ids) - set(self.known))
        return {
            "num_classes": len(self.ids),
            "classes_unknown_to_train": [self.name_of(class_id) for class_id in unknown],
            "masks": self.masks.name,
            "ignore": self.masks.ignore,
            "image_size": list(encoder.image_size),
            "grid": list(encoder.grid),
        }


def open_masked_parts(
    spec: str, masks: str | None, ignore: int, images: int | None = None, test_images: int | None = None
) -> MaskedParts:
    """Open a source of images with masks and look at every mask once.

    Args:
        spec: See `data.masks`.
        masks: Name of their folder or array.
        ignore: The id of pixels that have no class.
        images: Use only this many training images.
        test_images: The same of the test part.

    Raises:
        ValueError: if there are no masks, or fewer than two classes in train.
    """
    contents, found = read_masked(spec, masks, ignore=ignore)
    parts = {part: open_split(contents, spec, split) for part, split in part_names(contents.splits).items()}
    parts = drawn(parts, images, test_images)
    surveys = {part: found.survey(dataset) for part, dataset in parts.items()}
    known = surveys["train"].ids
    if len(known) < 2:
        raise ValueError(
            f"Evaluation.data must have at least two classes in the masks of train; got {len(known)} in {found.name} "
            f"of {spec}. Scores need classes to tell apart: name other masks by Segmentation.masks."
        )
    for part, survey in surveys.items():
        if not survey.ids:
            raise ValueError(
                f"Evaluation.data must have pixels with a class in each part; got none in {part} ({found.name} of "
                f"{spec}), where {ignore} counts as none. Check Segmentation.ignore and Segmentation.masks."
            )
    ids = sorted({class_id for survey in surveys.values() for class_id in survey.ids})
    return MaskedParts(parts, found, tuple(ids), known, surveys["train"].size)


@dataclass(frozen=True)
class Pictures:
    """The images and masks of one evaluation, as its encoder sees them.

    Args:
        source: What there is.
        image_size: Of images and masks.
        grid: Rows and columns of patches.
        batch_size: Images at once.
        device: Where to compute.
    """

    source: MaskedParts
    image_size: tuple[int, int]
    grid: tuple[int, int]
    batch_size: int
    device: torch.device

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_classes(self) -> int:
        """Of all parts."""
        return len(self.source.ids)

    def batches(self, part: str) -> Iterator[tuple[Float[Tensor, "B C H W"], Int[Tensor, "B H W"]]]:
        """Images, and their masks as positions in `source.ids` (-1: no class); on the device."""
        dataset, masks, ids = self.source.parts[part], self.source.masks, torch.tensor(self.source.ids)
        for images, indices in evaluation_batches(dataset, self.image_size, self.batch_size, self.device):
            stored = masks.resized(dataset, indices, self.image_size)
            classes = torch.searchsorted(ids, stored).masked_fill(stored == masks.ignore, -1)
            yield images, classes.to(self.device)


@dataclass(frozen=True)
class PatchTable:
    """Patches of n images, the same number S of each; on the CPU.

    Args:
        features: By contender.
        shares: Of the classes among the pixels of each patch; they sum to less than one where pixels have no class.
    """

    features: dict[str, Float[Tensor, "n S D"]]
    shares: Float[Tensor, "n S K"]


def patch_table(extractors: dict[str, PatchExtractor], pictures: Pictures, part: str, *, seed: int) -> PatchTable:
    """Features of the patches to learn from: all of them, or a draw of each image where they are too many to hold."""
    num_images = sum(len(dataset) for name, dataset in pictures.source.parts.items() if name != "test")
    rng = np.random.default_rng(np.random.SeedSequence([seed, _PURPOSE, list(pictures.source.parts).index(part)]))
    features: dict[str, list[Tensor]] = {name: [] for name in extractors}
    shares = []
    num_kept: int | None = None
    for images, classes in pictures.batches(part):
        with torch.inference_mode():
            dense = {name: extractor(images).float() for name, extractor in extractors.items()}
        if num_kept is None:
            width = max(values.shape[2] for values in dense.values()) + pictures.num_classes
            num_kept = min(pictures.num_patches, max(1, MAX_VALUES // (num_images * width)))
        places = rng.random((len(images), pictures.num_patches)).argsort(axis=1)[:, :num_kept]
        kept = torch.from_numpy(np.sort(places, axis=1)).to(images.device)[:, :, None]
        for name, values in dense.items():
            features[name].append(values.gather(1, kept.expand(-1, -1, values.shape[2])).cpu())
        held = class_shares(classes, pictures.grid, pictures.num_classes)
        shares.append(held.gather(1, kept.expand(-1, -1, held.shape[2])).cpu())
    return PatchTable({name: torch.cat(values) for name, values in features.items()}, torch.cat(shares))


def class_shares(
    classes: Int[Tensor, "B H W"], grid: tuple[int, int], num_classes: int
) -> Float[Tensor, "B N {num_classes}"]:
    """Shares of the classes among the pixels of each patch; pixels of class -1 count in none."""
    batch, height, width = classes.shape
    rows, columns = (
        (torch.arange(size, device=classes.device) * count).div(size, rounding_mode="floor")
        for size, count in ((height, grid[0]), (width, grid[1]))
    )
    patch = rows[:, None] * grid[1] + columns
    image = torch.arange(batch, device=classes.device)[:, None, None]
    places = (image * (grid[0] * grid[1]) + patch) * (num_classes + 1) + classes + 1
    counts = places.flatten().bincount(minlength=batch * grid[0] * grid[1] * (num_classes + 1))
    counts = counts.view(batch, -1, num_classes + 1).float()
    return counts[:, :, 1:] / counts.sum(dim=2, keepdim=True)


def fitting_size(encoder: AnyEncoder, size: tuple[int, int]) -> tuple[int, int]:
    """Where the user leaves it open: images of this size as large as the encoder can take them, in whole patches.

    Their own proportions and at most their own size, with at most twice the encoder's patches along the shorter side:
    a position table that is stretched further means little. A network of another library keeps its own size.
    """
    if isinstance(encoder, WrappedEncoder):
        return encoder.image_size
    patch = encoder.patch_size
    most = MAX_STRETCH * min(encoder.grid)
    shorter = max(1, min(min(size) // patch, most))
    scale = min(1.0, shorter * patch / min(size))
    height, width = (max(1, round(side * scale / patch)) for side in size)
    return height * patch, width * patch


def pixel_patches(images: Float[Tensor, "B C H W"], grid: tuple[int, int]) -> Float[Tensor, "B N K"]:
    """Raw pixels of each patch in a row: what an encoder has to beat."""
    cells = [min(side // count, MAX_PIXEL_SIDE) or 1 for side, count in zip(images.shape[2:], grid, strict=True)]
    side = min(cells)
    size = (grid[0] * side, grid[1] * side)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return patchify(images, side)
