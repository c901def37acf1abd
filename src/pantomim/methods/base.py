"""What the engine knows of a method: five verbs that each has, and three that most leave as they are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.masking.base import Masker
from pantomim.nn.momentum import EMACopy
from pantomim.nn.vit import EncoderConfig


@dataclass(frozen=True)
class Draws:
    """All that is random in a step of a method that masks and draws nothing else."""

    mask: Mask


@dataclass(frozen=True)
class Requirements:
    """The images that a method is trained on, as plain data.

    Args:
        in_chans: Channels.
        image_size: Height and width.
        patch_size: Pixels that become one token, along each side.
        channels_setting: Where a config says the channels.
        patch_setting: Where a config says the patch size.
        views: How many views of each image; with 2, `Batch.second` is there.
        whole_batch: An image's loss depends on the other images of its step, so that these come at once.
        gathers: Processes talk to each other within the forward pass.
        num_classes: Classes that labels must have; None: it needs no labels.
    """

    in_chans: int
    image_size: tuple[int, int]
    patch_size: int
    channels_setting: str = "method.encoder.in_chans"
    patch_setting: str = "method.encoder.patch_size"
    views: int = 1
    whole_batch: bool = False
    gathers: bool = False
    num_classes: int | None = None

    @classmethod
    def of(cls, encoder: EncoderConfig, **others: Any) -> "Requirements":
        """Images of an encoder's channels, size and patches."""
        return cls(encoder.in_chans, encoder.image_size, encoder.patch_size, **others)


class Method(nn.Module, ABC):
    """A pre-training method: all that is random in `draw`, all that is learned in `forward`.

    The two are apart so that `forward` has no generator and no changing Python number: it compiles whole with static
    shapes, it repeats exactly, and a test can inject its own draws.

    Args:
        requirements: The images that it is trained on; set in `__init__`.
    """

    requirements: Requirements

    @abstractmethod
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Any:
        """Draw all that is random, masks included; eager, without gradient.

        Draws are made for the global batch and cut to this batch's rows, so that another number of processes gives the
        same draws.
        """

    @abstractmethod
    def forward(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """Tensors in, tensors out: "loss" is minimised, everything else is logged."""

    def update_ema(self, step: int) -> None:
        """Called once after each optimiser step: every EMA copy in the method moves towards what it copies."""
        for copy in self._copies():
            copy.update_ema(self, step)

    def exports(self) -> dict[str, Any]:
        """What outlives the run, by name.

        "encoder", and beside it "decoder", a module that is saved whole, or "predictor", the parameters that are
        trained beside the encoder, by name; of a method without an encoder "tokenizer" alone.
        """
        named = self.named_parameters()
        beside = {name: weight for name, weight in named if weight.requires_grad and not name.startswith("encoder.")}
        return {"encoder": self.encoder, "predictor": beside}

    def reset(self) -> None:
        """Called once other weights have been put in place before the first step: EMA copies are copied anew."""
        for copy in self._copies():
            copy.reset(self)

    def check_data(self, batches: Iterable[Tensor]) -> str | None:
        """A warning to print before the first step, having seen some training images; None: nothing is wrong."""
        check = getattr(getattr(self, "target", None), "check_data", None)
        return None if check is None else check(batches)

    def warning(self, logged: Mapping[str, float | None]) -> str | None:
        """What is wrong with a run, judged by a logged step; it is printed once. None: nothing is."""
        return None

    def _copies(self) -> Iterator[EMACopy]:
        return (part for part in self.modules() if isinstance(part, EMACopy))


def check_masker(owner: str, masker: Masker, encoder: EncoderConfig) -> None:
    """See that a masker masks the same number of patches in every image of an encoder's grid.

    Raises:
        ValueError: if it does not, or cannot draw masks of this grid.
    """
    masker.num_masked(encoder.grid)
    if masker.varies:
        raise ValueError(
            f"{owner}.masker must mask the same number of patches in every image, as the encoder takes the visible "
            f"ones as one tensor; got {masker.kind}, whose number varies. Set exact."  # type: ignore[attr-defined]
        )
