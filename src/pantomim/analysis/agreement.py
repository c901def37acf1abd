"""How far CAE's regressor and encoder agree on held-out images: a number for runs with alignment and without.

In training the alignment loss is only there where it is minimised. Here it is measured for any run, after training, on
images that it was not trained on.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from pantomim.analysis.runs import choose, held_out, load_cae_run
from pantomim.config import Pretrain, from_yaml
from pantomim.core.batch import Batch
from pantomim.core.modes import evaluating
from pantomim.data.stream import evaluation_batches
from pantomim.nn.tokens import take
from pantomim.targets.tokens import TokenTarget

COUNT = 512  # images, where nothing is asked for
BATCH = 64  # images at once


@dataclass(frozen=True)
class Agreement:
    """Of one run, over the masked patches of held-out images.

    The loss depends on the scale of the latents, which nothing fixes without the alignment: `explained` and `cosine`
    can be compared between runs.

    Args:
        loss: Mean squared error between what the regressor predicts and the encoder's latents: the alignment loss.
        explained: Share of the variation of the encoder's latents that the predictions explain: 1 is perfect, 0 what
            their mean reaches, less is worse than that.
        cosine: Mean cosine between the two.
        predicted: How well the decoder does with the regressor's predictions: the share of tokens that is right, or the
            share of the variation of pixels that is explained.
        skipped: The same with the encoder's own latents of all patches, the regressor left out.
        images: How many.
    """

    loss: float
    explained: float
    cosine: float
    predicted: float
    skipped: float
    images: int


@torch.no_grad()
def measure_agreement(run: str | Path, *, count: int = COUNT, seed: int = 0) -> Agreement:
    """Regressor against encoder in a finished run of CAE; the encoder sees the masked patches alone, as in training.

    Args:
        run: The run folder.
        count: How many held-out images of its data.
        seed: Of the choice of images and of the masks.

    Raises:
        ValueError: if it is no finished run of CAE.
    """
    method = load_cae_run(run)
    encoder = method.encoder
    dataset = held_out(from_yaml(Pretrain, Path(run) / "config.yaml").data.source)
    indices = choose(dataset, count, seed)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("predicted", "latent", "with", "without")}
    truths: dict[str, list[torch.Tensor]] = {"with": [], "without": []}
    with evaluating(method):
        for images, _ in evaluation_batches(dataset, encoder.image_size, BATCH, torch.device("cpu"), indices=indices):
            mask = method.draw(Batch(images, total=len(images)), 0, generator).mask
            predicted = method.regressor(method.latents(encoder, images, mask.ids_keep), mask)
            truth = method.target(images)
            masked = truth.gather(1, mask.ids_mask) if truth.dim() == 2 else take(truth, mask.ids_mask)
            found["predicted"].append(predicted.flatten(0, 1))
            found["latent"].append(method.alignment_target(images, mask).flatten(0, 1))
            found["with"].append(method.decoder(predicted, mask.ids_mask).flatten(0, 1))
            found["without"].append(method.without_regressor(images).flatten(0, 1))
            truths["with"].append(masked.flatten(0, 1))
            truths["without"].append(truth.flatten(0, 1))
    predicted, latent = torch.cat(found["predicted"]), torch.cat(found["latent"])
    tokens = isinstance(method.target, TokenTarget)
    scores = {name: _score(torch.cat(found[name]), torch.cat(truths[name]), tokens) for name in truths}
    return Agreement(
        loss=F.mse_loss(predicted, latent).item(),
        explained=_explained(predicted, latent),
        cosine=F.cosine_similarity(predicted, latent, dim=-1).mean().item(),
        predicted=scores["with"],
        skipped=scores["without"],
        images=len(indices),
    )


def _score(output: torch.Tensor, truth: torch.Tensor, tokens: bool) -> float:
    if tokens:
        return (output.argmax(dim=-1) == truth).double().mean().item()
    return _explained(output, truth)


def _explained(output: torch.Tensor, truth: torch.Tensor) -> float:
    variation = (truth - truth.mean(dim=0)).square().sum()
    return 1.0 - ((output - truth).square().sum() / variation).item()
