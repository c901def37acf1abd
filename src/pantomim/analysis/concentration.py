"""How few directions an image's patch tokens lie in: the share of the largest singular values."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def concentration(tokens: Float[Tensor, "B N D"], most: int = 5) -> Float[Tensor, "B {most}"]:
    """The k largest singular values over all of them, k = 1 ... `most`; of singular values, not of their squares.

    Each token is divided by its length first; the mean is not subtracted. In float64. Of fewer than k singular values
    the share is 1.

    Args:
        tokens: Patch tokens of each image, without prefix tokens, before the final norm.
        most: The largest k.

    Paper: dBOT, arXiv:2209.03917, as in its authors' `analysis/analysis.py`.
    Deviation: none known. The figure speaks of weights too; the authors' tool takes the tokens, as here.
    """
    unit = F.normalize(tokens.double(), dim=-1)
    values = torch.linalg.svdvals(unit)  # (B, min(N, D)), falling
    shares = values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True)
    return F.pad(shares, (0, max(0, most - shares.shape[-1])), value=1.0)[:, :most]
