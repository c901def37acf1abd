"""Look into encoders, block by block: how far heads look, how many directions tokens lie in, which layers are alike.

`inspect_blocks("spectrum", ["RUN", "timm:NAME"])` measures several encoders on the same images;
`block_facts.write_block_facts` leaves the arrays beside a page and in each run folder, where the report finds them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pantomim.analysis.attention_distance import attention_distance, patch_distances
from pantomim.analysis.block_facts import BlockFacts, Kind
from pantomim.analysis.blocks import block_features, num_blocks, patch_sides
from pantomim.analysis.cka import FEWEST, LayerCKA
from pantomim.analysis.concentration import concentration
from pantomim.analysis.reconstructions import choose, held_out
from pantomim.config import Pretrain, from_yaml
from pantomim.data.dataset import Dataset
from pantomim.data.stream import evaluation_batches
from pantomim.evaluate.features import check_channels
from pantomim.formats import load_encoder
from pantomim.formats.files import hash_weights
from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.vit import Encoder

AnyEncoder = Encoder | WrappedEncoder
Arrays = dict[str, np.ndarray]

COUNT = 128  # images, where the user does not say
BATCH = 16  # images at once; attention of a block is (B, heads, T, T)
CKA_BATCH = 64  # images in one estimate


def inspect_blocks(
    kind: Kind,
    specs: Sequence[str | Path],
    images: str | None = None,
    *,
    count: int = COUNT,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> BlockFacts:
    """Measure encoders on the same images, each at its own size.

    Args:
        kind: Which analysis.
        specs: What `load_encoder` takes.
        images: A source, whose held-out images are used; None: that of the first encoder's run.
        count: How many images, a seeded draw; all, where there are fewer. CKA takes whole batches of them; how many
            these are, and how many are left out, stands in the facts.
        seed: Of the draw.
        device: Where to run.

    Raises:
        ValueError: if there is no encoder or no image, the images do not fit, or an encoder has no blocks to look at.
    """
    if not specs or count < 1:
        raise ValueError(f"inspect needs at least one encoder and one image; got {len(specs)} and {count}.")
    source = images or _source_of(specs[0])
    dataset = held_out(source)
    indices = np.sort(choose(dataset, count, seed))
    if kind == "cka" and len(indices) < FEWEST:
        raise ValueError(f"inspect.count must be at least {FEWEST} for cka; got {len(indices)} images. Give more.")
    encoders = [load_encoder(spec).to(device).eval() for spec in specs]
    for encoder in encoders:
        check_channels(encoder, dataset)
    seen: int | None = None
    facts: dict[str, Any] = {}
    with torch.inference_mode():
        if kind == "cka":
            arrays, seen = _measure_cka(encoders, dataset, indices, device)
            facts["batch_size"] = min(CKA_BATCH, len(indices))
        else:
            measure = _MEASURES[kind]
            found = [measure(encoder, _batches(encoder, dataset, indices, device)) for encoder in encoders]
            arrays = {f"{name}_{number}": value for number, own in enumerate(found) for name, value in own.items()}
    healthy = int((~np.isin(indices, list(dataset.broken_reasons()))).sum())
    if seen is not None:
        facts["left_out"] = healthy - seen
    about = {
        "analysis": kind,
        "encoders": _describe(specs, encoders, dataset),
        "source": source,
        "dataset": dataset.name,
        "split": dataset.split,
        "images": healthy if seen is None else seen,
        "seed": seed,
        **facts,
    }
    return BlockFacts(kind, arrays, about)


def default_page(kind: Kind, specs: Sequence[str | Path]) -> Path:
    """In the first encoder's run folder.

    Raises:
        ValueError: if that is none.
    """
    folder = Path(specs[0])
    if not folder.is_dir():
        raise ValueError(
            f"inspect {kind} needs --out FILE.html where the first encoder is no run folder; got {folder}."
        )
    return folder / "analysis" / (f"{kind}.html" if len(specs) == 1 else f"{kind}-compared.html")


def _measure_distance(encoder: AnyEncoder, batches: Iterator[Tensor]) -> Arrays:
    distances = patch_distances(encoder.grid, patch_sides(encoder))
    distance: Tensor | None = None
    prefix: Tensor | None = None
    num_images = 0
    for images in batches:
        blocks = block_features(encoder, images, need_attention=True)
        reaches = [
            attention_distance(block.attention, distances, encoder.num_prefix)
            for block in blocks
            if block.attention is not None
        ]
        far = torch.stack([reach.distance.sum(dim=0).cpu() for reach in reaches])
        share = torch.stack([reach.prefix_share.sum(dim=0).cpu() for reach in reaches])
        distance, prefix = far if distance is None else distance + far, share if prefix is None else prefix + share
        num_images += len(images)
    assert distance is not None
    assert prefix is not None
    num_tokens = encoder.num_prefix + len(distances)
    return {
        "distance": (distance / num_images).numpy(),
        "prefix_share": (prefix / num_images).numpy(),
        "uniform": (distances.sum(dim=1).mean() / num_tokens).numpy(),
    }


def _measure_spectrum(encoder: AnyEncoder, batches: Iterator[Tensor]) -> Arrays:
    shares: Tensor | None = None
    num_images = 0
    for images in batches:
        own = torch.stack([concentration(block.patches).sum(dim=0).cpu() for block in block_features(encoder, images)])
        shares = own if shares is None else shares + own
        num_images += len(images)
    assert shares is not None
    return {"shares": (shares / num_images).numpy()}


_MEASURES: dict[str, Callable[[AnyEncoder, Iterator[Tensor]], Arrays]] = {
    "attention-distance": _measure_distance,
    "spectrum": _measure_spectrum,
}


def _measure_cka(
    encoders: Sequence[AnyEncoder], dataset: Dataset, indices: np.ndarray, device: torch.device | str
) -> tuple[Arrays, int]:
    """The patches of an image in a row, as in Raghu et al. 2021, arXiv:2108.08810; prefix tokens are left out.

    Returns: the matrix, and how many images are in it: those of whole batches.
    """
    alike, seen = LayerCKA(), 0
    size = min(CKA_BATCH, len(indices))
    for first in range(0, len(indices) - size + 1, size):  # whole batches: each weighs the same
        chunk = indices[first : first + size]
        layers: list[Tensor] = []
        for encoder in encoders:
            images = torch.cat(list(_batches(encoder, dataset, chunk, device)))
            layers += [block.patches.flatten(1) for block in block_features(encoder, images)]
        alike.see(layers)
        seen += len(layers[0])
    return {"cka": alike.matrix().numpy()}, seen


def _batches(
    encoder: AnyEncoder, dataset: Dataset, indices: np.ndarray, device: torch.device | str
) -> Iterator[Tensor]:
    for images, _ in evaluation_batches(dataset, encoder.image_size, BATCH, device, indices=indices):
        yield images


def _describe(specs: Sequence[str | Path], encoders: Sequence[AnyEncoder], dataset: Dataset) -> list[dict[str, Any]]:
    names = [str(spec) if ":" in str(spec) else Path(spec).name or str(spec) for spec in specs]
    names = [str(spec) if names.count(name) > 1 else name for name, spec in zip(names, specs, strict=True)]
    depths = [num_blocks(encoder) for encoder in encoders]
    return [
        {
            "name": name,
            "spec": str(spec),
            "depth": depth,
            "image_size": list(encoder.image_size),
            "grid": list(encoder.grid),
            "num_prefix": encoder.num_prefix,
            "sha256": hash_weights(encoder.state_dict()),
        }
        for name, spec, depth, encoder in zip(names, specs, depths, encoders, strict=True)
    ]


def _source_of(spec: str | Path) -> str:
    """The images of a run.

    Raises:
        ValueError: if there is no run to ask.
    """
    config = Path(spec) / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"inspect.images must be given where the first encoder is no run folder; got none, and {spec}. "
            f"Give --images SRC."
        )
    return from_yaml(Pretrain, config).data.source
