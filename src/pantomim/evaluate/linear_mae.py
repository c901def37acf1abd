"""MAE's linear probe: a linear classifier on a frozen encoder's class token, trained on augmented images by LARS.

Paper: He et al. 2022, arXiv:2111.06377, appendix A.1 and Table 10; details as in the authors' `main_linprobe.py`.
"""

from collections.abc import Iterable
from functools import partial
from typing import ClassVar, Literal

import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.data.stats import Stats, channel_stats
from pantomim.evaluate.augmented import AugmentedProbe, Candidate, train_heads
from pantomim.evaluate.base import Bench, Scores
from pantomim.evaluate.features import AnyEncoder, pixel_size, pixel_vector, views
from pantomim.optim import LARS, cosine_schedule, scaled_lr


@frozen
class LinearMAE(AugmentedProbe):
    """A linear classifier on augmented images, with the paper's values for ViT-B; for ViT-L and H, 50 epochs suffice.

    Deviation: batch statistics are those of the whole batch, not of each device's part.
    """

    protocol: tyro.conf.Suppress[Literal["linear_mae"]] = "linear_mae"

    by_chunk: ClassVar[bool] = False

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Of the class token, or the mean of patches where there is none."""
        candidates = {name: Candidate(partial(_vector, encoder), Head) for name, encoder in bench.encoders.items()}
        if bench.pixels:
            pixels = partial(_pixels, size=bench.reference.image_size, stats=channel_stats(bench.train))
            candidates["pixels"] = Candidate(pixels, Head)
        return train_heads(self, candidates, bench)

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """LARS without weight decay."""
        return LARS(parameters, lr=0.0, weight_decay=0.0, momentum=0.9)

    def lr(self, step: int, steps_per_epoch: int, batch_size: int) -> float:
        """Half a cosine after the warm-up, by fractions of epochs as in the authors' code."""
        return cosine_schedule(
            step / steps_per_epoch,
            base=scaled_lr(self.base_lr, batch_size),
            minimum=0.0,
            warmup=self.warmup_epochs,
            total=self.epochs,
        )


class Head(nn.Module):
    """BatchNorm without affine, then a linear layer: the only part that is trained."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B classes"]:
        """Logits."""
        return self.head(self.norm(features))


def _vector(encoder: AnyEncoder, images: Tensor) -> Tensor:
    found = views(encoder, encoder(images))
    return found.get("class", found["mean"])


def _pixels(images: Tensor, size: tuple[int, int], stats: Stats) -> Tensor:
    smaller = pixel_size(size, images.shape[1])
    if smaller != size:
        images = F.interpolate(images, smaller, mode="bilinear", antialias=True)
    return pixel_vector(images, stats)
