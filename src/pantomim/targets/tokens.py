"""Visual tokens as the target: one id a patch, given by a frozen tokenizer.

    loss = mean over masked patches of -log softmax(prediction)[id]        (BEiT, equation 3)

Paper: Bao et al. 2022, *BEiT*, arXiv:2106.08254, sections 2.1 and 2.3.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastTwo
from pantomim.nn.vit import Encoder
from pantomim.targets.base import Target
from pantomim.targets.distance import weighted_mean
from pantomim.tokenizers.base import Tokenizer
from pantomim.tokenizers.loading import WAYS, load_tokenizer
from pantomim.tokenizers.resized import on_grid
from pantomim.tokenizers.usage import code_usage, count_codes, usage_warning

USUAL_VOCABULARY = 8192  # of the published tokenizers: BEiT's and CAE's


class TokenTarget(Target):
    """The ids of the patches, one each; the tokenizer is never trained, nor in training mode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.dim = tokenizer.vocabulary
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The id of every patch, in raster order."""
        return self.tokenizer(images)

    @torch.no_grad()
    def at(self, images: Float[Tensor, "B C H W"], ids: Int[Tensor, "B M"]) -> Int[Tensor, "B M"]:
        """The visual tokens of the patches `ids`; scores of codes are computed for no others."""
        return self.tokenizer(images, ids)

    def loss(
        self, prediction: Float[Tensor, "B M K"], target: Int[Tensor, "B M"], weight: Float[Tensor, "B M"] | None = None
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the scores of all ids; an image with fewer masked patches weighs less."""
        scores = at_least_float32(prediction).flatten(0, 1)
        each = F.cross_entropy(scores, target.flatten(), reduction="none")
        return weighted_mean(each.view_as(target), weight)

    def metrics(
        self, prediction: Float[Tensor, "B M K"], target: Int[Tensor, "B M"], weight: Float[Tensor, "B M"] | None = None
    ) -> dict[str, Tensor]:
        """The share of patches whose id has the highest score."""
        right = prediction.argmax(dim=-1) == target
        return {"accuracy": weighted_mean(at_least_float32(right.to(prediction.dtype)), weight)}

    def check_data(self, batches: Iterable[Float[Tensor, "B C H W"]]) -> str | None:
        """A warning where these images get few of the tokens: predicting them is then hardly a task."""
        counts = sum(count_codes(self(images), self.dim).cpu() for images in batches)
        return usage_warning(code_usage(torch.as_tensor(counts)), "the tokenizer")


@frozen
class TokenTargetConfig:
    """Which tokenizer; there is no default."""

    kind: Literal["tokens"] = "tokens"
    tokenizer: str = ""  # As `load_tokenizer` takes it: RUN, FILE, dalle:FILE, random-projection ...
    # How many ids there are; None: as the tokenizer has, or 8192 of a random projection
    vocabulary: AtLeastTwo | None = None
    # Of the tokenizer; auto: float16 on a GPU, but for its last layer, as the published code
    precision: Literal["auto", "float32"] = "auto"

    def build(self, encoder: Encoder) -> TokenTarget:
        """The target for an encoder's patches and channels."""
        if not self.tokenizer:
            raise ValueError(
                f"TokenTargetConfig.tokenizer must be given, as there is no default; got none. Name one "
                f"(random-projection will do for a first try), or take another target, such as pixels. {WAYS}."
            )
        vocabulary, channels = self.vocabulary or USUAL_VOCABULARY, encoder.in_chans
        sizes = {"patch_size": encoder.patch_size, "in_chans": channels, "vocabulary": vocabulary}
        found = load_tokenizer(self.tokenizer, **sizes, float16=self.precision == "auto")
        tokenizer = on_grid(found, encoder.image_size, encoder.grid)
        if self.vocabulary not in (None, tokenizer.vocabulary):
            raise ValueError(
                f"TokenTargetConfig.vocabulary must be the tokenizer's, {tokenizer.vocabulary}; got {self.vocabulary}. "
                f"Use another tokenizer, or leave the vocabulary out."
            )
        return TokenTarget(tokenizer)
