from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import is_main_process, say
from pantomim.cli.finetune import TaskOptions
from pantomim.cli.pretrain import in_words, say_complete
from pantomim.cli.run_options import read_run


@dataclass(frozen=True)
class SegmentOptions(TaskOptions):
    """What decides the training of a segmenter from an encoder; each setting of its config is a further option.

    Args:
        masks: Which masks: a folder beside the images, or an array of the .npz; by default the only one.
        ignore: The value in masks of pixels that have no class.
        reduce_zero: Whether 0 is no class either, and the others count from 1; by default in ADE20K alone.
        head: What stands on the encoder: upernet, linear, or dpt.
        frozen: Train the head alone.
    """

    masks: str | None = None
    ignore: int = 255
    reduce_zero: bool | None = None
    head: Literal["upernet", "linear", "dpt"] | None = None
    frozen: bool = False

    trains: ClassVar[Literal["classifier", "segmenter"]] = "segmenter"
    recipes: ClassVar[str] = "segment"

    @property
    def subset(self) -> dict[str, Any]:
        """Settings of the data: which masks."""
        from pantomim.config import MaskConfig

        return super().subset | {"masks": MaskConfig(self.masks, self.ignore, self.reduce_zero)}

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
    chosen, prepared, _ = read_run(line, SegmentOptions)
    out = chosen.folder
    from pantomim.engine.pretrain import pretrain as run

    finished = run(prepared.config, out)
    if not is_main_process():
        return
    say_complete(out, finished.already)
    say(f"{in_words(finished)}.\nSegmenter: {out / 'segmenter.safetensors'}")
