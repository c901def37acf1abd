"""Small networks on one vector an image, for methods that compare images: linear layers with batch norm between."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.nn.processes import num_processes, total

BATCH_NORM_EPS = 1e-5  # torch's, as in the authors' code
BATCH_NORM_SHARE = 0.1  # of a new batch in the running statistics


class BatchNorm(nn.Module):
    """Batch norm over the images of all processes; with one process that of torch, and names as there.

    In training, each channel is normalised by the whole batch's statistics, and the running ones move; in evaluation
    by the running ones.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Channel by channel."""
        if not self.training or num_processes() == 1:
            if self.training and len(vectors) < 2:
                raise ValueError("BatchNorm.vectors must be at least two in training; got 1. Use a larger batch.")
            statistics = (self.running_mean, self.running_var)
            share, eps = BATCH_NORM_SHARE, BATCH_NORM_EPS
            return F.batch_norm(vectors, *statistics, self.weight, self.bias, self.training, share, eps)
        return self._over_processes(vectors)

    def _over_processes(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """In training, with the statistics of all processes' images."""
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        number = len(vectors) * num_processes()  # each has as many
        mean = total(vectors.sum(dim=0)) / number
        centred = vectors - mean
        variance = total(centred.square().sum(dim=0)) / number
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), BATCH_NORM_SHARE)
            unbiased = (variance * number / (number - 1)).to(self.running_var.dtype)
            self.running_var.lerp_(unbiased, BATCH_NORM_SHARE)
        normed = centred * (variance + BATCH_NORM_EPS).rsqrt()
        return normed if self.weight is None or self.bias is None else normed * self.weight + self.bias


class Projector(nn.Module):
    """Linear layers without biases, each with batch norm and, but for the last, a ReLU; the last norm is not affine.

    Paper: Chen, Xie, He 2021, arXiv:2104.02057, section 4, "MLP heads": three layers for projection, two for
        prediction. No biases, no affine norm at the end, torch's initial weights: the authors' `moco/builder.py`.
    """

    def __init__(self, width: int, hidden: int, dim: int, layers: int) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"Projector.layers must be at least 1; got {layers}.")
        widths = [width, *[hidden] * (layers - 1), dim]
        self.layers = nn.ModuleList(
            nn.Linear(before, after, bias=False) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            BatchNorm(after, affine=number < layers) for number, after in enumerate(widths[1:], start=1)
        )

    def forward(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """One vector an image."""
        *between, last = zip(self.layers, self.norms, strict=True)
        for layer, norm in between:
            vectors = F.relu(norm(layer(vectors)))
        layer, norm = last
        return norm(layer(vectors))
