"""How much of its vocabulary a tokenizer uses, and how well it remembers an image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.tokenizers.base import Tokenizer
from pantomim.tokenizers.dvae import DVAETokenizer

COLLAPSED = 0.01  # of the vocabulary: where the perplexity is below this share, or below 2 codes, labels say nothing
# Rules of ours, laxer than what is wished for: a perplexity of a fifth of the codes, no code in a tenth of the cells.
FEW = 0.1  # of the vocabulary, of which no more than MANY codes count
MANY = 2048
DOMINANT = 0.5  # share of the cells that have the same code


@dataclass(frozen=True)
class CodeUsage:
    """How often each code occurs, summed up."""

    vocabulary: int
    positions: int  # cells counted
    used: int  # codes that occur at all
    perplexity: float  # codes that occur, weighted: the exponential of the entropy, from 1 to `vocabulary`
    top: float  # share of the cells that have the most frequent code

    @property
    def collapsed(self) -> bool:
        """Nearly all cells have the same few codes, so that predicting them is no task."""
        return self.perplexity < max(2.0, COLLAPSED * min(self.vocabulary, self.positions))

    @property
    def few(self) -> bool:
        """Few codes do all the work, or one has most of the cells; also where it is `collapsed`."""
        enough = FEW * min(self.vocabulary, self.positions, MANY)
        return self.collapsed or self.perplexity < enough or self.top > DOMINANT

    def __str__(self) -> str:
        return (
            f"{self.used} of {self.vocabulary} codes used, perplexity {self.perplexity:.1f}, the most frequent one in "
            f"{self.top:.1%} of {self.positions} cells"
        )


def count_codes(ids: Int[Tensor, "B N"], vocabulary: int) -> Float[Tensor, " K"]:
    """How often each code occurs, in float64 (exact up to 2^53)."""
    return torch.bincount(ids.flatten(), minlength=vocabulary).double()


def code_usage(counts: Float[Tensor, " K"]) -> CodeUsage:
    """The usage that counts of all codes amount to; a ValueError, if nothing was counted."""
    total = counts.sum().item()
    if not total:
        raise ValueError("code_usage.counts must hold at least one code; got none. Give images.")
    shares = counts / total
    perplexity = torch.special.entr(shares).sum().exp().item()
    return CodeUsage(len(counts), int(total), int((counts > 0).sum()), perplexity, shares.max().item())


def usage_warning(usage: CodeUsage, owner: str) -> str | None:
    """What is wrong with a codebook of which little is used; None if enough is."""
    advice = "train the tokenizer longer, with fewer codes or another weight of the KL term"
    if usage.collapsed:
        return (
            f"{owner} must spread images over its codes; got {usage}. A model trained on such ids learns little: "
            f"{advice}."
        )
    if usage.few:
        return (
            f"{owner} uses few codes: {usage}. Such ids may say little of an image, which we have not measured. To use "
            f"more, {advice}."
        )
    return None


@dataclass(frozen=True)
class TokenizerReport:
    """What a tokenizer does on images that it was not trained on; None, where it has no decoder."""

    usage: CodeUsage
    mse: float | None = None  # mean squared error of images decoded from ids, pixels in [0, 1]
    mse_of_means: float | None = None  # the same of each cell's mean colour, to beat


@torch.no_grad()
def measure_tokenizer(tokenizer: Tokenizer, batches: Iterable[Tensor]) -> TokenizerReport:
    """Usage of the codes and, with a decoder, the error of reconstructions from hard ids.

    `batches` are (B, C, H, W) in [0, 1], of the size that the tokenizer sees; B may vary.
    """
    counts = torch.zeros(tokenizer.vocabulary, dtype=torch.float64)
    error, error_of_means, values = 0.0, 0.0, 0
    for images in batches:
        ids = tokenizer(images)
        counts += count_codes(ids, tokenizer.vocabulary).cpu()
        if isinstance(tokenizer, DVAETokenizer) and tokenizer.decoder is not None:
            grid, cell = tokenizer.grid_of((images.shape[2], images.shape[3])), tokenizer.stride
            error += F.mse_loss(tokenizer.decode(ids, grid), images, reduction="sum").item()
            means = F.avg_pool2d(images, cell).repeat_interleave(cell, 2).repeat_interleave(cell, 3)
            error_of_means += F.mse_loss(means, images, reduction="sum").item()
            values += images.numel()
    usage = code_usage(counts)
    return TokenizerReport(usage, error / values, error_of_means / values) if values else TokenizerReport(usage)
