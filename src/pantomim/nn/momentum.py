"""Moving averages of weights (EMA): how much of itself a copy keeps at each step, and the step itself."""

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import nn

from pantomim.core.frozen import frozen
from pantomim.core.modes import Evaluated
from pantomim.core.ranges import AtLeastOne, Share
from pantomim.core.schedule import half_cosine
from pantomim.nn.lora import merged_parameters


@frozen
class Momentum:
    """The share of itself that a moving average keeps at each step: one number, or one that rises while training.

    The average after optimiser step t (from 0) of T keeps `at(t + 1, T)`: a schedule begins at `start` before the first
    step, when the copy still equals what it follows, and ends at `end` after the last.

    Paper: the half cosine to 1 is that of MoCo v3 (arXiv:2104.02057, section 4) and of BYOL (arXiv:2006.07733).
    """

    start: Share = 0.996  # First share; 0 copies, 1 never moves
    end: Share | None = None  # Last share; None: always the first
    shape: Literal["cosine", "linear"] = "cosine"  # How it gets from one to the other: along half a cosine, or evenly
    steps: AtLeastOne | None = None  # Optimiser steps that this takes, after which it stays; None: the whole run

    def __post_init__(self) -> None:
        if self.steps is not None and self.end is None:
            raise ValueError(f"Momentum.steps goes with an end; got {self.steps} without one. Leave it out.")

    def at(self, step: int, total: int | float | None = None) -> float:
        """The share after `step` optimiser steps of a run of `total`."""
        if self.end is None:
            return self.start
        length = self.steps if self.steps is not None else total
        if not length:
            raise ValueError(
                f"Momentum.at must be given the length of the run, over which it goes from {self.start} to {self.end}; "
                f"got {total}. Give Momentum.steps, or build the method with the length of the run."
            )
        share = min(step / length, 1.0)
        if self.shape == "linear":
            return self.start + (self.end - self.start) * share
        return half_cosine(self.start, self.end, share)


def momentum_of_half_life(steps: float) -> float:
    """The momentum with which a copy has forgotten half of itself after so many steps; ours, no paper's.

    A constant that is right for a long run freezes the copy of a short one; a share of its steps is right for both.
    """
    if not steps > 0:
        raise ValueError(f"momentum_of_half_life.steps must be above 0; got {steps}.")
    return 0.5 ** (1 / steps)


class EMACopy(ABC):
    """A module that moves with the student: `Method.update_ema` and `Method.reset` find it wherever it is."""

    @abstractmethod
    def update_ema(self, student: nn.Module, step: int) -> None:
        """Move towards the student, which is the method, after optimiser step `step`."""

    @abstractmethod
    def reset(self, student: nn.Module) -> None:
        """Begin again as the student, whose weights have been replaced."""


class EMA(nn.Module, EMACopy):
    """A copy without gradient of a part of a method, an exponential moving average of it; `of` is its name there.

    After optimiser step t (from 0) of `steps` it keeps `momentum.at(t + lead)` of itself; I-JEPA's lead is 0.
    A `lagging` average is used one step late; an `evaluating` one never drops a path, whatever the method does.
    """

    frozen = False

    def __init__(
        self,
        part: nn.Module,
        of: str,
        momentum: Momentum,
        steps: int | float | None = None,
        *,
        lagging: bool = False,
        evaluating: bool = False,
        lead: int = 1,
    ) -> None:
        super().__init__()
        self.evaluating = evaluating
        self.copy = copy.deepcopy(part).requires_grad_(False)
        self.ahead = copy.deepcopy(self.copy) if lagging else None  # the average that is used at the next step
        self.of, self.momentum, self.steps, self.lead = of, momentum, steps, lead

    def forward(self, *args: Any) -> Any:
        """As the part that it copies."""
        return self.copy(*args)

    def train(self, mode: bool = True) -> "EMA":
        """In training mode with the method, unless it is always `evaluating`."""
        return super().train(mode and not self.evaluating)

    def update_ema(self, student: nn.Module, step: int) -> None:
        """Move towards the student, after optimiser step `step`."""
        moving = self.copy
        if self.ahead is not None:
            follow(self.copy, self.ahead, 0.0)
            moving = self.ahead
        follow(moving, student.get_submodule(self.of), self.momentum.at(step + self.lead, self.steps))

    def reset(self, student: nn.Module) -> None:
        """Begin again as the student."""
        for part in (self.copy, self.ahead):
            if part is not None:
                follow(part, student.get_submodule(self.of), 0.0)


class Best(Evaluated):
    """The weights that scored best on held-out images so far: a copy, and when, how well and whose they were.

    All of it lies in parameters and buffers, so that a checkpoint has it.
    """

    frozen = False
    score: torch.Tensor
    step: torch.Tensor
    averaged: torch.Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("score", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("averaged", torch.tensor(False))

    def see(self, model: nn.Module, score: float, step: int, *, averaged: bool) -> None:
        """Keep these weights if they score higher than all before; `averaged`: they are the EMA's."""
        if score > self.score.item():
            follow(self.copy, model, 0.0, buffers=True)
            self.score.fill_(score)
            self.step.fill_(step)
            self.averaged.fill_(averaged)


@torch.no_grad()
def follow(copied: nn.Module, module: nn.Module, momentum: float, *, buffers: bool = False) -> None:
    """Move the parameters of a copy towards those of a module; it keeps the share `momentum` of itself.

    Parameters without gradient, such as a table of positions, are copied, and so are buffers if asked for. A copy has
    no LoRA: it follows the merged weights, as an average of A and one of B are no average of their product.
    """
    pairs = list(zip(copied.parameters(), merged_parameters(module), strict=True))
    if learned := [(ours, theirs) for ours, (theirs, trained) in pairs if trained]:
        torch._foreach_lerp_([ours for ours, _ in learned], [theirs for _, theirs in learned], 1 - momentum)
    fixed = [(ours, theirs) for ours, (theirs, trained) in pairs if not trained]
    stored = list(zip(copied.buffers(), module.buffers(), strict=True)) if buffers else []
    for ours, theirs in (*fixed, *stored):
        ours.copy_(theirs)
