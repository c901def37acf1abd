"""Features of a frozen encoder for every image of a data set, and raw pixels as the reference beside them."""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.files import check_out, replace_file, write_npz
from pantomim.core.modes import evaluating
from pantomim.core.spread import COLLAPSED, relative_std
from pantomim.data.dataset import Dataset
from pantomim.data.stats import Stats, check_scale
from pantomim.data.stream import evaluation_batches
from pantomim.formats.files import hash_weights
from pantomim.formats.transform import Transform
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.tokens import patchify
from pantomim.nn.vit import Encoder, Features

AnyEncoder = Encoder | WrappedEncoder

MAX_PIXEL_VALUES = 3072  # of an image among raw pixels: 32 x 32 x 3; larger ones are shrunk
MAX_PIXEL_SIDE = 16  # of a patch among them
NUM_LOOKED_AT = 64  # images, for `collapse_warning`


@dataclass(frozen=True)
class FeatureTable:
    """One row an image."""

    views: dict[str, Float[Tensor, "n D"]]  # "class" and "mean" of an encoder, or "pixels"
    labels: Int[Tensor, " n"] | None
    names: tuple[str, ...]
    classes: tuple[str, ...] | None = None  # their names, by class id

    def __len__(self) -> int:
        return len(self.names)

    @property
    def known_labels(self) -> Int[Tensor, " n"]:
        """The labels, where they must be there."""
        assert self.labels is not None
        return self.labels

    def rows(self, indices: np.ndarray) -> "FeatureTable":
        """Some of the images."""
        chosen = torch.from_numpy(indices)
        labels = None if self.labels is None else self.labels[chosen]
        views = {name: values[chosen] for name, values in self.views.items()}
        return FeatureTable(views, labels, tuple(self.names[index] for index in indices), self.classes)


def extract(encoder: AnyEncoder, dataset: Dataset, *, batch_size: int = 256) -> FeatureTable:
    """The class token and the mean of the patches of every readable image, in float32 throughout, on the CPU."""
    check_images(encoder, dataset)
    batch_size = at_once(encoder, batch_size)
    before, device = hash_weights(encoder.state_dict()), next(encoder.parameters()).device
    with evaluating(encoder), torch.inference_mode():
        batches = images_for(encoder, dataset, batch_size, device)
        table = _table(dataset, ((views(encoder, encoder(images)), indices) for images, indices in batches))
    assert hash_weights(encoder.state_dict()) == before, "a frozen encoder has changed"
    return table


def at_once(encoder: AnyEncoder, batch_size: int) -> int:
    """Fewer images than `batch_size` above 224 x 224, so that memory stays within bounds and progress is seen."""
    return max(1, min(batch_size, batch_size * 224**2 // math.prod(encoder.image_size)))


def views(encoder: AnyEncoder, features: Features) -> dict[str, Float[Tensor, "B D"]]:
    """One vector an image, in the ways a protocol may choose from."""
    mean = features.patches.mean(dim=1)
    return {"class": features.prefix[:, 0], "mean": mean} if encoder.has_class_token else {"mean": mean}


def images_for(
    encoder: AnyEncoder, dataset: Dataset, batch_size: int, device: Any, indices: np.ndarray | None = None
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """As `evaluation_batches`, of the size of an encoder, resized as `Transform` does it for a picture."""
    how = Transform.of(encoder).interpolation
    return evaluation_batches(dataset, encoder.image_size, batch_size, device, indices, interpolation=how)


def random_init_encoder(encoder: AnyEncoder, seed: int) -> AnyEncoder:
    """The same network with freshly drawn weights, as a baseline; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = (encoder.untrained() if isinstance(encoder, WrappedEncoder) else Encoder(encoder.config)).eval()
    drawn.interpolation = encoder.interpolation  # the images stay the same
    return drawn


def check_images(encoder: AnyEncoder, dataset: Dataset) -> None:
    """Refuse images that the encoder cannot take, or that are scaled by another rule than those of its training."""
    if encoder.in_chans != dataset.channels:
        raise ValueError(
            f"encoder must have as many channels as the images; got an encoder of {encoder.in_chans} and "
            f"{dataset.spec} of {dataset.channels}. Pre-train on images of {dataset.channels} channel(s), or convert "
            f"these."
        )
    check_scale(encoder, dataset)


def collapse_warning(encoder: AnyEncoder, dataset: Dataset) -> str | None:
    """What to say of an encoder with nearly the same features for all of some images; not finite: `ValueError`."""
    chosen, device = dataset.spread(NUM_LOOKED_AT), next(encoder.parameters()).device
    with evaluating(encoder), torch.inference_mode():
        batches = images_for(encoder, dataset, 16, device, chosen)
        table = _table(dataset, ((views(encoder, encoder(images)), indices) for images, indices in batches))
    if len(table) < 2 or any(relative_std(values) > COLLAPSED for values in table.views.values()):
        return None
    return (
        f"the encoder has collapsed, unless the images are all alike: its features of {len(table)} images of "
        f"{dataset.spec} differ by less than {COLLAPSED:g} of their size. Scores say nothing of it."
    )


def check_finite(values: Tensor, whose: str) -> Tensor:
    """The values; a ValueError, where one is NaN or infinite: a score of it would be made of nothing."""
    if not values.isfinite().all():
        raise ValueError(
            f"Features must be finite; got NaN or infinity for {whose}. Take another checkpoint of the encoder, and "
            f"look at the images."
        )
    return values


def pixel_table(dataset: Dataset, image_size: tuple[int, int], stats: Stats) -> FeatureTable:
    """Raw pixels of `image_size`, or shrunk (`pixel_size`), standardised by the training images' channels."""
    batches = evaluation_batches(dataset, pixel_size(image_size, dataset.channels), 256, "cpu")
    return _table(dataset, (({"pixels": pixel_vector(images, stats)}, indices) for images, indices in batches))


def pixel_vector(images: Float[Tensor, "B C H W"], stats: Stats) -> Float[Tensor, "B D"]:
    """Standardised pixels in a row."""
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (stats.mean, stats.std))
    return ((images - mean) / std).flatten(1)


def pixel_patches(images: Float[Tensor, "B C H W"], grid: tuple[int, int]) -> Float[Tensor, "B N K"]:
    """Raw pixels of each patch in a row: what an encoder has to beat."""
    side = min(min(side // count, MAX_PIXEL_SIDE) or 1 for side, count in zip(images.shape[2:], grid, strict=True))
    size = (grid[0] * side, grid[1] * side)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return patchify(images, side)


def pixel_size(image_size: tuple[int, int], channels: int) -> tuple[int, int]:
    """The size of images in the pixel reference: the encoder's, shrunk to `MAX_PIXEL_VALUES` values an image."""
    height, width = image_size
    shrink = min(1.0, math.sqrt(MAX_PIXEL_VALUES / (channels * height * width)))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def check_features_path(path: str | Path) -> None:
    """Refuse a file that `save_features` could not write; to be called before features are extracted."""
    check_out("features.out", Path(path), [".npz", ".parquet"])
    if Path(path).suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"features.out as .parquet must have pyarrow; got {path}, and it is not installed. "
                f"Run `pip install 'pantomim[parquet]'`, or write an .npz."
            ) from error


def save_features(table: FeatureTable, path: str | Path) -> None:
    """Write a table as FILE.npz or FILE.parquet: `names`, `class`, `mean`, `labels` (-1: none), `label_names`."""
    path = Path(path)
    check_features_path(path)
    columns = {"names": np.array(table.names, dtype=str)} | {name: found.numpy() for name, found in table.views.items()}
    if table.labels is not None:
        columns["labels"] = table.labels.numpy()
        columns["label_names"] = np.array([*(table.classes or ()), ""])[columns["labels"]]
    if path.suffix == ".npz":
        write_npz(path, columns)
        return
    import pyarrow.parquet

    vectors = {name: pyarrow.array(values.reshape(-1)) for name, values in columns.items()}
    for name in table.views:
        vectors[name] = pyarrow.FixedSizeListArray.from_arrays(vectors[name], columns[name].shape[1])
    pyarrow.parquet.write_table(pyarrow.table(vectors), buffer := io.BytesIO())
    replace_file(path, buffer.getvalue())


def _table(dataset: Dataset, batches: Iterable[tuple[dict[str, Tensor], np.ndarray]]) -> FeatureTable:
    """The rows of all batches: their views, and which images they are of."""
    found = [({name: values.cpu() for name, values in of_batch.items()}, indices) for of_batch, indices in batches]
    indices = np.concatenate([chosen for _, chosen in found])
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels[indices])
    columns = {name: torch.cat([of_batch[name] for of_batch, _ in found]).float() for name in found[0][0]}
    for values in columns.values():
        check_finite(values, dataset.spec)
    names = dataset.names
    return FeatureTable(columns, labels, tuple(names[index] for index in indices), dataset.classes)
