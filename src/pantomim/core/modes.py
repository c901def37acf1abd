"""Modules in evaluation mode, and modules whose initial weights nobody will see."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

import torch
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


def initial_weights_unused() -> AbstractContextManager[None]:
    """Build modules within: their initial weights are overwritten, so they may not change anybody's draws."""
    return torch.random.fork_rng(devices=[])


class Evaluated(nn.Module):
    """A module that is in evaluation mode always, whatever it is part of."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)
