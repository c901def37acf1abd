"""Visual tokens as what is predicted: one id a patch, given by a frozen tokenizer."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.nn.vit import Encoder
from pantomim.targets.base import Target
from pantomim.tokenizers.base import Tokenizer, check_tokenizer
from pantomim.tokenizers.loading import WAYS, load_tokenizer
from pantomim.tokenizers.resized import on_grid
from pantomim.tokenizers.usage import code_usage, count_codes, usage_warning

USUAL_VOCABULARY = 8192  # of the published tokenizers: BEiT's and CAE's


class TokenTarget(Target):
    """The ids that a tokenizer gives to the patches; it is never trained, nor in training mode.

    Args:
        tokenizer: With one id for each patch; a module among them moves to devices with the method.

    Returns (call): (B, N) ids in raster order, below `dim`; no gradient.

    Paper: Bao et al. 2022, arXiv:2106.08254, section 2.1.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.dim = tokenizer.vocabulary
        self.requires_grad_(False)
        self.train()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The id of every patch of scaled images."""
        return self.tokenizer(images)

    def check_data(self, batches: Iterable[Float[Tensor, "B C H W"]]) -> str | None:
        """A warning where these images get few of the tokens: naming them is then hardly a task."""
        counts = sum(count_codes(self(images), self.dim).cpu() for images in batches)
        return usage_warning(code_usage(torch.as_tensor(counts)), "the tokenizer")

    def score(
        self,
        prediction: Float[Tensor, "B M K"],
        images: Float[Tensor, "B C H W"],
        ids: Int[Tensor, "B M"],
        weight: Float[Tensor, "B M"] | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy with the tokens of the patches `ids`, and the share of them that is named."""
        loss, accuracy = token_loss(prediction, self(images).gather(1, ids), weight)
        return {"loss": loss, "accuracy": accuracy}


@frozen
class TokenTargetConfig:
    """Which tokenizer; there is no default, as `load_tokenizer` says with the ways to get one.

    Args:
        tokenizer: RUN, FILE, dalle:FILE, dvae:FILE or random-projection, see `load_tokenizer`.
        vocabulary: How many ids the head predicts; None: as many as the tokenizer has, or 8192 of a random projection,
            which has as many as it is asked for.
    """

    kind: Literal["tokens"] = "tokens"
    tokenizer: str = ""
    vocabulary: int | None = None

    def build(self, encoder: Encoder) -> TokenTarget:
        """The target for an encoder's patches and channels.

        Raises:
            ValueError: if there is no such tokenizer, or its ids are not those of the encoder's patches, or it has
                another vocabulary than was asked for.
        """
        if not self.tokenizer:
            raise ValueError(
                f"TokenTargetConfig.tokenizer must be given, as there is no default; got none. Give --tokenizer "
                f"RUN|FILE|dalle:FILE|dvae:FILE|random-projection, or --target pixels. {WAYS}."
            )
        found = load_tokenizer(
            self.tokenizer,
            patch_size=encoder.patch_size,
            in_chans=encoder.in_chans,
            vocabulary=self.vocabulary or USUAL_VOCABULARY,
        )
        tokenizer = on_grid(found, encoder.image_size, encoder.grid)
        check_tokenizer(tokenizer, encoder.image_size, encoder.grid, self.vocabulary)
        return TokenTarget(tokenizer)


def token_loss(
    prediction: Float[Tensor, "B M K"], ids: Int[Tensor, "B M"], weight: Float[Tensor, "B M"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy with the ids, and the share of ids that the highest score names.

    Both are means over all patches of the batch together: an image with fewer hidden patches weighs less.

    Args:
        prediction: Scores of all ids; half precision is promoted to float32.
        ids: What they should name.
        weight: 0 for padding, else 1; None: nothing is padded.

    Paper: Bao et al. 2022, arXiv:2106.08254, equation 3 and section 2.3.
    """
    scores = prediction.to(torch.promote_types(prediction.dtype, torch.float32)).flatten(0, 1)
    losses = F.cross_entropy(scores, ids.flatten(), reduction="none")
    right = (scores.argmax(dim=-1) == ids.flatten()).to(losses.dtype)
    if weight is None:
        return losses.mean(), right.mean()
    counted = weight.flatten().to(losses.dtype)
    return (losses * counted).sum() / counted.sum(), (right * counted).sum() / counted.sum()
