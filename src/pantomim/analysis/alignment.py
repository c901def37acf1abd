"""What CAE's decoder makes of all patches when the regressor is left out: legible only if the alignment has worked.

The decoder was trained on the regressor's predictions and on nothing else. If it can read the encoder's own output, the
two agree; without the alignment nothing asks them to.

Paper: Chen et al., arXiv:2202.03026, the alignment figure. It is not stated there whether pixels or tokens were the
target; here either is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.analysis.inspection import Inspection
from pantomim.analysis.pictures import (
    PictureRows,
    Row,
    display_range,
    read_images,
    shown_bands,
    to_picture,
    write_rows,
)
from pantomim.analysis.runs import choose, held_out, load_cae_run, run_config
from pantomim.core.frozen import frozen
from pantomim.core.modes import evaluating
from pantomim.core.ranges import AtLeastOne
from pantomim.data.sources import open_source
from pantomim.methods.cae import CAE
from pantomim.targets.pixels import PixelTarget
from pantomim.targets.tokens import TokenTarget
from pantomim.tokenizers.base import Picturing


@frozen
class Alignment(Inspection):
    """What CAE's decoder makes of all patches when the regressor is left out."""

    name: ClassVar[str] = "alignment"
    title: ClassVar[str] = "Without the regressor"
    count: AtLeastOne = 8

    def run(self) -> PictureRows:
        """Pictures of the runs on the same images: the images first, then each run's.

        Raises:
            ValueError: if a run is none of CAE, or the runs' images differ in size or channels.
        """
        runs = self.encoders
        methods = [load_cae_run(run) for run in runs]
        first = methods[0].encoder
        for run, method in zip(runs, methods, strict=True):
            if (method.encoder.image_size, method.encoder.in_chans) != (first.image_size, first.in_chans):
                raise ValueError(
                    f"inspect.runs must take images of one size and number of channels; got {first.image_size} and "
                    f"{first.in_chans} in {runs[0]}, {method.encoder.image_size} and {method.encoder.in_chans} in "
                    f"{run}."
                )
        dataset = open_source(self.images, "all") if self.images else held_out(run_config(runs[0]).data.source)
        if dataset.channels != first.in_chans:
            raise ValueError(
                f"inspect.images must have the encoder's {first.in_chans} channels; got {dataset.channels} in "
                f"{dataset.spec}. Give other images."
            )
        bands = shown_bands(dataset.channels)
        images, items = read_images(dataset, first.image_size, choose(dataset, self.count, self.seed))
        original = images.numpy()
        low, high = display_range(original[:, bands], dataset.scale)

        def picture(values: np.ndarray) -> np.ndarray:
            return to_picture(values[:, bands], low, high)

        rows = [Row("images", "", picture(original))]
        for run, method in zip(runs, methods, strict=True):
            result = without_regressor(method, images)
            if result.reference is not None:
                reference = Row(result.reference_name, "", picture(result.reference))
                if not any(np.array_equal(row.pictures, reference.pictures) for row in rows):
                    rows.append(reference)
            weight = f"alignment weight {method.align_weight:g}" if method.align_weight else "no alignment"
            share = "of the ids are right" if result.measure == "accuracy" else "of the target's variation explained"
            rows.append(Row(Path(run).name, f"{weight}; {100 * result.score:.1f} % {share}", picture(result.shown)))
        caption = (
            f"{len(items)} images of {dataset.name}, drawn with seed {self.seed}. All patches go through the encoder, "
            f"and its output straight into the decoder, without the regressor. The decoder was trained on the "
            f"regressor's predictions of masked patches only: it can read the encoder's own output only as far as the "
            f"two agree. Negative shares are worse than the mean alone."
        )
        return PictureRows(items, tuple(rows), caption)


def write_alignment_arrays(run: str | Path, *, count: int = 8, seed: int = 0) -> Path:
    """The pictures of one run on held-out images of its data, in `RUN/analysis/alignment.npz`, for its report.

    Raises:
        ValueError: as `Alignment.run`.
    """
    found = Alignment((str(run),), count=count, seed=seed).run()
    return write_rows(found, Path(run) / "analysis" / "alignment.npz")


@dataclass(frozen=True)
class WithoutRegressor:
    """Images that went from the encoder straight into the decoder, in the scale of the images.

    Args:
        shown: What the decoder makes of them.
        reference: What is in the picture whatever the decoder does (pixels, if targets are normalised patch by patch:
            mean and std of each true patch), or at best (tokens: the true ids, decoded); None: neither.
        reference_name: Which of the two.
        measure: What `score` is: "explained", the share of the variation of the target over patches that the output
            explains (1 is perfect, 0 what the mean reaches, less is worse than that); "accuracy", the share of ids.
        score: See `measure`.
    """

    shown: Float[np.ndarray, "B C H W"]
    reference: Float[np.ndarray, "B C H W"] | None
    reference_name: str
    measure: Literal["explained", "accuracy"]
    score: float


@torch.no_grad()
def without_regressor(method: CAE, images: Float[Tensor, "B C H W"]) -> WithoutRegressor:
    """All patches through the encoder, and its output into the decoder; the method's mode is given back as it was.

    Args:
        method: Of any target that is a picture.
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
            f"{type(target).__name__}, which is no picture. Choose a run whose target is pixels or tokens."
        )
    with evaluating(method):
        output, truth = method.without_regressor(images), target(images)
    if isinstance(target, PixelTarget):
        error, variation = (output - truth).square().sum(), (truth - truth.mean(dim=(0, 1))).square().sum()
        given = None if target.normalise == "none" else target.to_images(torch.zeros_like(output), images)
        return WithoutRegressor(
            target.to_images(output, images).cpu().numpy(),
            None if given is None else given.cpu().numpy(),
            "" if given is None else "mean and std of each true patch alone, which are given",
            "explained",
            1.0 - (error / variation).item(),
        )
    tokenizer, grid = target.tokenizer, method.encoder.grid
    if not isinstance(tokenizer, Picturing):
        raise ValueError(
            f"without_regressor.method must predict pixels, or tokens that can be decoded; got tokens of "
            f"{type(tokenizer).__name__}, which has no decoder. Choose a run whose target is pixels, or with a "
            f"tokenizer trained by `pantomim tokenizer train`."
        )
    ids = output.argmax(dim=-1)
    shown, best = (F.interpolate(tokenizer.decode(found, grid), images.shape[2:]) for found in (ids, truth))
    right = (ids == truth).double().mean().item()
    return WithoutRegressor(shown.cpu().numpy(), best.cpu().numpy(), "the true ids, decoded", "accuracy", right)
