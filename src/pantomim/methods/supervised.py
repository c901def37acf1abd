"""Supervised baseline: the same encoder learns the classes of images, from labels; what the probes are compared with.

    loss = mean over images of -sum over classes of target * log softmax(logits)

The target is the smoothed label, mixed with a neighbour's by mixup or CutMix.

Paper: Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*,
    arXiv:2012.12877, without distillation.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.host import host_seed
from pantomim.core.ranges import AtLeastTwo, NotNegative, ShareBelowOne
from pantomim.methods.base import Method, Requirements
from pantomim.nn.mixing import Mixing, draw_mixing, mix_images, mix_targets, swap_neighbours
from pantomim.nn.vit import EncoderConfig


@frozen
class SupervisedConfig:
    """The parts of the supervised baseline, with DeiT's values.

    Args:
        encoder: Sizes of the encoder.
        num_classes: Classes of the labels; a bare method takes them from the data.
        pool: What the head sees: the class token, or the mean of all patches; either after the final norm.
        label_smoothing: Share of the probability that is spread evenly over all classes.
        mixup: Parameter of mixup's beta distribution; 0: none.
        cutmix: The same of CutMix. Where both are used, a coin chooses for each step.

    Paper: Table 9 (label smoothing, mixup, CutMix); class token: the authors' `models.py`.
    """

    kind: Literal["supervised"] = "supervised"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    num_classes: AtLeastTwo = 1000
    pool: Literal["class", "mean"] = "class"
    label_smoothing: ShareBelowOne = 0.1
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0

    def __post_init__(self) -> None:
        if self.pool == "class" and not self.encoder.class_token:
            raise ValueError("SupervisedConfig.pool must be mean for an encoder without a class token; got class.")

    def build(self, steps: int | None = None) -> "Supervised":
        """The method, initialised from torch's global generator."""
        return Supervised(self)


@dataclass(frozen=True)
class SupervisedDraws:
    """What is to be learned, once all that is random is drawn: mixed images and their class probabilities."""

    images: Float[Tensor, "B C H W"]
    targets: Float[Tensor, "B classes"]


class Supervised(Method):
    """An encoder and a linear layer on its class token or on the mean of its patches.

    Deviation: partners in mixing are neighbours in the global batch, and one coin and one share hold for all of it, so
        that the number of processes changes nothing; in timm each process mixes its images in reverse order.
    """

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, config.encoder.build()
        self.head = nn.Linear(config.encoder.width, config.num_classes)
        nn.init.normal_(self.head.weight, std=0.02)  # as DeiT's, which cut at 100 std
        nn.init.zeros_(self.head.bias)
        self.requirements = Requirements.of(config.encoder, num_classes=config.num_classes)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> SupervisedDraws:
        """Mix images and labels, one way for the whole step."""
        assert batch.labels is not None, "checked before the first step"
        config, mixing, images, labels = self.config, Mixing(1.0), batch.images, batch.labels
        if config.mixup > 0 or config.cutmix > 0:
            draws = np.random.default_rng(host_seed(generator))
            mixing = draw_mixing(draws, config.encoder.image_size, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)
            images, labels = swap_neighbours(images), swap_neighbours(labels)
        targets = mix_targets(batch.labels, config.num_classes, mixing.lam, config.label_smoothing, partners=labels)
        return SupervisedDraws(mix_images(batch.images, mixing, images), targets)

    def forward(self, batch: Batch, draws: SupervisedDraws) -> dict[str, Tensor]:
        """Cross-entropy with the mixed classes; accuracy counts the one with the largest share as right."""
        logits = self.classify(draws.images)  # (B, classes)
        loss = F.cross_entropy(logits, draws.targets)
        accuracy = (logits.argmax(dim=1) == draws.targets.argmax(dim=1)).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def classify(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits of images as they are."""
        latent = self.encoder(images)
        return self.head(latent.prefix[:, 0] if self.config.pool == "class" else latent.patches.mean(dim=1))
