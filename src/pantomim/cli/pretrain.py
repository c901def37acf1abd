import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import is_main_process, progress, say, section
from pantomim.cli.run_options import RunOptions, read_run

if TYPE_CHECKING:
    from pantomim.config import Stages
    from pantomim.engine.folder import Finished


@dataclass(frozen=True)
class PretrainOptions(RunOptions):
    """What decides a run of pre-training; each setting of its config is a further option."""

    # Start from these weights: a run folder, a file, timm:NAME or hf:NAME; docs/import.md has all
    init: str | None = None
    # What is predicted, where the method leaves the choice, such as tokens, pixels or features
    target: str | None = None
    # What gives the tokens: a run of `pantomim tokenizer train`, its tokenizer.safetensors, dalle:FILE, dalle:FOLDER,
    # random-projection or random-projection-standardised (also :SEED)
    tokenizer: str | None = None
    # A chain of so many runs in one folder, each the teacher of the next; steps and epochs are those of one
    stages: int | None = None
    # How each stage but the first begins: full (a new student and optimiser), reference (as dBOT's authors' code, which
    # keeps the bias of the patch projection and AdamW's moments), none (the student keeps its weights)
    reinit: str | None = None
    evaluate: str | None = None  # Labelled images on which each stage is scored, with k-NN and a linear classifier


def pretrain(line: CommandLine) -> None:
    """Pre-train an encoder: pantomim pretrain RECIPE --data SRC --out RUN [--steps N] [--any.setting value]."""
    chosen, prepared, _ = read_run(line, PretrainOptions)
    out = chosen.folder
    if prepared.chain is not None:
        _pretrain_stages(prepared.chain, out)
        return
    from pantomim.engine.pretrain import pretrain as run

    finished = run(prepared.config, out)
    if is_main_process():
        say_complete(out, finished.already)
        say(f"{in_words(finished)}.\nEncoder: {out / 'encoder.safetensors'}")


def say_complete(out: Path, already: bool) -> None:
    """Say that nothing was trained, where that is so."""
    if already:
        say(f"{out} is complete and was left as it is. Another --out starts afresh.")


def in_words(finished: "Finished") -> str:
    """Steps, time, speed and loss of a run."""
    speed = f" at {finished.images_per_s:,.0f} images/s" if finished.images_per_s else ""
    loss = "" if finished.loss is None else f", last loss {finished.loss:.4f}"
    return f"{finished.steps:,} steps in {finished.wall_s:,.0f} s{speed}{loss}"


def _pretrain_stages(chain: "Stages", out: Path) -> None:
    from pantomim.study.stages import run_stages

    finished = run_stages(chain, out, progress if is_main_process() else lambda text: None)
    if is_main_process():
        say_complete(out, all(stage.already for stage in finished))
        section("Stages", [(f"stage {number}", in_words(stage)) for number, stage in enumerate(finished)])
        page = f"`pantomim report {shlex.quote(str(out))}` makes one page of all stages."
        say(f"\nEncoder of the last stage: {out / 'encoder.safetensors'}. {page}")
