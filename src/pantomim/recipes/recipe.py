"""What a recipe is, which recipes a published method has, and in which settings a config differs from the paper's."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pantomim.config import Pretrain, leaves, to_dict
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.scale import CIFAR10, Scale, nearest_size, scale

Row = tuple[str, ...]  # what a run costs, the score to expect, both with their source; and notes
ON_CIFAR10: dict[str, Row] = dict.fromkeys(CIFAR10, ("not measured yet", "not measured yet; nothing is tuned"))
_WORDS = {
    "micro": "micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores",
    "tiny": "ViT-Ti/4, on CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU",
}


@dataclass(frozen=True)
class Recipe:
    """A named starting point for a run.

    Args:
        name: Method, size, data.
        summary: One line on what it is.
        make: Makes the config.
        cost: What a run costs, and where that was measured or who says so.
        expected: The score to expect, and where that was measured or who says so.
        paper: Makes the paper's own config, that it is compared with; None: it is that itself.
        notes: What differs from the paper and is no field of the config.
        stages: Of a chain of runs, how many; None: a single run.
        origins: Where the values of `paper` come from, by the beginning of a setting's name, if it is a mere starting
            point because the paper does not state them.
    """

    name: str
    summary: str
    make: Callable[[], Pretrain]
    cost: str
    expected: str
    paper: Callable[[], Pretrain]
    notes: tuple[str, ...] = ()
    stages: int | None = None
    origins: Mapping[str, str] | None = None

    def build(self) -> Pretrain:
        """The config."""
        return replace(self.make(), recipe=self.name)


@dataclass(frozen=True)
class Family:
    """The recipes of a published method: its own by size, others, two small ones; and the same for any images.

    Args:
        name: What the names of its recipes begin with.
        title: What the paper calls it.
        published: Makes the paper's config of a size.
        rows: Its own recipes, by size.
        others: Further recipes.
        small: Those beside MAE's small ones: same images, sizes, rates and length; see `ON_CIFAR10`.
        rescale: `scale`, and what else of the method follows the scale.
        bare: Name of the bare method, which takes any images; None: there is none.
        tail: What a summary ends with.
        notes: As of `Recipe`, for all of them and for the bare method; so are the next two.
        sizes: Those of the bare method.
        default_size: The one where none is given.
        tokenizer: What is trained is a tokenizer.
    """

    name: str
    title: str
    published: Callable[..., Pretrain]
    rows: Mapping[str, Row]
    others: tuple[Recipe, ...] = ()
    small: Mapping[str, Row] = field(default_factory=dict)
    rescale: Callable[[Pretrain, Scale], Pretrain] = scale
    bare: str | None = None
    tail: str = ""
    notes: tuple[str, ...] = ()
    stages: int | None = None
    origins: Mapping[str, str] | None = None
    sizes: tuple[str, ...] = tuple(ENCODER_SIZES)
    default_size: str = "tiny"
    tokenizer: bool = False

    @property
    def recipes(self) -> Iterator[Recipe]:
        """All of them."""
        for size, (cost, expected, *notes) in self.rows.items():
            make = partial(self._of_size, size)
            run: Any = make()
            vit = f"ViT-{size[0].upper()}/{run.method.encoder.patch_size}"
            summary = f"{self.title}, {vit}, ImageNet-1K, {run.duration}{self.tail}."
            yield self._with_notes(Recipe(run.recipe, summary, make, cost, expected, make, tuple(notes)))
        yield from map(self._with_notes, self.others)
        for size, (cost, expected, *notes) in self.small.items():
            paper = partial(self.paper, ENCODER_SIZES[size]["width"])
            make = partial(self._on_cifar10, size)
            name, summary = f"{self.name}_{size}_cifar10", f"{self.title}, {_WORDS[size]}."
            yield self._with_notes(Recipe(name, summary, make, cost, expected, paper, tuple(notes)))

    @property
    def summary(self) -> str:
        """One line on the bare method."""
        whose = "the paper's own numbers are not known" if self.origins else "what the paper does not state is ours"
        return f"{self.title} for any images: size and data decide the rest; {whose}."

    def paper(self, width: int) -> Pretrain:
        """The published config nearest to an encoder's width: what a run is compared with."""
        return self._of_size(nearest_size(width, self.rows)) if self.rows else self.published()

    def fit(self, size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
        """The bare method: what the data and a size leave open is the paper's, or ours.

        Args:
            size: Name of the sizes.
            facts: Size, channels, number, type and classes of the images.
            stats: Their mean and std.
            start: Encoder whose training is continued: all but its image size is kept.

        Raises:
            ValueError: if there is no such size, or the method cannot learn from such images.
        """
        if size not in self.sizes:
            raise ValueError(f"prepare.size must be one of {', '.join(self.sizes)} for {self.bare}; got {size}.")
        width = start.width if start is not None else ENCODER_SIZES.get(size, {"width": 0})["width"]
        run = self.rescale(self.paper(width), Scale(size, facts, stats, start))
        return replace(run, recipe=self.bare or self.name)

    def _of_size(self, size: str) -> Pretrain:
        return replace(self.published(size), recipe=f"{self.name}_vit_{size}_in1k")

    def _on_cifar10(self, size: str) -> Pretrain:
        return self.rescale(self.paper(ENCODER_SIZES[size]["width"]), CIFAR10[size])

    def _with_notes(self, recipe: Recipe) -> Recipe:
        notes = (*recipe.notes, *self.notes)
        return replace(recipe, notes=notes, stages=self.stages, origins=self.origins)


def with_parts(run: Pretrain, **parts: Any) -> Pretrain:
    """The same run with other settings of its method."""
    return replace(run, method=replace(run.method, **parts))


def differences(config: Pretrain, paper: Pretrain) -> list[tuple[str, object, object]]:
    """Every setting in which a config differs from the paper's: (dotted name, ours, the paper's).

    Where the images come from, how the run is carried out and what it is called are no differences.
    """
    ours, theirs = leaves(to_dict(config)), leaves(to_dict(paper))
    apart = ("recipe", "init", "runtime.", "data.source", "data.workers", "data.memory_gib")
    return [
        (name, ours.get(name), theirs.get(name))
        for name in dict.fromkeys([*theirs, *ours])
        if not name.startswith(apart) and ours.get(name) != theirs.get(name)
    ]
