"""Heads that turn an encoder into something that answers a question."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.nn.attention import CrossAttention
from pantomim.nn.blocks import NORM_EPS
from pantomim.nn.init import narrow_normal
from pantomim.nn.vit import Encoder

Pool = Literal["mean", "normed_mean", "class"]
HeadInit = Literal["mae", "dbot", "beit", "deit"]


class Classifier(nn.Module):
    """The encoder with a linear head, as it is fine-tuned.

    With `pool="mean"` the encoder's final norm is dropped, patch tokens are averaged after the last block, and a new
    norm follows; with "normed_mean" they are averaged after the final norm; with "class" the class token after the
    final norm is used.

    The encoder is taken over, not copied; `learn_positions` makes its fixed position table trainable, as MAE does.
    `head_init` None is that of the encoder's initial weights: MAE's, or BEiT's and CAE's.

    Paper: He et al. 2022, appendix A.1; head initialisation (truncated normal, 2e-5) as in `main_finetune.py`; with
        BEiT's and CAE's encoders as in their `modeling_finetune.py` (a normal cut at one std, times 0.001); dBOT's
        truncated normal of 0.01 and DeiT's normal of 0.02 (which cuts at 100 std) as in their code.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        pool: Pool = "mean",
        *,
        learn_positions: bool = True,
        head_init: HeadInit | None = None,
    ) -> None:
        super().__init__()
        if pool == "class" and encoder.cls_token is None:
            raise ValueError("Classifier.pool must be 'mean' for an encoder without a class token; got 'class'.")
        self.pool = pool
        self.encoder = encoder
        if encoder.pos_embed is not None:
            encoder.pos_embed.requires_grad_(learn_positions or encoder.config.position == "learned")
        if pool == "mean":
            self.encoder.norm = nn.Identity()
        eps = encoder.config.norms.eps
        self.fc_norm = nn.LayerNorm(encoder.width, eps=eps) if pool == "mean" else nn.Identity()
        self.head = nn.Linear(encoder.width, num_classes)
        initialise_head(self.head, head_init or _HEAD_INITS[encoder.config.initialisation])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.encoder.image_size

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Input of the head."""
        latent = self.encoder(images)
        pooled = latent.prefix[:, 0] if self.pool == "class" else latent.patches.mean(dim=1)
        return self.fc_norm(pooled)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits."""
        return self.head(self.features(images))

    def plain_encoder(self) -> Encoder:
        """A copy of the encoder alone, with a final norm: where the pooling dropped it, the norm that followed."""
        encoder = copy.deepcopy(self.encoder)
        if self.pool == "mean":
            encoder.norm = copy.deepcopy(self.fc_norm)
            encoder.config = replace(encoder.config, norms=replace(encoder.config.norms, final=True))
        return encoder


_HEAD_INITS: dict[str, HeadInit] = {"mae": "mae", "mocov3": "mae", "beit": "beit", "cae": "beit", "normal": "beit"}


@torch.no_grad()
def initialise_head(head: nn.Linear, scheme: HeadInit) -> None:
    """Initial weights of a classifier's last layer; the bias is zero in all."""
    if scheme == "beit":
        narrow_normal(head.weight)
        head.weight.mul_(0.001)
    else:  # theirs are cut at 2, a hundred std and more
        nn.init.normal_(head.weight, std={"mae": 2e-5, "dbot": 0.01, "deit": 0.02}[scheme])
    nn.init.zeros_(head.bias)


class LinearHead(nn.Module):
    """Linear probe: batch norm without weights, then a linear layer.

    Paper: He et al. 2022, appendix A.1; eps and initial weights as in the authors' `main_linprobe.py`, and in CAE's.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B classes"]:
        """Logits."""
        return self.head(self.norm(features))


class AttentiveHead(nn.Module):
    """Attentive probe: one learned query reads all tokens of a frozen encoder.

    Cross-attention, batch norm without weights, linear layer; no residual, no MLP, no positions. The authors' code
    evaluates with `test_batch_statistics`, not running ones, so that a score depends on which images share a batch.

    Paper: Chen et al., arXiv:2202.03026, "attentive probing".
    Deviation: running statistics in evaluation, unless asked for; the query starts from a truncated normal (0.02), as
        in the authors' Paddle release, where their PyTorch code has zeros, whose layer norm has a thousandfold
        gradient. Their unused second layer norm is left out.
    """

    def __init__(self, width: int, heads: int, num_classes: int, test_batch_statistics: bool = False) -> None:
        super().__init__()
        self.test_batch_statistics = test_batch_statistics
        self.query_token = nn.Parameter(torch.empty(1, 1, width))
        self.norm_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_k = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = CrossAttention(width, heads)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.query_token, std=0.02)
        for layer in (self.attn.q, self.attn.k, self.attn.v, self.attn.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.attn.proj.bias)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def pool(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """What the query reads, before the batch norm."""
        query = self.norm_q(self.query_token).expand(len(tokens), -1, -1)
        return self.attn(query, self.norm_k(tokens), self.norm_v(tokens)).squeeze(1)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B classes"]:
        """Logits, for all tokens that the encoder gives, prefix tokens first."""
        pooled = self.pool(tokens)
        if self.test_batch_statistics and not self.training:
            return self.head(F.batch_norm(pooled, None, None, training=True, eps=self.norm.eps))
        return self.head(self.norm(pooled))
