"""Options that decide a run, and the settings of its config, which are options too."""

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn, TypeVar

import tyro
from tyro.conf import Positional

from pantomim.cli.command_line import LEAVES, CommandLine, given
from pantomim.cli.console import say
from pantomim.core.names import did_you_mean

if TYPE_CHECKING:  # imported where used: `pantomim pretrain --help` waits for no model library
    from pantomim.recipes import Prepared


@dataclass(frozen=True)
class Choices(ABC):
    """What decides any run; each setting of its config is a further option."""

    out: Path | None = None  # The run folder; an unfinished run of the same config in it is resumed
    steps: int | None = None  # Length in optimiser steps
    epochs: float | None = None  # Length in passes over the data
    keep: int | None = None  # Checkpoints to keep
    config: Path | None = None  # Repeat the run of this config.yaml
    # The stored value that becomes 1; by default by the number type, 255 for 8-bit images
    scale: Annotated[float | None, tyro.conf.arg(name="data.scale")] = None

    trains: ClassVar[str] = "encoder"

    @property
    @abstractmethod
    def name(self) -> str | None:
        """Of the recipe, if one is named."""

    @property
    @abstractmethod
    def choices(self) -> dict[str, Any]:
        """What decides the config beside the name, as `recipes.prepare` takes it."""

    def prepare(self) -> "Prepared":
        """The run that these options give."""
        from pantomim.recipes import prepare

        return prepare(self.name, **{"trains": self.trains, **self.choices})

    @property
    def folder(self) -> Path:
        """The run folder, which has no default."""
        if self.out is None:
            raise ValueError("Pretrain.out must name a run folder; got none. Add one, such as runs/first.")
        return self.out


@dataclass(frozen=True)
class RunOptions(Choices):
    """What decides a run; each setting of its config is a further option."""

    # A full name, such as mae_vit_base_in1k, or a bare one, such as mae, for any images. See `pantomim recipes`
    recipe: Positional[str | None] = None
    # An embedded set (mnist), a folder, a zip, an .npz, a text list of files, torchvision:NAME or hf:NAME
    data: str | None = None
    size: str | None = None  # Size of the networks, for a bare name: from micro to huge
    # Whose features are predicted: random, ema, RUN, FILE, timm:NAME ...; docs/teachers.md has all
    teacher: str | None = None

    @property
    def name(self) -> str | None:
        """Of the recipe: without one, tyro 1.0 reads an empty list in words where further options follow."""
        return None if self.recipe == "[]" else self.recipe

    @property
    def choices(self) -> dict[str, Any]:
        """All but how the run is carried out; what one that has begun there found is not asked again."""
        own = {key: value for key, value in vars(self).items() if key not in ("recipe", "out", "keep")}
        return own | {"begun": self.out}


Options = TypeVar("Options", bound=Choices)


def read_run(line: CommandLine, kind: type[Options]) -> tuple[Options, "Prepared", list[str]]:
    """Read in two rounds: the options that decide the recipe, and the settings of the config that it gives.

    The names of the settings that were given come last.
    """
    if line.asks_for_help:
        _print_help(line, kind)
    owners = ("prepare", "Pretrain", "Stages")
    answer: Any = line.read(kind, *owners, config=(), return_unknown_args=True, add_help=False)
    chosen, words = answer
    line.options |= dict.fromkeys(("Dataset.scale", "prepare.scale"), "--data.scale")
    from pantomim.config import Pretrain, Validation, with_kind

    words = _checked(line, words, kind)
    if hasattr(chosen, "encoder"):  # what a task starts from has this name there
        line.options |= dict.fromkeys(("prepare.init", "Pretrain.init"), "--encoder")
    prepared = chosen.prepare()
    config = prepared.config
    if config.validation is None and any(name.startswith("validation.") for name in given(words)):
        config = replace(config, validation=Validation())
    for option, value in pairwise(part for word in words for part in word.split("=", 1)):
        if option.startswith("--") and option.endswith(".kind"):  # another kind of part has other settings
            config = with_kind(config, option[2:].removesuffix(".kind").replace("-", "_"), value)
    prog = f"pantomim {line.command} {chosen.name or f'--config {chosen.config}'}"
    config = tyro.cli(Pretrain, default=config, args=words, prog=prog, config=LEAVES)
    if chosen.keep is not None:
        config = replace(config, runtime=replace(config.runtime, keep=chosen.keep))
    return chosen, replace(prepared, config=config), given(words)


def _checked(line: CommandLine, words: list[str], kind: type) -> list[str]:
    """The settings as they are, with the other unit of a duration unset; no data are opened for a mistyped name."""
    from pantomim.config import Pretrain, leaf_owners

    owners, names = leaf_owners(Pretrain), given(words)
    known = [*(item.name for item in fields(kind)), *owners]
    for name in names:
        if name not in [*known, "help"]:
            hint = did_you_mean(name, known, "See --help.", prefix="--")
            raise ValueError(f"There is no option --{name}.{hint}")
    for leaf, classes in owners.items():
        line.options[leaf] = f"--{leaf}"
        if leaf in names or leaf.count(".") < 2:  # deeper, a class may as well be meant as it lies in a file
            line.options |= {f"{owner}.{leaf.rpartition('.')[2]}": f"--{leaf}" for owner in classes}
    for duration in ("duration", "optim.warmup"):
        for unit, other in (("steps", "epochs"), ("epochs", "steps")):
            if f"{duration}.{unit}" in names and f"{duration}.{other}" not in names:
                words = [*words, f"--{duration}.{other}", "None"]
    return words


def _print_help(line: CommandLine, kind: type) -> NoReturn:
    """The options and, of a recipe, the settings; a bare name asks for no data here."""
    prog = f"pantomim {line.command}"
    name = next((word for word in line.arguments if not word.startswith("-")), None)
    with suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=prog)
    if name is None:
        say(f"{prog} RECIPE --help also lists every setting of the config.")
    else:
        from pantomim.config import Pretrain
        from pantomim.recipes import BARE_OF, RECIPES_OF

        built = {recipe.name: recipe.config for recipes in RECIPES_OF.values() for recipe in recipes}
        bare = {name: family for families in BARE_OF.values() for name, family in families.items()}.get(name)
        if bare is None and name not in built:
            raise ValueError(f"There is no recipe {name}. `pantomim recipes` lists them all.")
        default = built[name] if bare is None else bare.paper(768)
        tyro.cli(Pretrain, default=default, args=["--help"], prog=f"{prog} {name}", config=LEAVES)
    raise SystemExit(0)
