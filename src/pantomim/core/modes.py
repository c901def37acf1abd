"""Training and evaluation mode of modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, for as long as this lasts."""
    before = module.training
    module.train(False)
    try:
        yield
    finally:
        module.train(before)


class Evaluated(nn.Module):
    """A module that is in evaluation mode always, whatever it is part of."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)
