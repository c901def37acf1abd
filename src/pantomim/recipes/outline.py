"""What is known of a run before there are data: for help."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pantomim import recipes
from pantomim.config import Pretrain, leaves, to_dict
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.methods.guides import teacher_of
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes.continue_ import Continued, continued
from pantomim.recipes.recipe import no_recipe

# Two sets that have nothing in common: what a bare method has for both, it has for all.
SETS = (
    (Facts(200, 3, (32, 32), 32, "uint8", 2), Stats((0.4,) * 3, (0.2,) * 3)),
    (Facts(1_000_000, 3, None, 600, "uint8", 1000), Stats((0.5,) * 3, (0.3,) * 3)),
)


@dataclass(frozen=True)
class Outline:
    """A recipe, or a bare method without its data."""

    summary: str
    config: Pretrain
    fitted: Collection[str] = ()  # settings that follow from the data and the size
    sized: bool = False  # whether a size can be chosen
    needs: tuple[str, ...] = ()  # arguments of `prepare` that it has no default of


def outline(name: str) -> Outline:
    """The recipe or bare method of a name; a ValueError if there is none."""
    trains = recipes.trained_by(name)
    if trains is None:
        known = [known for each in recipes.BARE_OF.values() for known in each]
        known += [recipe.name for each in recipes.RECIPES_OF.values() for recipe in each]
        raise no_recipe(name, known)
    family = recipes.BARE_OF[trains].get(name)
    if family is None:
        recipe = next(recipe for recipe in recipes.RECIPES_OF[trains] if recipe.name == name)
        return Outline(recipe.summary, recipe.config, needs=_needs(recipe.config))
    is_continued, found = isinstance(family, Continued), []
    for size, (facts, stats) in zip((family.sizes[0], family.sizes[-1]), SETS, strict=True):
        start = EncoderConfig(**ENCODER_SIZES[size]) if is_continued else None
        fitted: Any = family.fit(size, facts, stats, start, facts.num_images)
        found.append(continued(fitted, "WEIGHTS", facts.num_images) if is_continued else fitted)
    one, other = (leaves(to_dict(each)) for each in found)
    differing = {leaf for leaf in {**one, **other} if one.get(leaf) != other.get(leaf)}
    needs = ("init",) if is_continued else _needs(found[0])
    return Outline(family.summary, found[0], differing, not is_continued and len(family.sizes) > 1, needs)


def _needs(config: Pretrain) -> tuple[str, ...]:
    target, teacher = getattr(config.method, "target", None), teacher_of(config.method)
    asked = {"tokenizer": getattr(target, "tokenizer", None), "teacher": getattr(teacher, "source", None)}
    return tuple(name for name, value in asked.items() if value == "")
