"""What the engine knows of a method: it draws, it goes forward, it is told when a step is over."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.nn.vit import Encoder
from pantomim.targets.base import Target


@dataclass(frozen=True)
class Requirements:
    """The images that a method takes.

    Args:
        in_chans: Channels.
        image_size: Height and width.
        cell: Pixels that become one token, along each side.
        setting: Name of the setting of the channels.
        option: The same in a command.
        cell_setting: Name of the setting of the cell.
        cell_option: The same in a command.
        views: How many views of each image; with 2, `Batch.second` is there.
        whole_batch: An image's loss depends on the other images of its step, so that these come at once.
        gathers: Processes talk to each other within the forward pass.
        num_classes: Classes that labels must have; None: it needs no labels.
    """

    in_chans: int
    image_size: tuple[int, int]
    cell: int
    setting: str = "EncoderConfig.in_chans"
    option: str = "--method.encoder.in_chans"
    cell_setting: str = "EncoderConfig.patch_size"
    cell_option: str = "--method.encoder.patch_size"
    views: int = 1
    whole_batch: bool = False
    gathers: bool = False
    num_classes: int | None = None


class Method(nn.Module, ABC):
    """A pre-training method: all that is random in `draw`, all that is learned in `forward`.

    The two are apart so that `forward` has no generator and no changing Python number: it compiles whole with static
    shapes, it repeats exactly, and a test can inject its own draws.
    """

    @abstractmethod
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Any:
        """Draw all that is random, masks included; eager, without gradient.

        Draws are made for the global batch and cut to this batch's rows, so that another number of processes gives the
        same draws.
        """

    @abstractmethod
    def forward(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """Tensors in, tensors out: "loss" is minimised, everything else is logged."""

    def check_data(self, batches: Iterable[Tensor]) -> str | None:
        """What to say before the first step, having seen some training images; None: nothing."""
        target = getattr(self, "target", None)
        return target.check_data(batches) if isinstance(target, Target) else None

    def begin(self, steps: int) -> None:
        """Called once before the loop, also of a run that goes on: the steps of the whole run, for schedules."""

    def warning(self, logged: Mapping[str, float | None]) -> str | None:
        """What is wrong with a run, judged by a logged step; it is said once. None: nothing."""

    def update_ema(self, step: int) -> None:
        """Called once after each optimiser step: moving averages and the like."""

    def reset(self) -> None:
        """Called once other weights have been put in place before the first step: copies follow them."""

    def predictor(self) -> dict[str, nn.Parameter]:
        """What is learned beside the encoder, by name: with it a run can be looked at, and gone on from."""
        named = self.named_parameters()
        return {name: weight for name, weight in named if weight.requires_grad and not name.startswith("encoder.")}

    @abstractmethod
    def exports(self) -> dict[str, nn.Module]:
        """What outlives the run, by name: "encoder", "decoder", or a "tokenizer" alone."""

    def requirements(self) -> Requirements:
        """The images that it is trained on; those of its encoder, unless a method without one says otherwise."""
        encoder = self.exports()["encoder"]
        assert isinstance(encoder, Encoder)
        return Requirements(encoder.in_chans, encoder.image_size, encoder.patch_size)
