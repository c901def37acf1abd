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
        say(f"\nEncoder of the last stage: {encoder}")
    else:
        say(f"{in_words(run.finished)}.\nEncoder: {encoder}")
    say_next(run.out)


def say_complete(out: "Path", already: bool) -> None:
    """Say that nothing was trained, where that is so."""
    if already:
        say(f"{out} is complete and was left as it is. Another --out starts afresh.")


def say_next(out: "Path") -> None:
    """Three lines to copy: the page of a run, its score or its predictions, and its encoder in Python."""
    from pantomim.config import Pretrain, from_yaml
    from pantomim.data.record import read_record

    config = from_yaml(Pretrain, out / "config.yaml")
    record = read_record(out) or read_record(out / "stage-0")
    if record is None or not config.data.source:  # of an earlier version
        return
    folder, data = shlex.quote(str(out)), shlex.quote(config.data.source)
    scale = "" if config.data.scale is None else f" --scale {config.data.scale:g}"
    predictions = {"classifier": "predictions.csv", "segmenter": "predictions"}
    made = next((file for kind, file in predictions.items() if (out / f"{kind}.json").is_file()), None)
    if made is not None:  # of other images: those of training lie beside masks and other splits
        second = f"pantomim predict {folder} new_photos/{scale} --out {shlex.quote(str(out / made))}"
    else:
        protocol = "label_free" if record.facts.num_classes is None else "knn"
        second = f"pantomim evaluate {protocol} --encoder {folder} --data {data}{scale}"
    third = f"import pantomim; encoder = pantomim.load({str(out)!r})  # in Python"
    say("\n  ".join(["\nNext:", f"pantomim report {folder}", second, third]))


def in_words(finished: "Finished") -> str:
    """Steps, time, speed and loss of a run."""
    speed = f" at {finished.images_per_s:,.0f} images/s" if finished.images_per_s else ""
    loss = "" if finished.loss is None else f", last loss {finished.loss:.4f}"
    return f"{finished.steps:,} steps in {finished.wall_s:,.0f} s{speed}{loss}"
