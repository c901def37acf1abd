"""Features of a frozen encoder for every image of a data set, and raw pixels as the reference beside them."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.files import check_out, replace_file
from pantomim.data.dataset import Dataset
from pantomim.data.stats import Stats
from pantomim.data.stream import evaluation_batches
from pantomim.formats.files import hash_weights, load_exactly
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.resize import resize_encoder_weights
from pantomim.nn.vit import Encoder, Features

AnyEncoder = Encoder | WrappedEncoder

MAX_PIXEL_VALUES = 3072  # of an image in the pixel reference: 32 x 32 x 3; larger images are shrunk


@dataclass(frozen=True)
class FeatureTable:
    """One row an image.

    Args:
        views: By name, one or more vectors of each image: "class" and "mean" of an encoder, or "pixels".
        labels: Class ids, or None.
        names: Of the images.
    """

    views: dict[str, Float[Tensor, "n D"]]
    labels: Int[Tensor, " n"] | None
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def known_labels(self) -> Int[Tensor, " n"]:
        """The labels, where they are known to be there."""
        assert self.labels is not None
        return self.labels

    def rows(self, indices: np.ndarray) -> "FeatureTable":
        """Some of the images."""
        chosen = torch.from_numpy(indices)
        labels = None if self.labels is None else self.labels[chosen]
        views = {name: values[chosen] for name, values in self.views.items()}
        return FeatureTable(views, labels, tuple(self.names[index] for index in indices))


def extract(
    encoder: AnyEncoder,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> FeatureTable:
    """The class token (if there is one) and the mean of the patches, for every readable image.

    Float32 throughout, so that the same call gives the same table; it lies on the CPU. The encoder stays as it is,
    weight for weight: this is checked.

    Args:
        encoder: Its mode is given back as it was.
        dataset: One split; images of another size are resized and cropped to the encoder's.
        batch_size: Images that the encoder sees at once.
        device: Where the encoder is moved and run; None: where it is.

    Raises:
        ValueError: if the images have other channels than the encoder.
    """
    check_channels(encoder, dataset)
    before, was_training = hash_weights(encoder.state_dict()), encoder.training
    device = next(encoder.parameters()).device if device is None else torch.device(device)
    encoder.to(device).eval()
    collected: dict[str, list[Tensor]] = {}
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for images, indices in evaluation_batches(dataset, encoder.image_size, batch_size, device):
            for name, values in views(encoder, encoder(images)).items():
                collected.setdefault(name, []).append(values.cpu())
            found.append(indices)
    encoder.train(was_training)
    assert hash_weights(encoder.state_dict()) == before, "a frozen encoder has changed"
    return _table(dataset, collected, found)


def views(encoder: AnyEncoder, features: Features) -> dict[str, Float[Tensor, "B D"]]:
    """One vector an image, in the ways a protocol may choose from."""
    mean = features.patches.mean(dim=1)
    return {"class": features.prefix[:, 0], "mean": mean} if has_class_token(encoder) else {"mean": mean}


def has_class_token(encoder: AnyEncoder) -> bool:
    """Whether the first prefix token is a class token."""
    return encoder.has_class_token if isinstance(encoder, WrappedEncoder) else encoder.config.class_token


def random_init_encoder(encoder: AnyEncoder, seed: int) -> AnyEncoder:
    """The same network with freshly drawn weights, as a baseline; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (encoder.untrained() if isinstance(encoder, WrappedEncoder) else Encoder(encoder.config)).eval()


def resized_encoder(encoder: AnyEncoder, image_size: tuple[int, int]) -> AnyEncoder:
    """The same encoder for images of another size, its tables of positions resampled; evaluation mode.

    Raises:
        ValueError: for a size that it cannot take: in no whole number of patches, or not the only one it is made for.
    """
    if image_size == encoder.image_size:
        return encoder.eval()
    device = next(encoder.parameters()).device
    if isinstance(encoder, WrappedEncoder):
        # Half a patch at the border would be cut off in silence by some networks and refused by others.
        if any(side % cell for side, cell in zip(image_size, encoder.stride, strict=True)):
            fitting = [max(round(side / cell), 1) * cell for side, cell in zip(image_size, encoder.stride, strict=True)]
            raise ValueError(
                f"Evaluation.image_size must be a multiple of the patches of {encoder.source}, "
                f"{encoder.stride[0]} x {encoder.stride[1]} pixels; got {image_size[0]} x {image_size[1]}. Choose "
                f"{fitting[0]} {fitting[1]}: images are then resized."
            )
        return encoder.resized(image_size).to(device).eval()
    weights, config = resize_encoder_weights(encoder.state_dict(), encoder.config, image_size)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten; nobody else's draws may change
        resized = Encoder(config)
    load_exactly(resized, weights, "resized encoder")
    return resized.to(device).eval()


def check_channels(encoder: AnyEncoder, dataset: Dataset) -> None:
    """Refuse images that the encoder cannot take.

    Raises:
        ValueError: naming both numbers of channels.
    """
    if encoder.in_chans != dataset.channels:
        raise ValueError(
            f"encoder must have as many channels as the images; got an encoder of {encoder.in_chans} and "
            f"{dataset.spec} of {dataset.channels}. Pre-train on images of {dataset.channels} channel(s), or convert "
            f"these."
        )


def pixel_table(dataset: Dataset, image_size: tuple[int, int], stats: Stats, *, batch_size: int = 256) -> FeatureTable:
    """Raw pixels, standardised by channel, as one vector an image: what an encoder has to beat.

    Args:
        dataset: One split.
        image_size: Of the encoder; see `pixel_size` for the size that is used.
        stats: Of the channels of the training images.
        batch_size: Images at once.
    """
    values: list[Tensor] = []
    found: list[np.ndarray] = []
    size = pixel_size(image_size, dataset.channels)
    for images, indices in evaluation_batches(dataset, size, batch_size, "cpu"):
        values.append(pixel_vector(images, stats))
        found.append(indices)
    return _table(dataset, {"pixels": values}, found)


def pixel_vector(images: Float[Tensor, "B C H W"], stats: Stats) -> Float[Tensor, "B D"]:
    """Standardised pixels in a row."""
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (stats.mean, stats.std))
    return ((images - mean) / std).flatten(1)


def pixel_size(image_size: tuple[int, int], channels: int) -> tuple[int, int]:
    """The size of images in the pixel reference: the encoder's, shrunk to `MAX_PIXEL_VALUES` values an image."""
    height, width = image_size
    shrink = min(1.0, math.sqrt(MAX_PIXEL_VALUES / (channels * height * width)))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def check_features_path(path: str | Path) -> None:
    """Refuse a file that `save_features` could not write; to be called before features are extracted.

    Raises:
        ValueError: for an ending other than .npz and .parquet, a folder, or a place that cannot be written to; or for
            .parquet if pyarrow is missing.
    """
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
    """Write a table as FILE.npz or FILE.parquet, with arrays or columns `names`, `labels`, `class`, `mean`.

    Raises:
        ValueError: as `check_features_path`.
    """
    path = Path(path)
    check_features_path(path)
    columns = {name: values.numpy() for name, values in table.views.items()}
    if table.labels is not None:
        columns["labels"] = table.labels.numpy()
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, names=np.array(table.names, dtype=str), **columns)  # type: ignore[arg-type]
    else:
        _write_parquet(buffer, table.names, columns)
    replace_file(path, buffer.getvalue())


def _write_parquet(buffer: io.BytesIO, names: tuple[str, ...], columns: dict[str, np.ndarray]) -> None:
    import pyarrow
    import pyarrow.parquet

    arrays = {"names": pyarrow.array(names)}
    for name, values in columns.items():
        flat = pyarrow.array(values.reshape(-1))
        vectors = values.ndim == 2
        arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1]) if vectors else flat
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)


def _table(dataset: Dataset, collected: dict[str, list[Tensor]], found: list[np.ndarray]) -> FeatureTable:
    indices = np.concatenate(found)
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels[indices])
    names = dataset.names
    return FeatureTable(
        {name: torch.cat(parts).float() for name, parts in collected.items()},
        labels,
        tuple(names[index] for index in indices),
    )
