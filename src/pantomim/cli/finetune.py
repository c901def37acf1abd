from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Positional

from pantomim.cli.command_line import CommandLine
from pantomim.cli.console import is_main_process, say
from pantomim.cli.pretrain import in_words, say_complete
from pantomim.cli.run_options import Choices, read_run

if TYPE_CHECKING:
    from pantomim.recipes import Prepared


@dataclass(frozen=True)
class TaskOptions(Choices):
    """What decides the training of an encoder for a task; each setting of its config is a further option.

    Args:
        data: Images with labels: a folder with one folder a class, a zip, an .npz, a list of files with labels ...
        encoder: A run folder, a file of weights, timm:NAME, open_clip:NAME:TAG or hf:NAME.
        preset: Whose recipe; by default that of the method which the encoder was pre-trained with, else MAE's.
        scratch: Train the same network without the encoder's weights.
        size: Of the network, where no encoder is named: from micro to huge.
        images: Use only so many training images, as even over the classes as these allow.
        draw: Which draw of the images, and of those that are held out.
    """

    data: Positional[str | None] = None
    encoder: str | None = None
    preset: str | None = None
    scratch: bool = False
    size: str | None = None
    images: int | None = None
    draw: int = 0

    trains: ClassVar[Literal["classifier", "segmenter"]] = "classifier"
    recipes: ClassVar[str] = "finetune"

    @property
    def name(self) -> str | None:
        """Of the recipe, by the preset."""
        if self.config is not None:
            return None
        from pantomim.recipes.finetune import preset_of

        return f"{self.recipes}_{self.preset or preset_of(self.encoder)}"

    @property
    def subset(self) -> dict[str, Any]:
        """Settings of the data, where not all of them are used."""
        names = ("fraction", "labels_per_class", "images", "draw")
        return {name: value for name in names if (value := getattr(self, name, None)) not in (None, 0)}

    def prepare(self) -> "Prepared":
        """Of a recipe for the task."""
        from pantomim.recipes import prepare

        data = None if self.data == "[]" else self.data
        if self.config is None and self.encoder is None and not (self.scratch and self.size):
            raise ValueError(
                "prepare.encoder must name pre-trained weights, such as a run folder or timm:NAME; got none. Without "
                "any, set prepare.scratch and prepare.size."
            )
        return prepare(
            self.name,
            data=data,
            init=self.encoder,
            size=self.size,
            steps=self.steps,
            epochs=self.epochs,
            config=self.config,
            trains=self.trains,
            subset=self.subset,
            scratch=self.scratch,
            balanced=getattr(self, "balanced", False),
        )


@dataclass(frozen=True)
class FinetuneOptions(TaskOptions):
    """What decides the training of a classifier from an encoder; each setting of its config is a further option.

    Args:
        fraction: Use only this share of the training images of every class, rounded up.
        labels_per_class: Use only so many training images of every class.
        balanced: Weigh the loss so that rare classes count as much as frequent ones.
    """

    fraction: float | None = None
    labels_per_class: int | None = None
    balanced: bool = False


def finetune(line: CommandLine) -> None:
    """Train a classifier from an encoder: pantomim finetune DATA --encoder X --out RUN [--any.setting value]."""
    chosen, prepared, _ = read_run(line, FinetuneOptions)
    out = chosen.folder
    from pantomim.engine.pretrain import pretrain as run

    finished = run(prepared.config, out)
    if not is_main_process():
        return
    say_complete(out, finished.already)
    say(f"{in_words(finished)}.\nClassifier: {out / 'classifier.safetensors'}")
