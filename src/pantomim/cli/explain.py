from pathlib import Path
from typing import Any

from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import CONSOLE, section, warn
from pantomim.cli.pretrain import PretrainOptions
from pantomim.cli.run_options import read_run


class ExplainOptions(PretrainOptions):
    """What decides a run, of pre-training or of a task; each setting of its config is a further option."""

    @property
    def choices(self) -> dict[str, Any]:
        """Also what a recipe trains, of any kind but a tokenizer; `init` is what a task starts from."""
        from pantomim.config import MaskConfig
        from pantomim.recipes import trained_by

        found = trained_by(self.name)
        masks = {"masks": MaskConfig()} if found == "segmenter" else {}
        trains = found if found in ("classifier", "segmenter") else "encoder"
        return super().choices | {"trains": trains, "subset": masks}


def explain(line: CommandLine) -> None:
    """Print what a run would be: pantomim explain RECIPE [--data SRC] [--any.setting value]; costs nothing."""
    chosen, prepared, _ = read_run(line, ExplainOptions)
    import torch
    from rich.text import Text

    from pantomim import explain as explanation
    from pantomim.engine.runtime import compute_dtype
    from pantomim.methods.base import few_patches

    config = prepared.config
    on_gpu = config.runtime.device == "cuda" or (config.runtime.device == "auto" and torch.cuda.is_available())
    dtype = compute_dtype(config.runtime, torch.device("cuda" if on_gpu else "cpu"))
    CONSOLE.print(Text.assemble((config.recipe, "bold"), ": ", prepared.summary))
    if (few := few_patches(config.method)) is not None:
        warn(line.in_options(few))
    if prepared.decided:
        section("Decided from the data", prepared.decided)
    if prepared.chain is not None:
        from pantomim.study.stages import describe_stages

        section("Stages", describe_stages(prepared.chain, chosen.out or Path("RUN")))
    for title, rows in explanation.explain(config, prepared.paper, dtype, prepared.notes, prepared.origins):
        section(title, rows)
