from dataclasses import dataclass
from typing import Any, Literal

from pantomim.cli.command_line import CommandLine
from pantomim.cli.finetune import TaskOptions, train_and_score


@dataclass(frozen=True)
class SegmentOptions(TaskOptions):
    """What decides the training of a segmenter from an encoder; each setting of its config is a further option."""

    # Which masks: a folder beside the images, or an array of the .npz; by default the only one
    masks: str | None = None
    ignore: int = 255  # The value in masks of pixels that have no class
    # Whether 0 is no class either, and the others count from 1; by default in ADE20K alone
    reduce_zero: bool | None = None
    head: Literal["upernet", "linear", "dpt"] | None = None  # What stands on the encoder: upernet, linear, or dpt
    frozen: bool = False  # Train the head alone

    trains = "segmenter"
    task = "segment"

    @property
    def subset(self) -> dict[str, Any]:
        """Settings of the data: which masks; of a file's run those of the file."""
        from pantomim.config import MaskConfig

        masks = MaskConfig(self.masks, self.ignore, self.reduce_zero)
        if self.config is None:
            return super().subset | {"masks": masks}
        if masks != MaskConfig():
            raise ValueError(
                f"prepare.masks, prepare.ignore and prepare.reduce_zero must be left out beside prepare.config, which "
                f"has its own; got {masks.name}, {masks.ignore} and {masks.reduce_zero}. Set data.masks.name, say."
            )
        return super().subset

    def prepare(self) -> Any:
        """Of a recipe for segmentation, with the head that is asked for."""
        from dataclasses import replace

        from pantomim.config import with_kind

        prepared = super().prepare()
        config = prepared.config if self.head is None else with_kind(prepared.config, "method.head", self.head)
        if self.frozen:
            depth = config.method.encoder.depth
            config = replace(config, optim=replace(config.optim, freeze_blocks=depth))
        return replace(prepared, config=config)


def segment(line: CommandLine) -> None:
    """Train a segmenter from an encoder: pantomim segment DATA --encoder X --out RUN [--any.setting value]."""
    line.options |= {"Evaluation.data": "DATA", "Segmentation.masks": "--masks", "Segmentation.ignore": "--ignore"}
    train_and_score(line, SegmentOptions)
