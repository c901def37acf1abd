"""Supervised baseline: the same encoder learns to name the images, from labels; what the probes are compared with.

Paper: Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*,
    arXiv:2012.12877, without distillation.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.masking.block import host_seed
from pantomim.methods.base import Method, Requirements
from pantomim.nn.mixing import Mixing, draw_mixing, mix_images, mix_targets, swap_neighbours
from pantomim.nn.vit import Encoder, EncoderConfig

Pool = Literal["class", "mean"]


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

    Raises:
        ValueError: if a value is out of range, or the class token is asked for and there is none.

    Paper: Table 9 (label smoothing, mixup, CutMix); class token: the authors' `models.py`.
    """

    kind: Literal["supervised"] = "supervised"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    num_classes: int = 1000
    pool: Pool = "class"
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"SupervisedConfig.num_classes must be at least 2; got {self.num_classes}.")
        if self.pool == "class" and not self.encoder.class_token:
            raise ValueError("SupervisedConfig.pool must be mean for an encoder without a class token; got class.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"SupervisedConfig.label_smoothing must be in [0, 1); got {self.label_smoothing}. Give 0 for none."
            )
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"SupervisedConfig.{name} must not be negative; got {getattr(self, name)}. Give 0 for none."
                )

    def describe(self) -> list[tuple[str, str]]:
        """Parts and token shapes; for `pantomim explain`."""
        encoder = self.encoder
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        size, channels, prefix = encoder.patch_size, encoder.in_chans, encoder.num_prefix
        pooled = "the class token" if self.pool == "class" else "the mean of all patches"
        return [
            ("images", f"B x {channels} x {height} x {width}, patches of {size}x{size}, grid {rows} x {cols}"),
            ("labels", f"{self.num_classes} classes, smoothed by {self.label_smoothing:g}"),
            ("mixed", f"with a neighbour in the batch: mixup {self.mixup:g}, CutMix {self.cutmix:g}"),
            (
                "encoder",
                f"{encoder.width} wide, {encoder.depth} blocks, {encoder.heads} heads, {encoder.position} positions",
            ),
            (
                "encoder sees",
                f"B x {prefix + rows * cols} x {encoder.width}: all patches and {prefix} prefix token(s); no masks",
            ),
            ("predicts", f"B x {self.num_classes}: classes, with one linear layer on {pooled}"),
        ]

    def build(self) -> "Supervised":
        """The method, with first values drawn from torch's global generator."""
        return Supervised(
            self.encoder.build(),
            self.num_classes,
            self.pool,
            label_smoothing=self.label_smoothing,
            mixup=self.mixup,
            cutmix=self.cutmix,
        )


@dataclass(frozen=True)
class SupervisedDraws:
    """What is left to learn once all that is random is drawn.

    Args:
        images: Mixed ones.
        targets: Their class probabilities.
    """

    images: Float[Tensor, "B C H W"]
    targets: Float[Tensor, "B classes"]


class Supervised(Method):
    """An encoder and a linear layer on its class token or on the mean of its patches.

    Deviation: the head begins as DeiT's (normal, 0.02). Partners in mixing are neighbours in the global batch, and one
        coin and one share hold for all of it, so that the number of processes changes nothing; in timm each process
        mixes its own images in reverse order, by draws of its own.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        pool: Pool,
        *,
        label_smoothing: float,
        mixup: float,
        cutmix: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool, self.num_classes = pool, num_classes
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        self.head = nn.Linear(encoder.width, num_classes)
        nn.init.normal_(self.head.weight, std=0.02)  # cut at 100 deviations in the authors' code
        nn.init.zeros_(self.head.bias)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> SupervisedDraws:
        """Mix images and labels, one way for the whole step."""
        assert batch.labels is not None, "checked before the first step"
        mixing, partners = Mixing(1.0), batch
        if self.mixup > 0 or self.cutmix > 0:
            draws = np.random.default_rng(host_seed(generator))
            mixing = draw_mixing(draws, self.encoder.image_size, mixup_alpha=self.mixup, cutmix_alpha=self.cutmix)
            images, labels = swap_neighbours(batch.images), swap_neighbours(batch.labels)
            partners = replace(batch, images=images, labels=labels)
        return SupervisedDraws(
            images=mix_images(batch.images, mixing, partners.images),
            targets=mix_targets(
                batch.labels, self.num_classes, mixing.lam, self.label_smoothing, partners=partners.labels
            ),
        )

    def forward(self, batch: Batch, draws: SupervisedDraws) -> dict[str, Tensor]:
        """Cross-entropy with the mixed classes; accuracy counts the one with the largest share as right."""
        logits = self.classify(draws.images)  # (B, classes)
        loss = F.cross_entropy(logits, draws.targets)
        accuracy = (logits.argmax(dim=1) == draws.targets.argmax(dim=1)).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def classify(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits of images as they are."""
        latent = self.encoder(images)
        return self.head(latent.prefix[:, 0] if self.pool == "class" else latent.patches.mean(dim=1))

    def exports(self) -> dict[str, nn.Module]:
        """The encoder, and the head for going on."""
        return {"encoder": self.encoder, "head": self.head}

    def requirements(self) -> Requirements:
        """Images of the encoder's kind, with labels."""
        return replace(super().requirements(), num_classes=self.num_classes)
