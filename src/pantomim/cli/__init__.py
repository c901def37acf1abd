"""The command line: every option comes from a typed signature or from the config; the only place that prints."""

import os
import signal
import sys
import threading
import warnings
from contextlib import nullcontext

from pantomim.cli.command_line import Command, CommandLine, about, summary
from pantomim.cli.compare import compare
from pantomim.cli.completion import completion
from pantomim.cli.console import (
    fail,
    notes_shown,
    print_whatever_happens,
    progress,
    progress_shown,
    say,
    say_loading,
    section,
    warn,
)
from pantomim.cli.demo import demo
from pantomim.cli.docs import docs
from pantomim.cli.evaluate import evaluate
from pantomim.cli.explain import explain
from pantomim.cli.export import export
from pantomim.cli.failures import in_words, write_report
from pantomim.cli.features import features
from pantomim.cli.finetune import finetune
from pantomim.cli.help import examples_of
from pantomim.cli.import_ import import_
from pantomim.cli.inspect_ import inspect_
from pantomim.cli.masks import masks
from pantomim.cli.noise import noise
from pantomim.cli.pack import pack
from pantomim.cli.predict import predict
from pantomim.cli.pretrain import pretrain
from pantomim.cli.recipes import recipes
from pantomim.cli.report import report
from pantomim.cli.segment import segment
from pantomim.cli.stats import stats
from pantomim.cli.study import study
from pantomim.cli.tokenizer import tokenizer
from pantomim.cli.verify import verify
from pantomim.cli.watch import watch
from pantomim.core.machine import is_main_process
from pantomim.core.names import did_you_mean

# The only list, in the order of `pantomim --help`. A command imports what it works with when it is called, so that help
# waits for no model library.
_ALL: tuple[Command, ...] = (pretrain, finetune, segment, evaluate, predict, features, report, compare, watch)
_ALL += (recipes, explain, demo, export, tokenizer, stats, pack, noise, masks, inspect_, study, import_, verify)
_ALL += (docs, completion)
COMMANDS: dict[str, Command] = {command.__name__.rstrip("_"): command for command in _ALL}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; what a user can mend ends in one message and exit status 2, an interruption in 130."""
    words = sys.argv[1:] if arguments is None else arguments
    name, *rest = words or ["--help"]
    line = CommandLine(name, rest)
    if arguments is None:  # this is the whole process
        print_whatever_happens()
        warnings.showwarning = lambda message, *_: warn(line.in_options(str(message)))
        threading.excepthook = lambda ended: warn(f"{ended.thread and ended.thread.name} ended: {ended.exc_value}")
    if name in ("-h", "--help"):
        _print_overview()
        return
    if name == "--version":
        from importlib.metadata import version

        say(f"pantomim {version('pantomim')}")
        return
    if name not in COMMANDS:
        fail(f"There is no command {name}.{did_you_mean(name, COMMANDS, 'See pantomim --help.')}", 2)
    try:
        command = COMMANDS[name]
        line.about, line.examples = about(command), examples_of(command)
        if not line.asks_for_help and command is not docs:  # which needs none
            say_loading(name)
        with notes_shown(line.in_options), nullcontext() if line.asks_for_help else progress_shown(name):
            command(line)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process
        progress("Interrupted.")
        sys.exit(130)
    except Exception as error:
        _end(line, words, error)


def _end(line: CommandLine, words: list[str], error: Exception) -> None:
    if not isinstance(error, ValueError | OSError):
        from pantomim.engine.stops import Interrupted

        if isinstance(error, Interrupted):
            if is_main_process():  # all processes stop together, and one says so
                progress(str(error))
            sys.exit(130)
    if os.environ.get("PANTOMIM_TRACEBACK"):
        raise error
    if (message := in_words(error)) is not None:
        fail(line.in_options(message), 2)
    if (report := write_report(error, words)) is None:
        raise error
    fail(f"{type(error).__name__}: {error}. This should not happen; {report} has what is needed to find out why.", 1)


def _print_overview() -> None:
    say("pantomim: mask parts of images, train a vision transformer to predict them, keep the encoder.")
    section("Commands", [(name, summary(command)) for name, command in COMMANDS.items()])
    say("\npantomim COMMAND --help tells more. To begin: pantomim pretrain mae --data my_photos/ --out runs/first")
