from collections.abc import Callable

from pantomim import verbs
from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import say
from pantomim.cli.pretrain import in_words, say_complete, say_next
from pantomim.cli.run_options import read_run
from pantomim.core.machine import is_main_process


def finetune(line: CommandLine) -> None:
    """Train a classifier from an encoder: pantomim finetune DATA --encoder X --out RUN [--any.setting value].

    Examples:
        pantomim finetune my_photos/ --encoder runs/first --out runs/classes
        pantomim finetune my_photos/ --encoder runs/first --out runs/few --labels-per-class 10 --compare
    """
    train_and_score(line, verbs.finetune, "classifier")


def train_and_score(line: CommandLine, verb: Callable[..., verbs.Run], trains: str) -> None:
    """Carry out a verb that trains for a task, and say what came of it."""
    run = verb(**read_run(line, verb)[0])
    if not is_main_process():
        return
    for each in filter(None, (run, run.scratch)):
        say_complete(each.out, each.finished.already)
        say(f"{in_words(each.finished)}.\n{trains.capitalize()}: {each.out / f'{trains}.safetensors'}")
    if run.scratch is not None and run.scratch.scored is not None:
        say(f"From scratch: {run.scratch.scored}")
    if run.scored is not None:
        say(str(run.scored))
    say_next(run.out)
