"""What several processes that share a batch tell each other: sums with gradients, and rows without."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def num_processes() -> int:
    """Processes that train together; 1 where there is this one alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first_row(rows: int) -> int:
    """Where this process's rows begin among those of all, of which each has so many."""
    return dist.get_rank() * rows if num_processes() > 1 else 0


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)  # every process's loss depends on this process's summand
        return gradient


def total(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum over all processes; the gradient is that of the sum of their losses."""
    return value if num_processes() == 1 else _Total.apply(value)


@torch.no_grad()
def rows_of_all(rows: Float[Tensor, "B K"]) -> Float[Tensor, "G K"]:
    """The rows of all processes, in their order, without gradient; each has as many."""
    if num_processes() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
