"""What CAE's decoder makes of all patches when the regressor is left out: legible only if the alignment has worked.

The decoder was trained on the regressor's predictions and on nothing else. If it can read what the encoder says of the
patches itself, the two speak of the same things; without the alignment nothing asks them to.

Paper: Chen et al., arXiv:2202.03026, the alignment figure. It is not stated there whether pixels or tokens were the
target; here either is.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from pantomim.analysis.reconstructions import choose, display_range, held_out, shown_bands, to_picture
from pantomim.analysis.runs import load_run
from pantomim.config import Pretrain, from_yaml
from pantomim.core.files import replace_file
from pantomim.data.sources import open_source
from pantomim.data.stream import evaluation_batches
from pantomim.methods.cae import CAE, evaluating
from pantomim.targets.pixels import PixelTarget
from pantomim.targets.tokens import TokenTarget
from pantomim.tokenizers.base import Picturing

Measure = Literal["explained", "accuracy"]


@dataclass(frozen=True)
class WithoutRegressor:
    """Images that went from the encoder straight into the decoder, in the scale of the images.

    Args:
        shown: What the decoder makes of them.
        reference: What is in the picture whatever the decoder does (pixels, if targets are normalised patch by patch:
            mean and deviation of each true patch), or at best (tokens: the true ids, decoded); None: neither.
        reference_name: Which of the two.
        measure: What `score` is: "explained", the share of the variation of the target over patches that the output
            explains (1 is perfect, 0 what the mean reaches, less is worse than that); "accuracy", the share of ids.
        score: As `measure` says.
    """

    shown: Float[np.ndarray, "B C H W"]
    reference: Float[np.ndarray, "B C H W"] | None
    reference_name: str
    measure: Measure
    score: float


@dataclass(frozen=True)
class Row:
    """Pictures of one kind, one an image.

    Args:
        title: Whose they are.
        text: What there is to know of them.
        pictures: 8-bit.
    """

    title: str
    text: str
    pictures: UInt8[np.ndarray, "n H W C"]


@dataclass(frozen=True)
class AlignmentPictures:
    """The same images through several runs, without their regressors.

    Args:
        items: Names of the images.
        rows: The images first, then each run's.
        caption: What one must know to read the pictures.
    """

    items: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str


@torch.no_grad()
def without_regressor(method: CAE, images: Float[Tensor, "B C H W"]) -> WithoutRegressor:
    """All patches through the encoder, and its output into the decoder.

    Args:
        method: In whichever mode it is; it is put into evaluation mode and back.
        images: Scaled as in training, of the encoder's size.

    Raises:
        ValueError: if the target is nothing of which a picture can be made.
    """
    kernel = method.encoder.patch_embed.proj.weight
    images = images.to(kernel.device, kernel.dtype)
    target = method.target
    if not isinstance(target, PixelTarget | TokenTarget):
        raise ValueError(
            f"without_regressor.method must predict pixels, or tokens that can be decoded; got "
            f"{type(target).__name__}, which is no picture. Choose a run with --target pixels or tokens."
        )
    with evaluating(method):
        output, truth = method.without_regressor(images), target(images)
    if isinstance(target, PixelTarget):
        error, variation = (output - truth).square().sum(), (truth - truth.mean(dim=(0, 1))).square().sum()
        given = None if target.normalise == "none" else target.to_images(torch.zeros_like(output), images)
        return WithoutRegressor(
            _numpy(target.to_images(output, images)),
            None if given is None else _numpy(given),
            "" if given is None else "mean and deviation of each true patch alone, which are given",
            "explained",
            1.0 - (error / variation).item(),
        )
    tokenizer, grid = target.tokenizer, method.encoder.grid
    if not isinstance(tokenizer, Picturing):
        raise ValueError(
            f"without_regressor.method must predict pixels, or tokens that can be decoded; got tokens of "
            f"{type(tokenizer).__name__}, which has no decoder. Choose a run with --target pixels, or with a tokenizer "
            f"trained by `pantomim tokenizer train`."
        )
    ids = output.argmax(dim=-1)
    shown, best = (_sized(tokenizer.decode(found, grid), images) for found in (ids, truth))
    right = (ids == truth).double().mean().item()
    return WithoutRegressor(_numpy(shown), _numpy(best), "the true ids, decoded", "accuracy", right)


def load_cae_run(run: str | Path) -> CAE:
    """The method of a finished run of CAE, from its folder alone.

    Raises:
        ValueError: if it is no run of CAE, or as `load_run`.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise ValueError(f"inspect.runs must be run folders; got {run}, which has no config.yaml. Check the path.")
    kind = from_yaml(Pretrain, run / "config.yaml").method.kind
    if kind != "cae":
        raise ValueError(
            f"inspect.runs must be runs of CAE, which alone has a regressor to leave out; got {run}, a run of {kind}."
        )
    method = load_run(run)
    assert isinstance(method, CAE)
    return method


def inspect_alignment(
    runs: Sequence[str | Path], images: str | None = None, *, count: int = 8, seed: int = 0
) -> AlignmentPictures:
    """Pictures of one or several runs on the same images, side by side.

    Args:
        runs: Run folders of CAE; with and without alignment, say.
        images: A source of images; None: held-out images of the first run's data.
        count: How many.
        seed: Of the choice of images.

    Raises:
        ValueError: also if the runs' images differ in size or channels.
    """
    if not runs or count < 1:
        raise ValueError(f"inspect needs at least one run and one image; got {len(runs)} and {count}.")
    methods = [load_cae_run(run) for run in runs]
    first = methods[0].encoder
    for run, method in zip(runs, methods, strict=True):
        if (method.encoder.image_size, method.encoder.in_chans) != (first.image_size, first.in_chans):
            raise ValueError(
                f"inspect.runs must take images of one size and number of channels; got {first.image_size} and "
                f"{first.in_chans} in {runs[0]}, {method.encoder.image_size} and {method.encoder.in_chans} in {run}."
            )
    config = from_yaml(Pretrain, Path(runs[0]) / "config.yaml")
    dataset = held_out(config.data.source) if images is None else open_source(images, "all")
    if dataset.channels != first.in_chans:
        raise ValueError(
            f"inspect.images must have the encoder's {first.in_chans} channels; got {dataset.channels} in "
            f"{dataset.spec}. Give other images."
        )
    bands = shown_bands(dataset.channels)
    indices = choose(dataset, count, seed)
    found = list(evaluation_batches(dataset, first.image_size, len(indices), torch.device("cpu"), indices=indices))
    batch = torch.cat([part for part, _ in found])
    original = _numpy(batch)
    low, high = display_range(original[:, bands], dataset.scale)

    def picture(values: np.ndarray) -> np.ndarray:
        return to_picture(values[:, bands], low, high)

    rows = [Row("images", "", picture(original))]
    for run, method in zip(runs, methods, strict=True):
        result = without_regressor(method, batch)
        if result.reference is not None:
            reference = Row(result.reference_name, "", picture(result.reference))
            if not any(np.array_equal(row.pictures, reference.pictures) for row in rows):
                rows.append(reference)
        rows.append(Row(Path(run).name, _words(method, result), picture(result.shown)))
    items = tuple(dataset.names[int(index)] for _, ids in found for index in ids)
    return AlignmentPictures(items, tuple(rows), _caption(dataset.name, len(items), seed))


def write_alignment_arrays(run: str | Path, *, count: int = 8, seed: int = 0) -> Path:
    """The pictures of one run on held-out images of its data, in `RUN/analysis/alignment.npz`, for its report.

    The file holds `row_0`, `row_1` ... (n, H, W, 1 or 3), and titles, texts, names and caption as JSON in `about`.

    Raises:
        ValueError: as `inspect_alignment`.
    """
    found = inspect_alignment([run], count=count, seed=seed)
    about = {
        "titles": [row.title for row in found.rows],
        "texts": [row.text for row in found.rows],
        "items": list(found.items),
        "caption": found.caption,
    }
    buffer = io.BytesIO()
    pictures = {f"row_{number}": row.pictures for number, row in enumerate(found.rows)}
    np.savez(buffer, about=np.array(json.dumps(about)), **pictures)  # type: ignore[arg-type]
    path = Path(run) / "analysis" / "alignment.npz"
    replace_file(path, buffer.getvalue())
    return path


def _words(method: CAE, result: WithoutRegressor) -> str:
    """Alignment and score of a run."""
    weight = f"alignment weight {method.align_weight:g}" if method.align_weight else "no alignment"
    if result.measure == "accuracy":
        return f"{weight}; {100 * result.score:.1f} % of the ids are right"
    return f"{weight}; {100 * result.score:.1f} % of the target's variation explained"


def _caption(dataset: str, count: int, seed: int) -> str:
    return (
        f"{count} images of {dataset}, drawn with seed {seed}. All patches go through the encoder, and what it says of "
        f"them straight into the decoder, without the regressor. The decoder was trained on the regressor's "
        f"predictions of hidden patches only: it can read the encoder's own output only as far as the two agree. "
        f"Negative shares are worse than the mean alone."
    )


def _sized(pictures: Float[Tensor, "B C h w"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Pictures at the size of the images, their pixels repeated or left out."""
    if pictures.shape[2:] == images.shape[2:]:
        return pictures
    return F.interpolate(pictures, images.shape[2:], mode="nearest")


def _numpy(images: Tensor) -> np.ndarray:
    return images.detach().cpu().numpy()
