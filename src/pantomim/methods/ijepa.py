"""I-JEPA: from the features of what is visible of an image, predict the features of blocks that are not.

    loss = mean over all features of the target blocks' patches of smooth_l1(prediction - target, beta 1)
    target = layer_norm(features of the whole image, from an EMA copy of the encoder)        (no weights, eps 1e-5)

Paper: Assran et al. 2023, *Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture*,
arXiv:2301.08243; the paper describes a squared distance, the authors' code has smooth L1.
"""

from dataclasses import field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.masking.multi_block import Blocks, MultiBlockMasker
from pantomim.methods.base import Method, Requirements
from pantomim.nn.blocks import NORM_EPS, Block
from pantomim.nn.init import SCHEMES, initialise
from pantomim.nn.momentum import EMA, Momentum
from pantomim.nn.position import sincos_2d
from pantomim.nn.tokens import take
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.targets.distance import Distance

DISTANCE = Distance("smooth_l1", beta=1.0)
TARGET_EPS = 1e-5  # of the targets' layer norm; all others have 1e-6


@frozen
class PredictorConfig:
    """Sizes of the predictor; it has as many heads as the encoder, whatever its width.

    Source: the authors' `configs/in1k_vith14_ep300.yaml`.
    """

    width: AtLeastOne = 384
    depth: AtLeastOne = 12
    mlp_ratio: Positive = 4.0


@frozen
class IJEPAConfig:
    """The parts of I-JEPA, with the values of the authors' ViT-H/14; the predictor sees one target block at a time."""

    kind: Literal["ijepa"] = "ijepa"
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(
            patch_size=14, width=1280, depth=32, heads=16, class_token=False, initialisation="normal"
        )
    )
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    masker: MultiBlockMasker = field(default_factory=MultiBlockMasker)
    momentum: Momentum = field(default_factory=lambda: Momentum(0.996, 1.0, shape="linear"))

    def __post_init__(self) -> None:
        if self.encoder.num_prefix:
            raise ValueError(
                f"IJEPAConfig.encoder must have no class and register tokens, which nothing would train; got "
                f"{self.encoder.num_prefix}. Set class_token False and registers 0."
            )
        self.masker.num_masked(self.encoder.grid)  # refuses a grid of which blocks can be too small

    def build(self, steps: int | float | None = None) -> "IJEPA":
        """The method for a run of `steps`, initialised from torch's global generator."""
        return IJEPA(self, steps)


class Predictor(nn.Module):
    """A narrow transformer over context features and mask tokens; names as in the authors' `vision_transformer.py`."""

    def __init__(self, config: PredictorConfig, encoder: Encoder) -> None:
        super().__init__()
        width, heads = config.width, encoder.config.heads
        self.predictor_embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        table = sincos_2d(width, encoder.grid).to(torch.get_default_dtype())
        self.predictor_pos_embed = nn.Parameter(table.unsqueeze(0), requires_grad=False)
        self.predictor_blocks = nn.ModuleList(Block(width, heads, config.mlp_ratio) for _ in range(config.depth))
        self.predictor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(width, encoder.width)
        initialise(self, encoder.config.initialisation)
        SCHEMES[encoder.config.initialisation].token(self.mask_token)

    def forward(
        self, context: Float[Tensor, "R C D"], ids_context: Int[Tensor, "R C"], ids_target: Int[Tensor, "R K"]
    ) -> Float[Tensor, "R K D"]:
        """The features at the target places; a row is one context with one target block, which sees no other."""
        position = self.predictor_pos_embed[0]
        seen = self.predictor_embed(context) + F.embedding(ids_context, position)
        asked = self.mask_token + F.embedding(ids_target, position)
        tokens = torch.cat([seen, asked.to(seen.dtype)], dim=1)
        for block in self.predictor_blocks:
            tokens, _ = block(tokens)
        return self.predictor_proj(self.predictor_norm(tokens[:, context.shape[1] :]))


class IJEPA(Method):
    """Encoder, predictor, and an EMA copy of the encoder for the targets."""

    def __init__(self, config: IJEPAConfig, steps: int | float | None = None) -> None:
        super().__init__()
        self.encoder = config.encoder.build()
        self.predictor = Predictor(config.predictor, self.encoder)
        self.target_encoder = EMA(self.encoder, "encoder", config.momentum, steps, evaluating=True, lead=0)
        self.masker = config.masker
        self.requirements = Requirements.of(config.encoder)

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Blocks:
        """Blocks of the global batch, cut to this batch's rows."""
        return self.masker.blocks(batch.total, self.encoder.grid, generator).rows(batch.start, len(batch))

    def forward(self, batch: Batch, draws: Blocks) -> dict[str, Tensor]:
        """The loss on all target blocks, each predicted from every context; rows go by target, context, image."""
        ids_context, ids_target = draws  # (E, B, C), (T, B, K)
        contexts, targets = len(ids_context), len(ids_target)
        ids_context = ids_context.flatten(0, 1)  # (E B, C)
        latent = self.encoder(batch.images.repeat(contexts, 1, 1, 1), ids_context).patches  # (E B, C, D)
        ids_asked = ids_target.unsqueeze(1).expand(-1, contexts, -1, -1).flatten(0, 2)  # (T E B, K)
        prediction = self.predictor(latent.repeat(targets, 1, 1), ids_context.repeat(targets, 1), ids_asked)
        target = self.target(batch.images, ids_target)  # (T, B, K, D), no gradient
        target = target.unsqueeze(1).expand(-1, contexts, -1, -1, -1).flatten(0, 2)  # (T E B, K, D), as the prediction
        loss, baseline = F.smooth_l1_loss(at_least_float32(prediction), target), DISTANCE.baseline(target)
        return {
            "loss": loss,
            "baseline": baseline,
            "target_std": target.flatten(0, 1).std(dim=0).mean(),
        }  # a std near 0: collapsed

    @torch.no_grad()
    def target(self, images: Float[Tensor, "B C H W"], ids: Int[Tensor, "T B K"]) -> Float[Tensor, "T B K D"]:
        """The EMA encoder's features of whole images, layer-normed, at the patches of the target blocks."""
        features = at_least_float32(self.target_encoder(images).patches)  # (B, N, D)
        features = F.layer_norm(features, features.shape[-1:], eps=TARGET_EPS)
        return torch.stack([take(features, of_block) for of_block in ids])

    def exports(self) -> dict[str, Any]:
        """The target encoder, which the paper evaluates, and the predictor."""
        return super().exports() | {"encoder": self.target_encoder.copy}
