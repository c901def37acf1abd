"""Heads that turn an encoder into something that answers a question."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from pantomim.nn.vit import NORM_EPS, Encoder


class Classifier(nn.Module):
    """The encoder with a linear head, as it is fine-tuned.

    With `pool="mean"` the encoder's final norm is dropped, patch tokens are averaged after the last block, and a new
    norm follows; with `pool="class"` the class token after the final norm is used. The position table becomes
    trainable.

    Args:
        encoder: Taken over, not copied: its final norm is removed for mean pooling.
        num_classes: Width of the head.
        pool: "mean" (global pool, the default of the recipes) or "class".

    Raises:
        ValueError: if the class token is asked for and the encoder has none.

    Paper: He et al. 2022, appendix A.1; head initialisation (truncated normal, 2e-5) as in `main_finetune.py`.
    """

    def __init__(self, encoder: Encoder, num_classes: int, pool: Literal["mean", "class"] = "mean") -> None:
        super().__init__()
        if pool == "class" and encoder.cls_token is None:
            raise ValueError("Classifier.pool must be 'mean' for an encoder without a class token; got 'class'.")
        self.pool = pool
        self.encoder = encoder
        self.encoder.pos_embed.requires_grad_(True)
        if pool == "mean":
            self.encoder.norm = nn.Identity()
        self.fc_norm = nn.LayerNorm(encoder.width, eps=NORM_EPS) if pool == "mean" else nn.Identity()
        self.head = nn.Linear(encoder.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """What the head sees."""
        latent = self.encoder(images)
        pooled = latent.patches.mean(dim=1) if self.pool == "mean" else latent.prefix[:, 0]
        return self.fc_norm(pooled)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits."""
        return self.head(self.features(images))
