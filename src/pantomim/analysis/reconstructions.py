"""What the decoder makes of images it was not trained on: mask patches, predict them, put them back in place.

`reconstruct(load_run("RUN", "mae"), images, seed=0)` gives arrays; `write_reconstructions("RUN")` does it with held-out
images of the run's own data and leaves a file that the report shows.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pantomim.analysis.pictures import read_images
from pantomim.analysis.runs import choose, held_out, load_run, run_config
from pantomim.core.batch import Batch
from pantomim.core.files import write_npz
from pantomim.core.modes import evaluating
from pantomim.data.pictures import STRETCH, shown_bands, to_picture
from pantomim.data.sources import HELD_BACK, splits
from pantomim.evaluate.features import check_images, collapse_warning
from pantomim.methods.mae import MAE
from pantomim.nn.tokens import channel_values, put_back, take
from pantomim.targets.pixels import PixelTarget, PixelTargetConfig

LARGE = 200  # pixels: fewer, for a page that one can look through


@dataclass(frozen=True)
class Reconstructions:
    """Images, what was masked of them, and what was predicted; values in the scale of the images.

    `explained` is the share of the variation in the masked patches that the prediction explains: 1 is perfect; 0 is
    what the mean alone reaches (each patch's true mean if targets are normalised patch by patch, else the data's).
    """

    original: Float[np.ndarray, "B C H W"]
    masked: Float[np.ndarray, "B C H W"]  # masked patches filled with the mean of each channel
    reconstruction: Float[np.ndarray, "B C H W"]  # the prediction of every patch; it was trained on masked ones only
    mask: Bool[np.ndarray, "B rows cols"]  # True where a patch is masked
    pasted: Float[np.ndarray, "B C H W"]  # the prediction with the visible patches pasted in
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


def write_reconstructions(
    run: str | Path, *, source: str | None = None, count: int | None = None, seed: int = 0
) -> Path:
    """Reconstruct held-out images of a finished run; writes `RUN/analysis/reconstructions.npz`.

    The file holds `original`, `masked`, `reconstruction` and `pasted` as 8-bit pictures (n, H, W, 1 or 3) and `mask`;
    the same values unrounded, in the scale of the encoder's input and with every band, as `original_values` and
    `reconstruction_values`; and what there is to say about them as JSON in `about`.

    Without a `count`, twelve images, or six where they are large; the seed chooses images and masks.
    """
    config = run_config(run)
    if config.method.kind == "mae" and not isinstance(config.method.target, PixelTargetConfig):
        target = config.method.target.kind
        raise ValueError(f"reconstructions.run must predict pixels; got {run}, which predicts {target}: no picture.")
    method: MAE = load_run(run, "mae")
    encoder, source = method.encoder, source or config.data.source
    dataset = held_out(source, config.data.scale)
    check_images(encoder, dataset)
    count = count or (12 if max(encoder.image_size) < LARGE else 6)
    images, items = read_images(dataset, encoder.image_size, choose(dataset, count, seed))
    result = reconstruct(method, images, seed)
    about = {
        "source": source,
        "dataset": dataset.name,
        "split": dataset.split,
        "divided": not splits(source),
        "holdout": config.data.holdout,
        "items": list(items),
        "seed": seed,
        "patch_size": encoder.patch_size,
        "channels": dataset.channels,
        "bands": shown_bands(dataset.channels),
        "stretched": bool(dataset.scale.divisor != 255.0),
        "masked_share": float(result.mask.mean()),
        "normalized_target": isinstance(method.target, PixelTarget) and method.target.normalise != "none",
        "explained": result.explained,
    }
    warning = collapse_warning(encoder, dataset)
    about["caption"] = caption(about) + ("" if warning is None else f" Warning: {warning}")
    arrays = {
        name: to_picture(getattr(result, name), result.original, dataset.scale)
        for name in ("original", "masked", "reconstruction", "pasted")
    } | {
        "mask": result.mask,
        "original_values": result.original.astype(np.float32),
        "reconstruction_values": result.reconstruction.astype(np.float32),
        "about": np.array(json.dumps(about)),
    }
    return write_npz(Path(run) / "analysis" / "reconstructions.npz", arrays, compressed=True)


def caption(about: dict[str, Any]) -> str:
    """What one must know to read the pictures, in full sentences."""
    where = f"of the {about['split']} split"
    if about["divided"]:
        seen = "saw as well" if about["holdout"] < HELD_BACK else "did not see"
        where = f"of the fixed {100 * HELD_BACK:.0f} % that pre-training {seen}"
    sentences = [
        f"{len(about['items'])} images of {about['dataset']} {where}, drawn with seed {about['seed']}.",
        f"{100 * about['masked_share']:.0f} % of the patches are masked. Visible patches are pasted into the "
        f"reconstruction.",
    ]
    if about["normalized_target"]:
        given = "brightness" if about["channels"] == 1 else "brightness and colour"
        sentences.append(
            f"The model predicts each patch up to its mean and contrast. Those are taken from the true patch here, "
            f"so the average {given} of a masked patch and its contrast are given, not predicted."
        )
    if about["bands"] != list(range(about["channels"])):
        shown = "Band 1" if about["bands"] == [0] else "Bands 1, 2, 3"
        sentences.append(f"{shown} of {about['channels']} shown.")
    if about["stretched"]:
        sentences.append(f"Contrast stretched to the {STRETCH[0]:g} to {STRETCH[1]:g} % range of the originals.")
    return " ".join(sentences)
