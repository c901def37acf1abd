"""What the decoder makes of images it was not trained on: mask patches, predict them, put them back in place.

`reconstruct(load_run("RUN", "mae"), images, seed=0)` gives arrays; `write_rows_of(Reconstruct, "RUN")` does it with
held-out images of the run's own data and leaves a file that the report shows.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pantomim.analysis.pictures import PictureRows, Row, read_images
from pantomim.analysis.runs import choose, load_run, run_config, shown_images
from pantomim.analysis.views import PictureAnalysis
from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.modes import evaluating
from pantomim.data.dataset import Dataset
from pantomim.data.pictures import to_picture
from pantomim.evaluate.features import check_images, collapse_warning
from pantomim.methods.mae import MAE, MAEConfig
from pantomim.nn.tokens import channel_values, put_back, take
from pantomim.targets.pixels import PixelTarget, PixelTargetConfig

LOG = logging.getLogger(__name__)
LARGE = 200  # pixels: fewer, for a page that one can look through


@dataclass(frozen=True)
class Reconstructions:
    """Images, what was masked of them, and what was predicted; values in the scale of the images."""

    original: Float[np.ndarray, "B C H W"]
    masked: Float[np.ndarray, "B C H W"]  # masked patches filled with the mean of each channel
    reconstruction: Float[np.ndarray, "B C H W"]  # the prediction of every patch; it was trained on masked ones only
    mask: Bool[np.ndarray, "B rows cols"]  # True where a patch is masked
    pasted: Float[np.ndarray, "B C H W"]  # the prediction with the visible patches pasted in
    # Share of the variation in masked patches: 0 is what the mean alone reaches (each patch's true one, if targets are
    # normalised patch by patch, else the data's)
    explained: float


@torch.no_grad()
def reconstruct(method: MAE, images: Float[Tensor, "B C H W"], seed: int) -> Reconstructions:
    """Mask patches of the images as the method does in training, by a seed, and predict them.

    If the target is normalised patch by patch, a prediction leaves open a patch's mean and std; those of the
    true patch are used, as in the demo of MAE's authors.
    """
    encoder, target = method.encoder, method.target
    assert isinstance(target, PixelTarget), "a picture can only be made of pixels"
    kernel, size = encoder.patch_embed.proj.weight, encoder.patch_size
    images = images.to(kernel.device, kernel.dtype)
    generator = torch.Generator(kernel.device).manual_seed(seed)
    with evaluating(method):
        mask = method.draw(Batch(images, total=len(images)), 0, generator).mask
        prediction = method.decoder(encoder(images, mask.ids_keep), mask, everywhere=True)  # (B, N, K)
        truth = target(images)
    error = take(prediction - truth, mask.ids_mask).square().sum()
    explained = 1.0 - (error / take(truth, mask.ids_mask).square().sum()).item()
    visible_pasted = put_back(take(truth, mask.ids_keep), mask.ids_keep, prediction)
    masked = mask.masked.view(len(images), 1, *encoder.grid).repeat_interleave(size, 2).repeat_interleave(size, 3)
    mean = channel_values("Encoder.mean", encoder.config.mean, encoder.in_chans).to(images).view(-1, 1, 1)
    return Reconstructions(
        original=images.cpu().numpy(),
        masked=torch.where(masked, mean, images).cpu().numpy(),
        reconstruction=target.to_images(prediction, images).cpu().numpy(),
        mask=mask.masked.view(len(images), *encoder.grid).cpu().numpy(),
        pasted=target.to_images(visible_pasted, images).cpu().numpy(),
        explained=explained,
    )


@frozen
class Reconstruct(PictureAnalysis):
    """What the decoder of a run makes of masked patches."""

    name: ClassVar[str] = "reconstruct"
    title: ClassVar[str] = "What it makes of masked patches"
    stem: ClassVar[str] = "reconstructions"
    usual: ClassVar[int] = 12  # or half of it, where images are large

    def looks(self, dataset: Dataset) -> list[PictureRows]:
        """Of each run a row an image: the original, what is left of it, and the reconstruction.

        The file holds `original`, `masked`, `reconstruction` and `pasted` as 8-bit pictures (n, H, W, 1 or 3) and
        `mask`; the same values unrounded, in the scale of the encoder's input and with every band, as `original_values`
        and `reconstruction_values`; and what there is to say about them as JSON in `about`.
        """
        return [self._look_at(Path(run), dataset) for run in self.encoders]

    def _look_at(self, run: Path, dataset: Dataset) -> PictureRows:
        config = run_config(run)
        if config.method.kind == "mae" and not isinstance(config.method.target, PixelTargetConfig):
            target = config.method.target.kind
            raise ValueError(
                f"reconstructions.run must predict pixels; got {run}, which predicts {target}: no picture."
            )
        method: MAE = load_run(run, "mae")
        encoder = method.encoder
        check_images(encoder, dataset)
        count = self.count or self.usual // (1 if max(encoder.image_size) < LARGE else 2)
        chosen = choose(dataset, count, self.seed)
        images, items = read_images(dataset, encoder.image_size, chosen, config.data.crop.interpolation)
        result = reconstruct(method, images, self.seed)
        warning = collapse_warning(encoder, dataset)
        normalised = isinstance(method.target, PixelTarget) and method.target.normalise != "none"
        about = {"items": list(items), "split": dataset.split, "masked_share": float(result.mask.mean())}
        about |= {"normalized_target": normalised, "channels": dataset.channels, "explained": result.explained}
        text = f"{self.drawn(dataset, len(items))} {caption(about)}"
        text += "" if warning is None else f" Warning: {warning}"
        names = ("original", "masked", "reconstruction", "pasted")
        shown = {name: to_picture(getattr(result, name), result.original, dataset.scale) for name in names}
        arrays = shown | {
            "mask": result.mask,
            "original_values": result.original.astype(np.float32),
            "reconstruction_values": result.reconstruction.astype(np.float32),
            "about": np.array(json.dumps(about | {"caption": text})),
        }
        ways, pasted = names[:3], (shown["original"], shown["masked"], shown["pasted"])
        rows = [Row(name, "", np.stack(three), ways) for name, *three in zip(items, *pasted, strict=True)]
        return PictureRows(ways, tuple(rows), text, finding(about), encoder=str(run), arrays=arrays)


def of_the_same_images(
    runs: Sequence[Path], count: int, source: str | None = None
) -> tuple[dict[Path, Mapping[str, np.ndarray]], list[str]]:
    """Arrays of each finished run that predicts pixels, of the first one's held-out images; why others have none."""
    drawn: dict[Path, Mapping[str, np.ndarray]] = {}
    told: list[str] = []
    dataset: Dataset | None = None
    for run in runs:
        method = run_config(run).method
        if not isinstance(method, MAEConfig) or not isinstance(method.target, PixelTargetConfig):
            continue
        LOG.info("Reconstructions of %s", run)
        try:
            dataset = dataset or shown_images(run, source, None, 0)
            drawn[run] = Reconstruct((str(run),), count=count).looks(dataset)[0].arrays
        except (ValueError, OSError) as error:  # unfinished, other channels, data that have moved: scores need neither
            told.append(f"{run.name}: no reconstructions ({error})")
    return drawn, told


def finding(about: Mapping[str, Any]) -> str:
    """How much the prediction explains, in a sentence; empty where that is not known."""
    explained = about.get("explained")
    if not isinstance(explained, float) or not math.isfinite(explained):
        return ""
    if explained < 0:
        return "On these images the prediction is no better than a flat guess."
    around = "their true means" if about.get("normalized_target") else "the mean of the data"
    share = f"{100 * explained:.0f} % of the variation in masked patches"
    return f"On these images the prediction explains {share} around {around}."


def caption(about: Mapping[str, Any]) -> str:
    """What one must know to read the pictures, in full sentences."""
    text = (
        f"{100 * about['masked_share']:.0f} % of the patches are masked. Visible patches are pasted into the "
        f"reconstruction."
    )
    if about["normalized_target"]:
        given = "brightness" if about["channels"] == 1 else "brightness and colour"
        text += (
            f" The model predicts each patch up to its mean and contrast. Those are taken from the true patch here, "
            f"so the average {given} of a masked patch and its contrast are given, not predicted."
        )
    return text
