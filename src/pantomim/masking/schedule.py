"""Change the way of hiding during training, from one epoch on to the next way."""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.frozen import KIND, frozen
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.block import BlockMasker
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.grid import GridMasker
from pantomim.masking.inverse_block import InverseBlockMasker
from pantomim.masking.mask import Mask
from pantomim.masking.random import RandomMasker

Single = RandomMasker | BlockMasker | GridMasker | InverseBlockMasker | ColorNoiseMasker | AttentionMasker


@frozen
class Stage:
    """A masker, and the epoch from which on it is used.

    Args:
        masker: Any but a schedule.
        from_epoch: Counted from 0, in fractions too.
    """

    masker: Annotated[Single, KIND]
    from_epoch: float = 0.0


@frozen
class ScheduleMasker:
    """Several maskers one after another; in each epoch the last stage that has begun.

    Args:
        stages: At least one, in the order of their epochs, the first from epoch 0 on.

    Raises:
        ValueError: if there is none, or the epochs do not rise from 0; or (when asked about a grid) if the stages do
            not hide the same number of patches, or only some of them have counts that vary.

    Paper: ColorMAE, arXiv:2407.13036: the authors' code can change colours by epoch (tools/epoch_manager_hook.py; in
        an example of theirs green, from 200 on blue, from 250 red, from 275 purple). No result of it is known to us.
    """

    kind: Literal["schedule"] = "schedule"
    stages: tuple[Stage, ...] = (Stage(RandomMasker()),)

    def __post_init__(self) -> None:
        starts = [stage.from_epoch for stage in self.stages]
        if not starts or starts[0] != 0 or any(not later > earlier for earlier, later in pairwise(starts)):
            raise ValueError(
                f"ScheduleMasker.stages must begin at epoch 0 and rise; got {starts or 'none'}. "
                f"Give stages of a masker and from_epoch."
            )
        if len({stage.masker.varies for stage in self.stages}) > 1:
            raise ValueError(
                "ScheduleMasker.stages must all have exact counts or all have counts that vary; got both. "
                "Set exact on the block masker."
            )

    @property
    def varies(self) -> bool:
        """See `Masker.varies`."""
        return self.stages[0].masker.varies

    @property
    def guided(self) -> bool:
        """See `Masker.guided`."""
        return any(stage.masker.guided for stage in self.stages)

    def num_masked(self, grid: tuple[int, int]) -> int:
        """See `Masker.num_masked`."""
        counts = [stage.masker.num_masked(grid) for stage in self.stages]
        if len(set(counts)) > 1:
            raise ValueError(
                f"ScheduleMasker.stages must all hide the same number of patches; got {counts} on a grid of "
                f"{grid[0]} x {grid[1]}. Give them the same ratio."
            )
        return counts[0]

    def __call__(
        self,
        batch_size: int,
        grid: tuple[int, int],
        generator: torch.Generator,
        epoch: float = 0.0,
        attention: Float[Tensor, "B N"] | None = None,
    ) -> Mask:
        """See `Masker.__call__`."""
        masker = [stage.masker for stage in self.stages if stage.from_epoch <= epoch][-1]
        return masker(batch_size, grid, generator, epoch, attention)
