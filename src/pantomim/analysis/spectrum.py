"""How few directions an image's patch tokens lie in: the share of the largest singular values, block by block."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.analysis.block_facts import BlockFacts
from pantomim.analysis.blocks import block_features
from pantomim.analysis.inspection import LayerMeans
from pantomim.core.frozen import frozen
from pantomim.evaluate.features import AnyEncoder


@frozen
class Spectrum(LayerMeans):
    """Singular values of an image's patch tokens after each block: in how few directions they lie."""

    name: ClassVar[str] = "spectrum"
    title: ClassVar[str] = "Spectrum of patch tokens"
    chart: ClassVar[str] = "shares"
    drawn: ClassVar[tuple[str, ...]] = ("shares",)
    told: ClassVar[str] = "share of the k largest, k = 1 ... 5"
    explained: ClassVar[str] = (
        "The share of the k largest singular values in the sum of all, of an image's patch tokens after each block, "
        "each divided by its length; 1 where all tokens point one way. {images}"
    )

    def sums(self, encoder: AnyEncoder, images: Tensor) -> dict[str, Tensor]:
        """`shares` (layers, 5) of the k largest singular values, k = 1 ... 5."""
        blocks = block_features(encoder, images)
        return {"shares": torch.stack([concentration(block.patches).sum(dim=0) for block in blocks])}

    @staticmethod
    def finding(found: BlockFacts) -> str:
        """What the largest singular value has after the first block and after the last."""
        shares = [found.of("shares", number)[:, 0] for number in range(len(found.names))]
        return " ".join(
            f"The largest singular value of the tokens of {name} has {100 * share[0]:.0f} % of the sum after the first "
            f"block and {100 * share[-1]:.0f} % after the last."
            for name, share in zip(found.names, shares, strict=True)
        )

    @staticmethod
    def cell(found: BlockFacts, number: int, layer: int) -> str:
        """P_1 ... P_5."""
        return "  ".join(f"{share:.3f}" for share in found.of("shares", number)[layer])


def concentration(tokens: Float[Tensor, "B N D"], most: int = 5) -> Float[Tensor, "B {most}"]:
    """The k largest singular values over all of them, k = 1 ... `most`; of singular values, not of their squares.

    Of patch tokens before the final norm, each divided by its length; the mean is not subtracted. In float64. Of fewer
    than k singular values the share is 1.

    Paper: dBOT, arXiv:2209.03917, as in its authors' `analysis/analysis.py`.
    Deviation: none known. The figure speaks of weights too; the authors' tool takes the tokens, as here.
    """
    unit = F.normalize(tokens.double(), dim=-1)
    values = torch.linalg.svdvals(unit)  # (B, min(N, D)), falling
    shares = values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True)
    return F.pad(shares, (0, max(0, most - shares.shape[-1])), value=1.0)[:, :most]
