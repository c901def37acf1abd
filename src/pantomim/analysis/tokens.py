"""What a tokenizer makes of a data set: the ids of every image, kept in a file, and how good a trained one is.

`write_ids(tokenizer, dataset, path, ...)` leaves an .npz that is made again only where tokenizer, images or transform
have changed; `write_tokenizer_report("RUN")` measures a finished run on images that it was not trained on.
"""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from pantomim.analysis.pictures import read_images
from pantomim.analysis.runs import held_out
from pantomim.config import Pretrain, from_yaml
from pantomim.core.files import check_out, replace_file, write_npz
from pantomim.data.dataset import Dataset
from pantomim.data.stats import check_scale
from pantomim.data.stream import evaluation_batches
from pantomim.formats.files import hash_weights
from pantomim.methods.dvae import DVAEConfig
from pantomim.methods.vqkd import VQKDConfig
from pantomim.tokenizers import Tokenizer, load_tokenizer
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.usage import CodeUsage, TokenizerReport, code_usage, measure_tokenizer
from pantomim.tokenizers.vqkd import VQKDTokenizer

NUM_SHOWN = 8  # images in the picture of a report
REPORT, PICTURE = "tokenizer_report.json", "tokenizer_report.png"
# In the key of every file of ids that was written: another wording would make them all stale.
TRANSFORM = "largest centred part of the wanted proportions, resized with antialiasing, values scaled; no flip"


@dataclass(frozen=True)
class Ids:
    """The ids of the images of one split, and how they use the codes."""

    ids: Int[np.ndarray, "n rows cols"]  # uint16 where the vocabulary allows, else int32
    usage: CodeUsage
    fresh: bool  # computed now; else they were found in the file


def ids_key(tokenizer: Tokenizer, dataset: Dataset, image_size: tuple[int, int]) -> dict[str, Any]:
    """Everything that ids depend on, as plain values; images are known as `Dataset.key` knows them."""
    assert isinstance(tokenizer, nn.Module), "every tokenizer that can be loaded is a module"
    weights = dict(tokenizer.state_dict()) | dict(tokenizer.named_buffers())
    rows, cols = tokenizer.grid_of(image_size)
    return {
        "tokenizer": {
            "kind": type(tokenizer).__name__,
            "vocabulary": tokenizer.vocabulary,
            "precision": getattr(tokenizer, "precision", "float32"),
            "standardised": bool(getattr(tokenizer, "standardised", False)),
            "sha256": hash_weights(weights),
        },
        "data": dataset.key(),
        "transform": {"image_size": list(image_size), "grid": [rows, cols], "rule": TRANSFORM},
        "scale": asdict(dataset.scale),
    }


def write_ids(
    tokenizer: Tokenizer,
    dataset: Dataset,
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
) -> Ids:
    """Write `ids`, `names`, `labels` and `key` (JSON) of every readable image to FILE.npz, unless it holds them."""
    check_out("ids", path, [".npz"])
    size = image_size or dataset.facts.size
    if size is None:
        raise ValueError(
            f"write_ids.image_size must be given where images differ in size; got none, and {dataset.spec} has images "
            f"with a median shorter side of {dataset.facts.median_shorter_side}. Give height and width."
        )
    channels = getattr(tokenizer, "in_chans", dataset.channels)
    if channels != dataset.channels:
        raise ValueError(
            f"tokenizer must take the channels of the images; got one for {channels}, and {dataset.spec} has "
            f"{dataset.channels}. Train one on such images: `pantomim tokenizer train`."
        )
    assert isinstance(tokenizer, nn.Module)
    check_scale(tokenizer, dataset)
    key = ids_key(tokenizer, dataset, size)
    if path.exists():
        return _found(path, key)
    tokenizer.to(device).eval()
    rows, cols = tokenizer.grid_of(size)
    dtype = np.uint16 if tokenizer.vocabulary <= 2**16 else np.int32
    parts, indices = [], []
    for images, chosen in evaluation_batches(dataset, size, batch_size, device):
        parts.append(tokenizer(images).view(-1, rows, cols).cpu().numpy().astype(dtype))
        indices.append(chosen)
    ids, kept = np.concatenate(parts), np.concatenate(indices)
    names = np.array(dataset.names, dtype=str)[kept]
    columns = {"ids": ids, "names": names, "key": np.array(json.dumps(key))}
    if dataset.labels is not None:
        labels = dataset.labels[kept]
        columns |= {"labels": labels, "label_names": np.array([*(dataset.classes or ()), ""])[labels]}
    write_npz(path, columns)
    return Ids(ids, _usage(ids, tokenizer.vocabulary), fresh=True)


def _found(path: Path, key: dict[str, Any]) -> Ids:
    """The ids of a file, if they are those of the key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, stated = file["ids"], json.loads(str(file["key"]))
        different = [part for part in key if stated.get(part) != key[part]]
    except (OSError, ValueError, KeyError, AttributeError, EOFError) as error:
        raise ValueError(
            f"ids must be a file that `pantomim tokenizer encode` wrote; got {path} ({error}). Name another file."
        ) from error
    if different:
        raise ValueError(
            f"ids must be a new file, or hold the ids of this tokenizer, data and transform; got {path}, which was "
            f"made with another {' and '.join(different)}. Write to another file, or remove the file."
        )
    return Ids(ids, _usage(ids, key["tokenizer"]["vocabulary"]), fresh=False)


def _usage(ids: Int[np.ndarray, "n rows cols"], vocabulary: int) -> CodeUsage:
    return code_usage(torch.from_numpy(np.bincount(ids.ravel(), minlength=vocabulary)).double())


def write_tokenizer_report(run: Path, *, max_images: int = 2000) -> TokenizerReport:
    """Measure a finished run's tokenizer on up to `max_images` held-out images; leave numbers and a picture."""
    config = from_yaml(Pretrain, run / "config.yaml")
    if not isinstance(config.method, DVAEConfig | VQKDConfig):
        raise ValueError(
            f"run must be one of `pantomim tokenizer train`; got {run}, a run of {config.recipe}. Give another folder."
        )
    tokenizer = load_tokenizer(run)
    assert isinstance(tokenizer, DVAETokenizer | VQKDTokenizer)
    method, dataset = config.method, held_out(config.data.source, config.data.scale)
    size = method.image_size if isinstance(method, DVAEConfig) else method.encoder.image_size
    indices = np.unique(np.linspace(0, len(dataset) - 1, max_images).astype(int))
    seen = (images for images, _ in evaluation_batches(dataset, size, 64, "cpu", indices))
    report = measure_tokenizer(tokenizer, seen)
    count = report.usage.positions // int(np.prod(tokenizer.grid_of(size)))
    values = {"data": config.data.source, "split": dataset.split, "images": count, "image_size": list(size)}
    values |= {"usage": asdict(report.usage), "collapsed": report.usage.collapsed}
    values |= {"mse": report.mse, "mse_of_means": report.mse_of_means}
    replace_file(run / REPORT, (json.dumps(values, indent=2) + "\n").encode())
    if isinstance(tokenizer, DVAETokenizer):
        shown, _ = read_images(dataset, size, indices[:NUM_SHOWN])
        decoded = tokenizer.decode(tokenizer(shown), tokenizer.grid_of(size))
        replace_file(run / PICTURE, _two_rows(shown, decoded))
    return report


def _two_rows(images: Tensor, decoded: Tensor) -> bytes:
    """A PNG: images above, decoded ones below; of other than one or three channels the first is shown."""
    both = torch.stack([images, decoded]).cpu().clamp(0, 1)  # (2, B, C, H, W)
    shown = both if both.shape[2] in (1, 3) else both[:, :, :1]
    rows = shown.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (2 H, B W, C)
    scale = max(1, 64 // images.shape[-1])
    pixels = (rows * 255).round().byte().repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return buffer.getvalue()
