"""From what a user typed to the config of a tokenizer's run: a recipe, a bare method, or the file of another run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pantomim.config import Duration, Pretrain, from_yaml, with_duration
from pantomim.data.dataset import Facts
from pantomim.data.sources import open_source
from pantomim.methods.dvae import DVAEConfig
from pantomim.methods.vqkd import VQKDConfig
from pantomim.recipes.dvae import DEFAULT_SIZE as DVAE_SIZE
from pantomim.recipes.dvae import RECIPES as DVAE_RECIPES
from pantomim.recipes.dvae import check_range, dvae, dvae_paper
from pantomim.recipes.prepare import DEFAULT_SIZE, Prepared
from pantomim.recipes.recipe import Recipe
from pantomim.recipes.vqkd import RECIPES as VQKD_RECIPES
from pantomim.recipes.vqkd import vqkd, vqkd_vit_base_in1k


@dataclass(frozen=True)
class BareTokenizer:
    """A tokenizer for any images.

    Args:
        build: Makes the config of a size and the data's facts.
        paper: The paper's config.
        size: The size where none is given.
    """

    build: Callable[[str, Facts], Pretrain]
    paper: Callable[[], Pretrain]
    size: str


RECIPES: tuple[Recipe, ...] = DVAE_RECIPES + VQKD_RECIPES
BARE = {
    "dvae": BareTokenizer(dvae, dvae_paper, DVAE_SIZE),
    "vqkd": BareTokenizer(vqkd, vqkd_vit_base_in1k, DEFAULT_SIZE),
}


def prepare_tokenizer(
    name: str | None,
    *,
    data: str | None,
    size: str | None = None,
    teacher: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    config: Path | None = None,
) -> tuple[Prepared, int | None]:
    """The config of a recipe's name, of the bare methods `dvae` and `vqkd`, or of another run's config.yaml.

    Args:
        name: Of a recipe; None: `dvae`, or `vqkd` if there is a teacher, but with `config`.
        data: What `--data` takes; without it only with `config`.
        size: Of the networks, for a bare method.
        teacher: As `TeacherConfig.source`, for `vqkd`.
        steps: Length in steps.
        epochs: Length in epochs.
        config: The config.yaml of another run, instead of a name.

    Returns: the config, and the number of training images, for `fitted`; None where schedules are the file's and stay
        so, as no other length is given.

    Raises:
        ValueError: if the recipe does not exist, or options contradict each other or leave something open.
    """
    if name is not None and config is not None:
        raise ValueError(f"Give either a recipe or --config; got {name} and {config}. Leave one out.")
    if name is None and config is None:
        name = "dvae" if teacher is None else "vqkd"
    if size is not None and name not in BARE:
        raise ValueError(f"--size goes with {' and '.join(BARE)}; {name or config} fixes its size. Leave it out.")
    if data is None and config is None:
        raise ValueError("A tokenizer is trained on images; got none. Add --data SRC.")
    facts = open_source(data, "train").facts if data is not None else None
    if config is not None:
        run = from_yaml(Pretrain, config)
        if not isinstance(run.method, DVAEConfig | VQKDConfig):
            raise ValueError(
                f"--config must be that of a tokenizer's run; got {config}, a run of {run.recipe}. "
                f"`pantomim pretrain --config {config}` repeats it."
            )
        paper = dvae_paper() if isinstance(run.method, DVAEConfig) else vqkd_vit_base_in1k()
        prepared = Prepared(run, paper, f"the run of {config}")
    elif name in BARE:
        assert facts is not None
        bare = BARE[name]
        prepared = Prepared(
            bare.build(size or bare.size, facts), bare.paper(), (bare.build.__doc__ or "").splitlines()[0]
        )
    else:
        recipes = {recipe.name: recipe for recipe in RECIPES}
        if name not in recipes:
            raise ValueError(f"There is no tokenizer recipe {name}. There are {', '.join([*BARE, *recipes])}.")
        recipe = recipes[name]
        prepared = Prepared(recipe.build(), recipe.paper(), recipe.summary, recipe.notes)
    run = prepared.config
    if facts is not None and isinstance(run.method, DVAEConfig):
        check_range(facts)
    if teacher is not None:
        run = _with_teacher(run, teacher)
    if data is not None:
        run = replace(run, data=replace(run.data, source=data))
    if steps is not None or epochs is not None:
        run = with_duration(run, Duration(steps=steps, epochs=epochs))
    if config is not None and steps is None and epochs is None:
        return replace(prepared, config=run), None
    return replace(prepared, config=run), (facts or open_source(run.data.source, "train").facts).num_images


def _with_teacher(run: Pretrain, teacher: str) -> Pretrain:
    if not isinstance(run.method, VQKDConfig):
        raise ValueError(f"--teacher goes with vqkd; got {teacher} for {run.recipe}. Leave it out, or name vqkd.")
    return replace(run, method=replace(run.method, teacher=replace(run.method.teacher, source=teacher)))
