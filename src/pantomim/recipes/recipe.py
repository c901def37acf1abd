"""What a recipe is, which recipes a published method has, and in which settings a config differs from the paper's."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pantomim.config import Pretrain, leaves, to_dict
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.scale import CIFAR10, Scale, nearest_size, scale

Row = tuple[str, ...]  # what a run costs, the score to expect, both with their source; then notes
ON_CIFAR10: dict[str, Row] = dict.fromkeys(CIFAR10, ("not measured yet", "not measured yet; nothing is tuned"))
_WORDS = {
    "micro": "micro with patches of 4x4, on 10,000 images of CIFAR-10; for two CPU cores",
    "tiny": "ViT-Ti/4, on CIFAR-10's 50,000 images of 32x32, 400 epochs; for one GPU",
}


@dataclass(frozen=True)
class Recipe:
    """A starting point for a run, and what is known about it.

    Args:
        config: The run, which carries the recipe's name; of a chain the first.
        paper: The published config that it is compared with.
        summary: One line on what it is.
        cost: What a run costs, and who measured it.
        expected: The score to expect, and who measured it.
        notes: What differs from the paper and is no field of the config.
        stages: Of a chain of runs, how many; None: a single run.
        origins: By the beginning of a setting's name, where the values of `paper` come from if the paper does not state
            them.
    """

    config: Pretrain
    paper: Pretrain
    summary: str
    cost: str = ""
    expected: str = ""
    notes: tuple[str, ...] = ()
    stages: int | None = None
    origins: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """Method, size, data."""
        return self.config.recipe


@dataclass(frozen=True)
class Family:
    """The recipes of a published method, and the bare method, which any images complete.

    Args:
        name: What the names of its recipes begin with.
        title: What the paper calls it.
        published: Makes the paper's config of a size.
        rows: The published recipes, by size.
        others: Further recipes.
        small: Those that stand beside MAE's small ones: same images, sizes, rates and length.
        rescale: `scale`, and what else of the method follows the scale.
        bare: Name of the bare method; None: there is none.
        tail: What a summary ends with.
        notes: As of `Recipe`, for all of them and for the bare method; so are `stages` and `origins`.
        sizes: Those of the bare method.
        default_size: The one where none is given.
        tokenizer: Whether a tokenizer is trained.
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
        for size, row in self.rows.items():
            run: Any = self._of_size(size)
            vit = f"ViT-{size[0].upper()}/{run.method.encoder.patch_size}"
            yield self._recipe(run, run, f"{vit}, ImageNet-1K, {run.duration}{self.tail}", row)
        yield from self.others
        for size, row in self.small.items():
            paper = self.paper(ENCODER_SIZES[size]["width"])
            run = replace(self.rescale(paper, CIFAR10[size]), recipe=f"{self.name}_{size}_cifar10")
            yield self._recipe(run, paper, _WORDS[size], row)

    @property
    def summary(self) -> str:
        """One line on the bare method."""
        whose = "the paper's own numbers are not known" if self.origins else "what the paper does not state is ours"
        return f"{self.title} for any images: size and data decide the rest; {whose}."

    def paper(self, width: int) -> Pretrain:
        """The published config nearest to an encoder's width: what a run is compared with."""
        return self._of_size(nearest_size(width, self.rows)) if self.rows else self.published()

    def fit(self, size: str, facts: Facts, stats: Stats, start: EncoderConfig | None = None) -> Pretrain:
        """The bare method for such images; of `start`, an encoder to continue, all but the image size is kept.

        Raises:
            ValueError: if there is no such size, or the method cannot learn from such images.
        """
        if size not in self.sizes:
            raise ValueError(f"prepare.size must be one of {', '.join(self.sizes)} for {self.bare}; got {size}.")
        width = start.width if start is not None else ENCODER_SIZES.get(size, {"width": 0})["width"]
        return replace(self.rescale(self.paper(width), Scale(size, facts, stats, start)), recipe=self.bare or self.name)

    def _of_size(self, size: str) -> Pretrain:
        return replace(self.published(size), recipe=f"{self.name}_vit_{size}_in1k")

    def _recipe(self, config: Pretrain, paper: Pretrain, what: str, row: Row) -> Recipe:
        cost, expected, *notes = row
        summary = f"{self.title}, {what}."
        return Recipe(config, paper, summary, cost, expected, (*notes, *self.notes), self.stages, self.origins)


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
