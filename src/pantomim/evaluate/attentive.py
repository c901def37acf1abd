"""CAE's attentive probe: one learned query chooses what to read among all tokens of a frozen encoder.

Paper: Chen et al., arXiv:2202.03026, "attentive probing"; details as in the authors' `run_attentive.py`.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import ClassVar, Literal

import torch
import tyro
from torch import Tensor, nn

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, AtLeastTwo, NotNegative, Positive
from pantomim.evaluate.augmented import AugmentedProbe, Candidate, train_heads
from pantomim.evaluate.base import Bench, Scores
from pantomim.evaluate.features import AnyEncoder, pixel_patches
from pantomim.nn.heads import AttentiveHead
from pantomim.nn.vit import Encoder
from pantomim.optim import beit_schedule, scaled_lr


@frozen
class Attentive(AugmentedProbe):
    """One query that reads all tokens, trained by Nesterov SGD on augmented images, with the authors' values.

    Args:
        base_lr: Per 256 images; the authors' 0.4 at 8192. Raise it on sets far smaller than ImageNet.
        min_lr: At the end.
        chunk: Images that the encoder sees at once, over which the head normalises; the authors' devices have 256 each.
        heads: Of the probe's attention; None: as many as the encoder has.
        batch_statistics: Normalise test images by the chunk that they are in, as the authors' code does, rather than by
            running statistics. A chunk holds neighbours in the order of the files: where that is the order of classes,
            it gives labels away.
    """

    protocol: tyro.conf.Suppress[Literal["attentive"]] = "attentive"
    base_lr: Positive = 0.0125
    min_lr: NotNegative = 1e-6
    batch_size: AtLeastTwo = 8192
    chunk: AtLeastTwo = 256
    heads: AtLeastOne | None = None
    batch_statistics: bool = False

    by_chunk: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_lr <= self.min_lr:
            raise ValueError(f"Attentive.base_lr must be above min_lr; got {self.base_lr} and {self.min_lr}.")

    @property
    def name(self) -> str:
        """Scores by batch statistics are another protocol's."""
        return "attentive-batch-statistics" if self.batch_statistics else "attentive"

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Of all tokens, prefix tokens first, after the final norm; of raw pixels the patches."""
        encoder = bench.reference
        heads = self.heads_for(encoder)
        candidates = {
            name: Candidate(partial(all_tokens, contender), partial(self.head, heads))
            for name, contender in bench.encoders.items()
        }
        if bench.pixels:
            width = pixel_patches(torch.zeros(1, encoder.in_chans, *encoder.image_size), encoder.grid).shape[2]
            pixels = partial(pixel_patches, grid=encoder.grid)
            candidates["pixels"] = Candidate(pixels, partial(self.head, math.gcd(heads, width)))
        return train_heads(self, candidates, bench)

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Nesterov SGD."""
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, nesterov=True)

    def lr(self, step: int, steps_per_epoch: int, batch_size: int) -> float:
        """Half a cosine after the warm-up."""
        return beit_schedule(
            step,
            base=scaled_lr(self.base_lr, batch_size),
            minimum=self.min_lr,
            warmup=self.warmup_epochs * steps_per_epoch,
            total=self.epochs * steps_per_epoch,
        )

    def head(self, heads: int, width: int, num_classes: int) -> AttentiveHead:
        """With so many attention heads."""
        return AttentiveHead(width, heads, num_classes, self.batch_statistics)

    def heads_for(self, encoder: AnyEncoder) -> int:
        """Attention heads of the probe on an encoder; they must divide its width."""
        heads = self.heads or _num_heads(encoder)
        if heads is None or encoder.width % heads:
            raise ValueError(
                f"Attentive.heads must divide the encoder's width {encoder.width}; got {heads}. Give such a number."
            )
        return heads


def all_tokens(encoder: AnyEncoder, images: Tensor) -> Tensor:
    """Prefix tokens and patches in one row."""
    features = encoder(images)
    return torch.cat([features.prefix, features.patches], dim=1)


def _num_heads(encoder: AnyEncoder) -> int | None:
    """Attention heads of an encoder; None: not known."""
    if isinstance(encoder, Encoder):
        return encoder.config.heads
    blocks = getattr(encoder.model, "blocks", None)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None
