"""CAE without its regressor: what the decoder makes of all patches, and how far regressor and encoder agree.

The decoder was trained on the regressor's predictions alone: if it can read the encoder's own output, the two agree.
This is measured for any run, also one without an alignment loss, on images that it was not trained on.

Paper: Chen et al., arXiv:2202.03026, the alignment figure, which does not say whether pixels or tokens were the target.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.analysis.pictures import PictureRows, Row, read_images
from pantomim.analysis.runs import choose, held_out, load_run, run_config
from pantomim.analysis.views import PictureAnalysis
from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.modes import evaluating
from pantomim.data.dataset import Dataset
from pantomim.data.pictures import to_picture
from pantomim.data.stream import evaluation_batches
from pantomim.evaluate.features import check_images
from pantomim.methods.cae import CAE
from pantomim.nn.tokens import take
from pantomim.targets.pixels import PixelTarget
from pantomim.targets.tokens import TokenTarget
from pantomim.tokenizers.base import Picturing
from pantomim.tokenizers.usage import CodeUsage, code_usage, count_codes, usage_warning

OF_IMAGES = "The tokenizer, on these images"
LEAD = "The better a decoder draws the images here, the closer its regressor's predictions are to the encoder's output."
COUNT = 512  # images on which agreement is measured
BATCH = 64  # of these at once


@frozen
class Alignment(PictureAnalysis):
    """What CAE's decoder makes of all patches when the regressor is left out."""

    name: ClassVar[str] = "alignment"
    title: ClassVar[str] = "What the decoder reads without the regressor"
    usual: ClassVar[int] = 8

    def looks(self, dataset: Dataset) -> list[PictureRows]:
        """Pictures of the runs on the same images: the images first, then each run's."""
        runs = self.encoders
        methods: list[CAE] = [load_run(run, "cae") for run in runs]
        first = methods[0].encoder
        for run, method in zip(runs, methods, strict=True):
            if (method.encoder.image_size, method.encoder.in_chans) != (first.image_size, first.in_chans):
                raise ValueError(
                    f"inspect.runs must take images of one size and number of channels; got {first.image_size} and "
                    f"{first.in_chans} in {runs[0]}, {method.encoder.image_size} and {method.encoder.in_chans} in "
                    f"{run}."
                )
        for method in methods:
            check_images(method.encoder, dataset)
        chosen, how = choose(dataset, self.count or self.usual, self.seed), run_config(runs[0]).data.crop.interpolation
        images, items = read_images(dataset, first.image_size, chosen, how)
        picture = partial(to_picture, originals=images.numpy(), scale=dataset.scale)
        rows = [Row("images", "", picture(images.numpy()))]
        warnings = dict[str, None]()
        for run, method in zip(runs, methods, strict=True):
            result = without_regressor(method, images)
            if result.reference is not None:
                reference = Row(result.reference_name, "", picture(result.reference))
                if not any(np.array_equal(row.pictures, reference.pictures) for row in rows):
                    rows.append(reference)
            if result.usage is not None and (warning := usage_warning(result.usage, OF_IMAGES)) is not None:
                warnings[warning] = None
            weight = f"alignment weight {method.align_weight:g}" if method.align_weight else "no alignment"
            share = "of the ids are right" if result.measure == "accuracy" else "of the target's variation explained"
            rows.append(Row(Path(run).name, f"{weight}; {100 * result.score:.1f} % {share}", picture(result.shown)))
        caption = (
            f"{self.drawn(dataset, len(items))} All patches go through the encoder, "
            f"and its output straight into the decoder, without the regressor. The decoder was trained on the "
            f"regressor's predictions of masked patches only: it can read the encoder's own output only as far as the "
            f"two agree. Negative shares are worse than the mean alone."
        )
        return [PictureRows(items, tuple(rows), caption, LEAD, tuple(warnings))]


@dataclass(frozen=True)
class WithoutRegressor:
    """Images that went from the encoder straight into the decoder, in the scale of the images."""

    shown: Float[np.ndarray, "B C H W"]
    # What is in the picture whatever the decoder does (each true patch's mean and std, if pixels are normalised by
    # these), or at best (the true ids, decoded)
    reference: Float[np.ndarray, "B C H W"] | None
    reference_name: str
    measure: Literal["explained", "accuracy"]  # what `score` is: see `_explained`, or the share of right ids
    score: float
    usage: CodeUsage | None = None  # of the true ids


@torch.no_grad()
def without_regressor(method: CAE, images: Float[Tensor, "B C H W"]) -> WithoutRegressor:
    """All patches through the encoder, and its output into the decoder; images as in training."""
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
        shown, score = target.to_images(output, images).cpu().numpy(), _explained(output, truth)
        if target.normalise == "none":
            return WithoutRegressor(shown, None, "", "explained", score)
        given = target.to_images(torch.zeros_like(output), images).cpu().numpy()
        named = "mean and std of each true patch alone, which are given"
        return WithoutRegressor(shown, given, named, "explained", score)
    tokenizer, grid = target.tokenizer, method.encoder.grid
    if not isinstance(tokenizer, Picturing):
        raise ValueError(
            f"without_regressor.method must predict pixels, or tokens that can be decoded; got tokens of "
            f"{type(tokenizer).__name__}, which has no decoder. Choose a run whose target is pixels, or with a "
            f"tokenizer trained by `pantomim tokenizer train`."
        )
    shown, best = (
        F.interpolate(tokenizer.decode(ids, grid), images.shape[2:]).cpu().numpy()
        for ids in (output.argmax(dim=-1), truth)
    )
    usage = code_usage(count_codes(truth, tokenizer.vocabulary).cpu())
    name = f"the true ids, decoded ({usage.used} of {usage.vocabulary} codes occur)"
    return WithoutRegressor(shown, best, name, "accuracy", _share_right(output, truth), usage)


@torch.no_grad()
def measure_agreement(run: str | Path) -> dict[str, float]:
    """Regressor against encoder in a finished run of CAE, over the masked patches of held-out images.

    The encoder sees the masked patches alone, as in training. The loss depends on the scale of the latents, which
    nothing fixes without the alignment: `explained` and `cosine` can be compared between runs.
    """
    method: CAE = load_run(run, "cae")
    encoder = method.encoder
    data = run_config(run).data
    dataset = held_out(data.source, data.scale)
    indices, how = choose(dataset, COUNT, seed=0), data.crop.interpolation
    generator = torch.Generator().manual_seed(0)
    found: list[dict[str, Tensor]] = []
    with evaluating(method):
        for images, _ in evaluation_batches(dataset, encoder.image_size, BATCH, "cpu", indices, interpolation=how):
            mask = method.draw(Batch(images, total=len(images)), 0, generator).mask
            predicted = method.regressor(method.latents(encoder, images, mask.ids_keep), mask)
            truth = method.target(images)
            of_batch = {"predicted": predicted, "latent": method.alignment_target(images, mask), "all": truth}
            of_batch |= {"with": method.decoder(predicted, mask.ids_mask), "masked": take(truth, mask.ids_mask)}
            of_batch["without"] = method.without_regressor(images)
            found.append({name: values.flatten(0, 1) for name, values in of_batch.items()})
    whole = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    score = _share_right if isinstance(method.target, TokenTarget) else _explained
    return {
        "loss": F.mse_loss(whole["predicted"], whole["latent"]).item(),
        "explained": _explained(whole["predicted"], whole["latent"]),
        "cosine": F.cosine_similarity(whole["predicted"], whole["latent"], dim=-1).mean().item(),
        "predicted": score(whole["with"], whole["masked"]),  # what the decoder makes of the predictions
        "skipped": score(whole["without"], whole["all"]),  # and of the encoder's latents, without the regressor
        "images": len(indices),
    }


def _share_right(output: Float[Tensor, "*n K"], truth: Tensor) -> float:
    return (output.argmax(dim=-1) == truth).double().mean().item()


def _explained(output: Float[Tensor, "*n K"], truth: Float[Tensor, "*n K"]) -> float:
    """Share of the target's variation over patches: 1 is perfect, 0 what their mean reaches, less is worse."""
    variation = (truth - truth.flatten(0, -2).mean(dim=0)).square().sum()
    return 1.0 - ((output - truth).square().sum() / variation).item()
