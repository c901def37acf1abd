from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import Positional

from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import is_main_process, say, warn
from pantomim.cli.pretrain import in_words, say_complete
from pantomim.cli.run_options import Choices, read_run

if TYPE_CHECKING:
    from pantomim.evaluate.trained import TaskEvaluation


@dataclass(frozen=True)
class TaskOptions(Choices):
    """What decides the training of an encoder for a task; each setting of its config is a further option."""

    # Images with labels (a folder with one folder a class, a zip, an .npz, a list of files with labels ...), or with
    # masks
    data: Positional[str | None] = None
    # A run folder, a file of weights, timm:NAME, hf:NAME or open_clip:NAME:TAG; docs/import.md has all
    encoder: str | None = None
    # Whose recipe; by default that of the method which the encoder was pre-trained with, else MAE's
    preset: str | None = None
    scratch: bool = False  # Train the same network without the encoder's weights
    size: str | None = None  # Of the network, where no encoder is named: from micro to huge
    images: int | None = None  # Use only so many training images, as even over the classes as these allow
    draw: int = 0  # Which draw of the images, and of those that are held out
    # Then train the same network without the encoder's weights, in OUT/scratch, and compare the scores
    compare: bool = False

    trains = "classifier"
    task: ClassVar[str] = "finetune"

    @property
    def name(self) -> str | None:
        """Of the recipe, by the preset."""
        if self.config is not None:
            return None
        from pantomim.recipes.finetune import preset_of

        return f"{self.task}_{self.preset or preset_of(self.encoder)}"

    @property
    def subset(self) -> dict[str, Any]:
        """Settings of the data, where not all of them are used."""
        names = ("fraction", "labels_per_class", "images", "draw")
        return {name: value for name in names if (value := getattr(self, name, None)) not in (None, 0)}

    @property
    def choices(self) -> dict[str, Any]:
        """As a task names them: `init` is the encoder."""
        if self.config is None and self.encoder is None and not (self.scratch and self.size):
            raise ValueError(
                "prepare.encoder must name pre-trained weights, such as a run folder or timm:NAME; got none. Without "
                "any, set prepare.scratch and prepare.size."
            )
        same = ("size", "steps", "epochs", "config", "subset", "scratch", "scale")
        own = {name: getattr(self, name) for name in same}
        return {"data": None if self.data == "[]" else self.data, "init": self.encoder, "begun": self.out, **own}


@dataclass(frozen=True)
class FinetuneOptions(TaskOptions):
    """What decides the training of a classifier from an encoder; each setting of its config is a further option."""

    fraction: float | None = None  # Use only this share of the training images of every class, rounded up
    labels_per_class: int | None = None  # Use only so many training images of every class
    balanced: bool = False  # Weigh the loss so that rare classes count as much as frequent ones

    @property
    def choices(self) -> dict[str, Any]:
        """Also how the loss is weighed."""
        return super().choices | {"balanced": self.balanced}


def finetune(line: CommandLine) -> None:
    """Train a classifier from an encoder: pantomim finetune DATA --encoder X --out RUN [--any.setting value]."""
    train_and_score(line, FinetuneOptions)


def train_and_score(line: CommandLine, kind: type[TaskOptions]) -> None:
    """Train for a task, score on the test part of the data, and do the same without pre-training where asked to."""
    chosen, prepared, _ = read_run(line, kind)
    out, config = chosen.folder, prepared.config
    from pantomim.engine.pretrain import pretrain as run
    from pantomim.evaluate import evaluation_of
    from pantomim.evaluate.base import ScoresError
    from pantomim.evaluate.trained import FROM_SCRATCH
    from pantomim.recipes.finetune import from_scratch

    runs = {out: config}
    if chosen.compare:
        if config.init is None:
            raise ValueError(
                f"prepare.compare must be left out for a run from scratch, which has nothing to compare; got it for "
                f"{out}. Leave it out, or start from an encoder."
            )
        runs[out / FROM_SCRATCH] = from_scratch(config)
    trained = False
    for folder, each in runs.items():
        finished = run(each, folder)
        trained |= not finished.already
        if is_main_process():
            say_complete(folder, finished.already)
            say(f"{in_words(finished)}.\n{kind.trains.capitalize()}: {folder / f'{kind.trains}.safetensors'}")
    if not is_main_process():
        return
    try:
        for folder in reversed(runs):  # the run itself last: it is compared with the other
            against = out / FROM_SCRATCH if chosen.compare and folder == out else None
            words = _scored(evaluation_of(config, folder, against), again=trained)
            say(words if folder == out else f"From scratch: {words}")
    except ScoresError:
        raise
    except ValueError as error:  # a source may have no labelled test part: the run is whole without
        warn(line.in_options(str(error)), "no score")


def _scored(evaluation: "TaskEvaluation", again: bool) -> str:
    """The score in a line; one that is there already is taken, unless there is a new network or a new comparison."""
    from pantomim.evaluate.base import read_scored

    result = read_scored(evaluation.path) if not again and evaluation.path.is_file() else {}
    compared = evaluation.against is None or result.get("against", {}).get("from_scratch")
    if "trained" not in result or not compared:
        _, result = evaluation.to_file()
    return evaluation.headline(result)
