import shlex
from typing import TYPE_CHECKING

from pantomim import verbs
from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import say, section
from pantomim.cli.run_options import read_run
from pantomim.core.machine import is_main_process

if TYPE_CHECKING:
    from pathlib import Path

    from pantomim.engine.folder import Finished


def pretrain(line: CommandLine) -> None:
    """Pre-train an encoder: pantomim pretrain RECIPE --data SRC --out RUN [--steps N] [--any.setting value].

    Examples:
        pantomim pretrain RECIPE --data my_photos/ --out runs/first
        pantomim pretrain RECIPE --data my_photos/ --out runs/quick --size micro --steps 500
        pantomim pretrain RECIPE --data my_photos/ --out runs/slow --optim.base-lr 1e-4 --batch-size 64
    """
    run = verbs.pretrain(**read_run(line, verbs.pretrain)[0])
    if not is_main_process():
        return
    say_complete(run.out, all(stage.already for stage in run.stages or (run.finished,)))
    encoder = run.out / "encoder.safetensors"
    if run.stages:
        section("Stages", [(f"stage {number}", in_words(stage)) for number, stage in enumerate(run.stages)])
        page = f"`pantomim report {shlex.quote(str(run.out))}` makes one page of all stages."
        say(f"\nEncoder of the last stage: {encoder}. {page}")
    else:
        say(f"{in_words(run.finished)}.\nEncoder: {encoder}")


def say_complete(out: "Path", already: bool) -> None:
    """Say that nothing was trained, where that is so."""
    if already:
        say(f"{out} is complete and was left as it is. Another --out starts afresh.")


def in_words(finished: "Finished") -> str:
    """Steps, time, speed and loss of a run."""
    speed = f" at {finished.images_per_s:,.0f} images/s" if finished.images_per_s else ""
    loss = "" if finished.loss is None else f", last loss {finished.loss:.4f}"
    return f"{finished.steps:,} steps in {finished.wall_s:,.0f} s{speed}{loss}"
