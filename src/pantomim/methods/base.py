"""What the engine knows of a method: five verbs that each has, and three that most leave as they are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.core.spread import COLLAPSED as NO_SPREAD
from pantomim.masking.base import Masker
from pantomim.nn.momentum import EMACopy
from pantomim.nn.vit import EncoderConfig
from pantomim.teachers.base import Guidance

FEW_PATCHES, FEW_VISIBLE = 16, 4  # fewer than these in an image are warned of
FEW_IMAGES = 12  # training images below which a run is warned of. Ours
# The least of logged values; the first as in fairseq's data2vec, the others ours
COLLAPSED = {"target_std": 0.1, "feature_std": 0.02, "student_std": 0.05, "held_out_std": NO_SPREAD}
COLLAPSED_RANK = 1.5  # of `held_out_rankme`: nearly all is one direction. Ours


@dataclass(frozen=True)
class Draws:
    """All that is random in a step of a method that draws masks alone."""

    mask: Mask
    guidance: Guidance | None = None  # of a teacher that was asked for the mask, so that it is asked once


@dataclass(frozen=True)
class Requirements:
    """The images that a method is trained on, as plain data."""

    in_chans: int
    image_size: tuple[int, int]
    patch_size: int
    channels_setting: str = "method.encoder.in_chans"  # where a config has the channels
    patch_setting: str = "method.encoder.patch_size"
    views: int = 1  # of each image; with 2, `Batch.second` is there
    whole_batch: bool = False  # an image's loss depends on the other images of its step, so that these come at once
    gathers: bool = False  # processes talk to each other within the forward pass
    num_classes: int | None = None  # that labels must have; None: it needs no labels
    even: bool = False  # images are mixed in pairs, so that each process and micro-batch needs an even number
    test_margin: float = 1.0  # the shorter side of a held-out image over that of its centre, which is looked at
    masks: bool = False  # a class for every pixel is learned; held-out images come whole

    @classmethod
    def of(cls, encoder: EncoderConfig, **others: Any) -> "Requirements":
        """Those of an encoder."""
        return cls(encoder.in_chans, encoder.image_size, encoder.patch_size, **others)


class Method(nn.Module, ABC):
    """A pre-training method: all that is random in `draw`, all that is learned in `forward`.

    The two are apart so that `forward` has no generator and no changing Python number: it compiles whole with static
    shapes, it repeats exactly, and a test can inject its own draws.
    """

    requirements: Requirements  # set in `__init__`
    exports_decoder = False  # whole, for pictures and for continuing to train

    @abstractmethod
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> Any:
        """Draw all that is random, masks included; eager, without gradient.

        Draws are made for the global batch and cut to this batch's rows, so that another number of processes gives the
        same draws.
        """

    @abstractmethod
    def forward(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """Tensors in, tensors out: "loss" is minimised, everything else is logged."""

    @property
    def asked(self) -> tuple[nn.Module, ...]:
        """Networks that `draw` asks, which are compiled as `forward` is; here the guide of the masks, if any."""
        guide = getattr(getattr(self, "guide", None), "teacher", None)
        return () if guide is None else (guide,)

    def update_ema(self, step: int) -> None:
        """Called once after each optimiser step: every EMA copy in the method moves towards what it copies."""
        for part in self.modules():
            if isinstance(part, EMACopy):
                part.update_ema(self, step)

    def exports(self) -> dict[str, Any]:
        """What outlives the run: "encoder", and beside it "decoder", a module, or "predictor", parameters by name.

        The predictor is all that is trained beside the encoder; a method without an encoder has "tokenizer" alone.
        """
        if self.exports_decoder:
            return {"encoder": self.encoder, "decoder": self.decoder}
        named = self.named_parameters()
        beside = {name: weight for name, weight in named if weight.requires_grad and not name.startswith("encoder.")}
        return {"encoder": self.encoder, "predictor": beside}

    def reset(self) -> None:
        """Called once other weights have been put in place before the first step: EMA copies are copied anew."""
        for part in self.modules():
            if isinstance(part, EMACopy):
                part.reset(self)

    def check_data(self, batches: Iterable[Tensor]) -> str | None:
        """A warning to print before the first step, having seen some training images; None: nothing is wrong."""
        check = getattr(getattr(self, "target", None), "check_data", None)
        return None if check is None else check(batches)

    def warning(self, logged: Mapping[str, float | None]) -> str | None:
        """What is wrong with a run, judged by a logged step; it is printed once. None: nothing is.

        Here: that the features to be predicted, or those of an image, are nearly the same everywhere.
        """
        collapsed = None
        for name, least in COLLAPSED.items():
            if (value := logged.get(name)) is not None and value < least:
                collapsed = f"they differ by less than {least:g} of their size ({name})"
        if (rank := logged.get("held_out_rankme")) is not None and rank < COLLAPSED_RANK and collapsed is None:
            collapsed = f"their effective rank is below {COLLAPSED_RANK} (held_out_rankme)"
        advice = "Lower optim.base_lr, lengthen the warm-up, or choose another teacher or a momentum nearer to 1."
        return None if collapsed is None else f"features have collapsed: {collapsed}. {advice}"


def few_images(count: int) -> str | None:
    """A warning where there are too few images to learn anything of others; None: there are enough."""
    if count >= FEW_IMAGES:
        return None
    return f"the run learns from {count} images alone, and will know little of others. Give more, without labels, too."


def few_patches(config: Any) -> str | None:
    """A warning where the encoder of a method's config has too few patches to learn from; None: it has enough."""
    encoder, masker = getattr(config, "encoder", None), getattr(config, "masker", None)
    if not isinstance(encoder, EncoderConfig):
        return None
    (rows, cols), side = encoder.grid, encoder.patch_size
    masked = 0 if masker is None or masker.varies else masker.num_masked(encoder.grid)
    if rows * cols >= FEW_PATCHES and rows * cols - masked >= FEW_VISIBLE:
        return None
    fitting = [size for size in range(1, side) if not any(length % size for length in config.encoder.image_size)]
    smaller = max((size for size in fitting if rows * cols * (side / size) ** 2 >= FEW_PATCHES), default=1)
    return (
        f"the encoder has few patches: {rows} x {cols} of {side} pixels, of which {rows * cols - masked} are visible. "
        f"Choose larger images (method.encoder.image_size {8 * side} {8 * side}: small ones are enlarged), smaller "
        f"patches (method.encoder.patch_size {smaller}: that of weights to start from is resampled) or mask "
        f"less."
    )


def check_masker(owner: str, masker: Masker, encoder: EncoderConfig) -> None:
    """Raise a ValueError unless a masker masks the same number of patches in every image of an encoder's grid."""
    masker.num_masked(encoder.grid)
    if masker.varies:
        raise ValueError(
            f"{owner}.masker must mask the same number of patches in every image, as the encoder takes the visible "
            f"ones as one tensor; got {masker.kind}, whose number varies. Set exact."  # type: ignore[attr-defined]
        )
