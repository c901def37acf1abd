"""Supervised training: an encoder and a linear layer learn the classes of images, from given weights or from none.

    loss = mean over images of -sum over classes of target * log softmax(logits)

The target is the smoothed label, mixed with a neighbour's by mixup or CutMix. From a pre-trained encoder this is
fine-tuning, as MAE, BEiT, CAE, dBOT and ColorMAE are judged by; from none it is the supervised baseline.

Paper: Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*,
    arXiv:2012.12877, without distillation; fine-tuning: He et al. 2022, arXiv:2111.06377, appendix A.1 and Table 9.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.host import host_seed
from pantomim.core.ranges import AtLeastTwo, NotNegative, Positive, ShareBelowOne
from pantomim.methods.base import Requirements
from pantomim.methods.task import ClassTask
from pantomim.nn.heads import Classifier, HeadInit, Pool
from pantomim.nn.mixing import Mixing, draw_mixing, mix_images, mix_targets, swap_neighbours
from pantomim.nn.momentum import EMA, Momentum
from pantomim.nn.position import TABLES
from pantomim.nn.vit import EncoderConfig


@frozen
class SupervisedConfig:
    """The parts of supervised training, with DeiT's values.

    Paper: Table 9 (label smoothing, mixup, CutMix); class token: the authors' `models.py`.
    """

    kind: Literal["supervised"] = "supervised"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # Sizes of the encoder
    num_classes: AtLeastTwo = 1000  # Classes of the labels; a bare method takes them from the data
    # What the head sees: the class token after the final norm ("class"), the mean of all patches after it
    # ("normed_mean"), or that mean before it, with a norm of its own ("mean": MAE, BEiT, CAE)
    pool: Pool = "class"
    # Initial weights of the head: a truncated normal of 2e-5 ("mae") or 0.01 ("dbot"), a narrow normal times 0.001
    # ("beit", also CAE's), a normal of 0.02 ("deit")
    head_init: HeadInit = "deit"
    # Of pool mean: the norm is "new", or starts as the "pretrained" final norm (CAE)
    norm_init: Literal["new", "pretrained"] = "new"
    # Train a fixed position table, too (MAE); else it is that of its formula for the image size
    learn_positions: bool = False
    label_smoothing: ShareBelowOne = 0.1  # Share of the probability that is spread evenly over all classes
    mixup: NotNegative = 0.8  # Parameter of mixup's beta distribution; 0: none
    cutmix: NotNegative = 1.0  # The same of CutMix. Where both are used, a coin chooses for each step
    # Weight of an image of each class in the loss, for uneven classes; the best step is then that with the best mean
    # over classes. None: all the same
    class_weights: tuple[Positive, ...] | None = None
    # What an average of the weights keeps of itself at each step; None: there is no average
    ema: ShareBelowOne | None = None
    test_margin: Positive = 256 / 224  # The shorter side of a test image over that of its centre, which is looked at

    def __post_init__(self) -> None:
        if self.pool == "class" and not self.encoder.class_token:
            raise ValueError("SupervisedConfig.pool must be mean for an encoder without a class token; got class.")
        if self.norm_init == "pretrained" and self.pool != "mean":
            raise ValueError(
                f"SupervisedConfig.norm_init must be new unless pool is mean, whose norm is apart; got {self.pool}."
            )
        if self.class_weights is not None and len(self.class_weights) != self.num_classes:
            raise ValueError(
                f"SupervisedConfig.class_weights must have one value a class; got {len(self.class_weights)} for "
                f"{self.num_classes} classes. Give as many, or leave them out."
            )

    def build(self, steps: int | None = None) -> "Supervised":
        """The method, initialised from torch's global generator."""
        return Supervised(self)


@dataclass(frozen=True)
class SupervisedDraws:
    """What is to be learned, once all that is random is drawn: mixed images and their class probabilities."""

    images: Float[Tensor, "B C H W"]
    targets: Float[Tensor, "B classes"]
    weights: Float[Tensor, " B"] | None = None  # of the images, by their classes; None: all the same


class Supervised(ClassTask):
    """A classifier, trained whole.

    Deviation: partners in mixing are neighbours in the global batch, and one coin and one share hold for all of it, so
        that the number of processes changes nothing; in timm each process mixes its images in reverse order.
    """

    model: Classifier
    class_weights: Tensor | None

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.model = Classifier(
            config.encoder.build(),
            config.num_classes,
            config.pool,
            learn_positions=config.learn_positions,
            head_init=config.head_init,
        )
        self.ema = None if config.ema is None else EMA(self.model, "model", Momentum(config.ema), evaluating=True)
        weights = None if config.class_weights is None else torch.tensor(config.class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.metric = "top1" if weights is None else "top1_per_class"
        mixes = config.mixup > 0 or config.cutmix > 0
        self.requirements = Requirements.of(
            config.encoder, num_classes=config.num_classes, even=mixes, test_margin=config.test_margin
        )

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> SupervisedDraws:
        """Mix images and labels, one way for the whole step."""
        assert batch.labels is not None, "checked before the first step"
        config, mixing, images, labels = self.config, Mixing(1.0), batch.images, batch.labels
        if config.mixup > 0 or config.cutmix > 0:
            draws = np.random.default_rng(host_seed(generator))
            mixing = draw_mixing(draws, config.encoder.image_size, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)
            images, labels = swap_neighbours(images), swap_neighbours(labels)
        smoothing, dtype = config.label_smoothing, batch.images.dtype
        targets = mix_targets(batch.labels, config.num_classes, mixing.lam, smoothing, dtype, partners=labels)
        weights = self.class_weights
        if weights is not None:
            weights = mixing.lam * weights[batch.labels] + (1 - mixing.lam) * weights[labels]
        return SupervisedDraws(mix_images(batch.images, mixing, images), targets, weights)

    def forward(self, batch: Batch, draws: SupervisedDraws) -> dict[str, Tensor]:
        """Cross-entropy with the mixed classes; accuracy counts the one with the largest share as right."""
        logits = self.model(draws.images)  # (B, classes)
        losses = F.cross_entropy(logits, draws.targets, reduction="none")  # (B,)
        loss = losses.mean() if draws.weights is None else (draws.weights * losses).mean()
        accuracy = (logits.argmax(dim=1) == draws.targets.argmax(dim=1)).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def logits(self, model: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """By the classifier, or by a copy of it."""
        return model(images)  # type: ignore[no-any-return]

    def take_encoder(self, weights: dict[str, Tensor], table: str) -> tuple[dict[str, Tensor], list[str]]:
        """As of every task; the norm after pooling may start as the final norm, which has no other place then.

        A fixed table that stays fixed is that of its formula for the new size, not resampled, as CAE's authors do.
        """
        found, remarks = super().take_encoder(weights, table)
        own = self.encoder.pos_embed
        if own is not None and not own.requires_grad and table == TABLES.get(self.encoder.config.position):
            if not torch.equal(own, found["pos_embed"]):
                remarks.append("but the fixed position table, which is that of its formula for the new size")
            found["pos_embed"] = own.detach()
        if self.config.norm_init == "pretrained" and self.config.encoder.norms.final:
            self.model.fc_norm.load_state_dict({name: weights[f"norm.{name}"] for name in ("weight", "bias")})
            remarks.append("the norm after pooling starts as it")
        return found, remarks

    def exports(self) -> dict[str, Any]:
        """The classifier, and the encoder in it."""
        chosen = self.chosen
        assert isinstance(chosen, Classifier)
        about = {"test_margin": self.config.test_margin, "chosen": self.how_chosen()}
        return {"encoder": chosen.plain_encoder(), "classifier": chosen, "about": about}
