"""MoCo v3: two views of an image are to be alike, and unlike those of all other images; nothing is masked.

    loss = ctr(q1, k2) + ctr(q2, k1),   ctr(q, k) = 2 t * cross_entropy(q k^T / t, own row)        (Algorithm 1)

q are the student's queries and k the EMA teacher's keys, of length 1, of all images of the step; t is the temperature.

Paper: Chen, Xie, He 2021, *An Empirical Study of Training Self-Supervised Vision Transformers*, arXiv:2104.02057.
Here it is a teacher for masked methods, and what they are compared with.
"""

from dataclasses import field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.methods.base import Method, Requirements
from pantomim.nn.momentum import EMA, Momentum
from pantomim.nn.processes import first_row, rows_of_all
from pantomim.nn.projector import Projector
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig


def moco_encoder(size: Literal["small", "base"]) -> EncoderConfig:
    """MoCo v3's encoder for images of 224 x 224: fixed positions, rows first, and an initialisation of its own.

    Source: the authors' `vits.py`. Deviation: none; their ViT-S has twelve heads, where timm's has six.
    """
    sizes = ENCODER_SIZES[size] | {"heads": 12}
    return EncoderConfig(**sizes, position="sincos_rows_first", initialisation="mocov3")


@frozen
class MoCoV3Config:
    """The parts of MoCo v3, with the values of the paper's ViT-B.

    Paper: section 4 and 4.3 (frozen patch projection); sizes and momentum as in the authors' `CONFIG.md`.
    """

    kind: Literal["mocov3"] = "mocov3"
    # With a class token, which is the feature of an image
    encoder: EncoderConfig = field(default_factory=lambda: moco_encoder("base"))
    hidden: AtLeastOne = 4096  # Width between the layers of projector and predictor
    dim: AtLeastOne = 256  # Width in which views are compared
    temperature: Positive = 0.2  # Similarities are divided by it; the loss is multiplied by twice as much
    # What the EMA teacher keeps of itself at each step
    momentum: Momentum = field(default_factory=lambda: Momentum(0.99, 1.0))
    freeze_patches: bool = True  # The patch projection stays as it was drawn, the paper's trick for stable training

    def __post_init__(self) -> None:
        if not self.encoder.class_token:
            raise ValueError("MoCoV3Config.encoder.class_token must be there: it is an image's feature; got False.")

    def build(self, steps: int | None = None) -> "MoCoV3":
        """The method for a run of `steps`, initialised from torch's global generator."""
        return MoCoV3(self, steps)


class MoCoV3(Method):
    """Student and teacher on two views; the authors' teacher moves just before the next step's keys: the same."""

    def __init__(self, config: MoCoV3Config, steps: int | None = None) -> None:
        super().__init__()
        self.encoder = config.encoder.build()
        self.projector = Projector(config.encoder.width, config.hidden, config.dim, layers=3)
        self.predictor_head = Projector(config.dim, config.hidden, config.dim, layers=2)
        if config.freeze_patches:
            self.encoder.patch_embed.requires_grad_(False)
        self.teacher_encoder = EMA(self.encoder, "encoder", config.momentum, steps, evaluating=True)
        self.teacher_projector = EMA(self.projector, "projector", config.momentum, steps)  # norms by the batch, as ours
        self.temperature = config.temperature
        self.requirements = Requirements.of(config.encoder, views=2, whole_batch=True, gathers=True)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> None:
        """Nothing is drawn here: the two views come with the batch."""

    def forward(self, batch: Batch, draws: None) -> dict[str, Tensor]:
        """Each view's query against the other view's keys, of the images of all processes (Algorithm 1)."""
        first, second = batch.images, batch.second
        assert second is not None, "checked before the first step"
        feature1, feature2 = self.encoder(first).prefix[:, 0], self.encoder(second).prefix[:, 0]  # (B, D), class token
        query1 = self.predictor_head(self.projector(feature1))  # (B, K)
        query2 = self.predictor_head(self.projector(feature2))
        key1, key2 = self.keys(first), self.keys(second)  # (B, K), no gradient
        loss1, accuracy1 = self.contrast(query1, key2)
        loss2, accuracy2 = self.contrast(query2, key1)
        spread = feature_spread(torch.cat([feature1, feature2]))
        return {"loss": loss1 + loss2, "accuracy": (accuracy1 + accuracy2) / 2, "feature_std": spread}

    @torch.no_grad()
    def keys(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The teacher's output for a view: no predictor, no gradient."""
        return self.teacher_projector(self.teacher_encoder(images).prefix[:, 0])

    def contrast(self, query: Float[Tensor, "B K"], key: Float[Tensor, "B K"]) -> tuple[Tensor, Tensor]:
        """InfoNCE against the keys of all processes (equation 1), times 2 t; and the share that is found."""
        keys = rows_of_all(unit(key))  # (G, K)
        own = first_row(len(query)) + torch.arange(len(query), device=query.device)
        with torch.autocast(query.device.type, enabled=False):  # a few numbers, whose differences matter
            logits = unit(query) @ keys.mT / self.temperature  # (B, G)
        loss = F.cross_entropy(logits, own) * (2 * self.temperature)
        return loss, (logits.argmax(dim=-1) == own).to(loss.dtype).mean()


def unit(vectors: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Vectors of length 1, at least in float32."""
    return F.normalize(at_least_float32(vectors), dim=-1)


@torch.no_grad()
def feature_spread(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Std of unit features over a batch, mean over channels, times sqrt(D): 0 is collapse, 1 evenly on the sphere."""
    return unit(features).std(dim=0).mean() * features.shape[-1] ** 0.5
