"""CAE's attentive probe: one learned query chooses what to read among all tokens of a frozen encoder.

Paper: Chen et al., arXiv:2202.03026, "attentive probing"; details as in the authors' `run_attentive.py`.
"""

import math
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from pantomim.config import Duration, OptimConfig
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, AtLeastTwo, NotNegative, Positive
from pantomim.evaluate.augmented import AugmentedProbe, Candidate, train_heads
from pantomim.evaluate.base import Bench, Scores
from pantomim.evaluate.features import AnyEncoder, pixel_patches
from pantomim.methods.probe import Frozen, ProbeConfig
from pantomim.nn.vit import Encoder


@frozen
class Attentive(AugmentedProbe):
    """One query that reads all tokens, trained by Nesterov SGD on augmented images, with the authors' values.

    On sets far smaller than ImageNet there are fewer steps to learn in: choose a higher `base_lr` by the score on
    held-out images.

    Deviation: at another image size, positions are resampled; the authors take a fixed table's formula for that size.
    """

    protocol: tyro.conf.Suppress[Literal["attentive"]] = "attentive"
    base_lr: Positive = 0.0125  # Per 256 images; the authors' 0.4 at 8192
    min_lr: NotNegative = 1e-6  # At the end
    batch_size: AtLeastTwo = 8192  # At most; a smaller set is one batch
    # Images that the encoder sees at once, over which the head normalises; the authors' devices have 256 each
    chunk: AtLeastTwo = 256
    heads: AtLeastOne | None = None  # Of the probe's attention; None: as many as the encoder has
    # Normalise test images by the chunk that they are in, as the authors' code does, rather than by running statistics.
    # A chunk holds neighbours in the order of the files: where that is the order of classes, it gives labels away
    batch_statistics: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_lr <= self.min_lr:
            raise ValueError(f"Attentive.base_lr must be above min_lr; got {self.base_lr} and {self.min_lr}.")

    @property
    def name(self) -> str:
        """Scores by batch statistics are another protocol's."""
        return "attentive-batch-statistics" if self.batch_statistics else "attentive"

    @property
    def optim(self) -> OptimConfig:
        """Nesterov SGD without weight decay; half a cosine after the warm-up."""
        rates: Any = {"base_lr": self.base_lr, "min_lr": self.min_lr, "warmup": Duration(epochs=self.warmup_epochs)}
        return OptimConfig(**rates, weight_decay=0.0, schedule="beit", optimiser="sgd")

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Of all tokens, prefix tokens first, after the final norm; of raw pixels the patches."""
        encoder, heads = bench.reference, self.heads_for(bench.reference)
        features = {name: Frozen(contender, all_tokens) for name, contender in bench.encoders.items()}
        candidates = {name: Candidate(of_images, self.head(heads)) for name, of_images in features.items()}
        if bench.pixels:
            pixels = Frozen(nn.Identity(), lambda _, images: pixel_patches(images, encoder.grid))
            width = pixels(torch.zeros(1, encoder.in_chans, *encoder.image_size)).shape[2]
            candidates["pixels"] = Candidate(pixels, self.head(math.gcd(heads, width)))
        return train_heads(self, candidates, bench)

    def head(self, heads: int) -> ProbeConfig:
        """With so many attention heads."""
        return ProbeConfig(head="attentive", heads=heads, batch_statistics=self.batch_statistics)

    def heads_for(self, encoder: AnyEncoder) -> int:
        """Attention heads of the probe on an encoder; they must divide its width."""
        heads = self.heads
        if heads is None and isinstance(encoder, Encoder):
            heads = encoder.config.heads
        elif heads is None and (blocks := getattr(encoder.model, "blocks", None)):
            heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None)
        if heads is None or encoder.width % heads:
            raise ValueError(
                f"Attentive.heads must divide the encoder's width {encoder.width}; got {heads}. Give such a number."
            )
        return heads


def all_tokens(encoder: AnyEncoder, images: Tensor) -> Tensor:
    """Prefix tokens and patches in one row."""
    features = encoder(images)
    return torch.cat([features.prefix, features.patches], dim=1)
