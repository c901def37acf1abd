"""What several processes that share a batch tell each other: sums with gradients, and rows without."""

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


def total(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum over all processes; the gradient is that of the sum of their losses."""
    if num_processes() == 1:
        return value
    from torch.distributed.nn.functional import all_reduce  # late: not every build of torch has it

    return all_reduce(value)


@torch.no_grad()
def rows_of_all(rows: Float[Tensor, "B K"]) -> Float[Tensor, "G K"]:
    """The rows of all processes, in their order, without gradient; each has as many."""
    if num_processes() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
