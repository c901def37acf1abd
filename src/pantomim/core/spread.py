"""What features of many images tell without labels: how far they spread, over how many directions, and how evenly."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

COLLAPSED = 0.01  # `relative_std` below which an encoder gives nearly the same features for all images. Ours


def effective_rank(features: Float[Tensor, "n D"]) -> float:
    """RankMe: exp of the entropy of the singular values' shares, from 1 to the smaller of n and D.

    Paper: Garrido et al. 2023, arXiv:2210.02885, equations 1 and 2, with its epsilon of 1e-7; features as they are,
    not centred.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + 1e-7
    return float(torch.special.entr(shares).sum().exp())


def relative_std(features: Float[Tensor, "n D"]) -> float:
    """Std over images (root of the mean variance of a dimension) over the root mean square: 0 is collapse."""
    return float((features.var(dim=0, correction=0).mean() / features.square().mean()).sqrt())


def alignment(one: Float[Tensor, "n D"], other: Float[Tensor, "n D"]) -> float:
    """Mean squared distance of two views on the unit sphere (Wang and Isola 2020, arXiv:2005.10242, 4.1, alpha 2)."""
    return float((F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(dim=1).mean())


def uniformity(features: Float[Tensor, "n D"]) -> float:
    """Log of the mean Gaussian potential of all pairs on the unit sphere, lower is more even (the same, 4.1, t 2)."""
    return float(torch.pdist(F.normalize(features, dim=1)).square().mul(-2).exp().mean().log())
