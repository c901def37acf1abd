"""MoCo v3: two views of an image are to be alike, and unlike those of all other images; nothing is hidden.

Paper: Chen, Xie, He 2021, *An Empirical Study of Training Self-Supervised Vision Transformers*, arXiv:2104.02057.
Here it is a teacher for masked methods, and what they are compared with.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.methods.base import Method, Requirements
from pantomim.nn.momentum import Momentum, follow
from pantomim.nn.processes import first_row, rows_of_all
from pantomim.nn.projector import Projector
from pantomim.nn.vit import ENCODER_SIZES, Encoder, EncoderConfig


def moco_encoder(size: Literal["small", "base"]) -> EncoderConfig:
    """MoCo v3's encoder for images of 224 x 224: fixed positions, rows first, and first values of its own.

    Source: the authors' `vits.py`. Deviation: none; their ViT-S has twelve heads, where timm's has six.
    """
    sizes = ENCODER_SIZES[size] | {"heads": 12}
    return EncoderConfig(**sizes, position="sincos_rows_first", initialisation="mocov3")


@frozen
class MoCoV3Config:
    """The parts of MoCo v3, with the values of the paper's ViT-B.

    Args:
        encoder: With a class token, which is the feature of an image.
        hidden: Width between the layers of projector and predictor.
        dim: Width in which views are compared.
        temperature: Similarities are divided by it; the loss is multiplied by twice as much.
        momentum: What the teacher keeps of itself at each step.
        freeze_patches: The patch projection stays as it was drawn, the paper's trick for stable training.

    Raises:
        ValueError: if there is no class token, or a number is out of range.

    Paper: section 4 (heads, momentum), section 4.3 (frozen patch projection); sizes and the schedule of the momentum
        as in the authors' `main_moco.py` and `CONFIG.md`.
    """

    kind: Literal["mocov3"] = "mocov3"
    encoder: EncoderConfig = field(default_factory=lambda: moco_encoder("base"))
    hidden: int = 4096
    dim: int = 256
    temperature: float = 0.2
    momentum: Momentum = field(default_factory=lambda: Momentum(0.99, 1.0))
    freeze_patches: bool = True

    def __post_init__(self) -> None:
        if not self.encoder.class_token:
            raise ValueError("MoCoV3Config.encoder.class_token must be there: it is an image's feature; got False.")
        for name in ("hidden", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"MoCoV3Config.{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"MoCoV3Config.temperature must be above 0; got {self.temperature}. The paper has 0.2 for ViT."
            )

    def describe(self) -> list[tuple[str, str]]:
        """Parts and token shapes, and which network sees which view; for `pantomim explain`."""
        encoder = self.encoder
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        size, channels, tokens = encoder.patch_size, encoder.in_chans, encoder.num_prefix + rows * cols
        patches = "frozen as drawn" if self.freeze_patches else "trained"
        heads = f"B x {encoder.width} to {self.hidden}, {self.hidden}, {self.dim}"
        return [
            ("images", f"B x {channels} x {height} x {width}, patches of {size}x{size}, grid {rows} x {cols}"),
            ("views", "two of each image; nothing is hidden"),
            (
                "encoder",
                f"{encoder.width} wide, {encoder.depth} blocks, {encoder.heads} heads, patch projection {patches}",
            ),
            ("student sees", f"both views, each B x {tokens} x {encoder.width}; its class token goes on"),
            ("projector", f"{heads}, batch norm over all images of a step"),
            ("predictor", f"B x {self.dim} to {self.hidden}, {self.dim}: the student's only"),
            ("teacher", f"a copy of encoder and projector, {self.momentum}"),
            ("teacher sees", "both views, whole, without gradient"),
            (
                "predicts",
                f"from each view, which other view of the batch has the same image; temperature {self.temperature:g}",
            ),
        ]

    def build(self) -> "MoCoV3":
        """The method, with the authors' initialisation drawn from torch's global generator."""
        encoder = self.encoder.build()
        projector = Projector(encoder.width, self.hidden, self.dim, layers=3)
        predictor = Projector(self.dim, self.hidden, self.dim, layers=2)
        return MoCoV3(
            encoder,
            projector,
            predictor,
            temperature=self.temperature,
            momentum=self.momentum,
            freeze_patches=self.freeze_patches,
        )


@dataclass(frozen=True)
class MoCoV3Draws:
    """Nothing: the two views come with the batch."""


class MoCoV3(Method):
    """Student and teacher on two views (Algorithm 1 of the paper); `MoCoV3Config` explains the settings.

    Deviation: none in the loss. The teacher moves after the optimiser's step as in Algorithm 1, with the momentum that
        the authors' code then has: it moves before the next step's keys are made, which is the same.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        predictor: Projector,
        *,
        temperature: float = 0.2,
        momentum: Momentum,
        freeze_patches: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor_head = encoder, projector, predictor
        self.temperature, self.momentum = temperature, momentum
        self.total: int | None = None
        if freeze_patches:
            encoder.patch_embed.requires_grad_(False)
        self.teacher_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(projector).requires_grad_(False)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> MoCoV3Draws:
        """Nothing is drawn here: views are cut where images are read."""
        return MoCoV3Draws()

    def forward(self, batch: Batch, draws: MoCoV3Draws) -> dict[str, Tensor]:
        """Each view's query against the other view's keys, of the images of all processes (Algorithm 1)."""
        first, second = batch.images, batch.second
        if second is None:
            raise ValueError("Batch.second must be another view of the images; got None. Set DataConfig.second.")
        feature1, feature2 = self.encoder(first).prefix[:, 0], self.encoder(second).prefix[:, 0]  # (B, D)
        query1 = self.predictor_head(self.projector(feature1))  # (B, K)
        query2 = self.predictor_head(self.projector(feature2))
        key1, key2 = self.keys(first), self.keys(second)  # (B, K), no gradient
        loss1, accuracy1 = self.contrast(query1, key2)
        loss2, accuracy2 = self.contrast(query2, key1)
        spread = feature_spread(torch.cat([feature1, feature2]))
        return {"loss": loss1 + loss2, "accuracy": (accuracy1 + accuracy2) / 2, "feature_std": spread}

    @torch.no_grad()
    def keys(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """What the teacher says of a view: no predictor, no gradient."""
        return self.teacher_projector(self.teacher_encoder(images).prefix[:, 0])

    def contrast(self, query: Float[Tensor, "B K"], key: Float[Tensor, "B K"]) -> tuple[Tensor, Tensor]:
        """InfoNCE against the keys of all processes, times twice the temperature; and the share that is found.

        Paper: equation 1; factor and normalisation as in Algorithm 1.
        """
        keys = rows_of_all(unit(key))  # (G, K)
        own = first_row(len(query)) + torch.arange(len(query), device=query.device)
        with torch.autocast(query.device.type, enabled=False):  # a few numbers, whose differences matter
            logits = unit(query) @ keys.mT / self.temperature  # (B, G)
        loss = F.cross_entropy(logits, own) * (2 * self.temperature)
        return loss, (logits.argmax(dim=-1) == own).to(loss.dtype).mean()

    def begin(self, steps: int) -> None:
        """The momentum follows a schedule over the whole run."""
        self.total = steps

    def update_ema(self, step: int) -> None:
        """The teacher follows encoder and projector."""
        self._move(self.momentum.at(step + 1, self.total))

    def reset(self) -> None:
        """The teacher begins as the student."""
        self._move(0.0)

    def _move(self, momentum: float) -> None:
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_projector, self.projector, momentum)

    def train(self, mode: bool = True) -> "MoCoV3":
        """The teacher's encoder never drops a path; its projector normalises by the batch, as the student's does."""
        super().train(mode)
        self.teacher_encoder.train(False)
        return self

    def exports(self) -> dict[str, nn.Module]:
        """The encoder, and the heads for going on."""
        return {"encoder": self.encoder, "projector": self.projector, "predictor": self.predictor_head}

    def requirements(self) -> Requirements:
        """Two views of the encoder's images, and whole batches: what an image is compared with is its batch."""
        return replace(super().requirements(), views=2, whole_batch=True, gathers=True)


def unit(vectors: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Vectors of length 1, at least in float32."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


@torch.no_grad()
def feature_spread(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Whether images still differ: deviation of unit features over a batch, mean over channels, times sqrt(D).

    0 where all images have one feature (collapse), 1 where features lie evenly on the sphere.
    """
    return unit(features).std(dim=0).mean() * features.shape[-1] ** 0.5
