from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text
from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say, section
from pantomim.cli.help import readable

if TYPE_CHECKING:
    from pantomim.recipes.recipe import Family, Recipe

OF_PAPERS = {
    "encoder": "Settings of papers, and small ones of ours",
    "tokenizer": "The same of tokenizers, for pantomim tokenizer train",
    "classifier": "Classifiers, for pantomim finetune: the preset is the middle of the name",
    "segmenter": "Segmenters, for pantomim segment: the preset is the middle of the name",
}


@typed()
def recipes(name: Positional[str | None] = None) -> None:
    """List the recipes, or tell of one its cost, its expected score and what differs from the paper.

    Examples:
        pantomim recipes
        pantomim recipes mae_vit_base_in1k

    Args:
        name: Of a recipe or of a bare method.
    """
    from pantomim.recipes import BARE_METHODS, BARE_TOKENIZERS, RECIPES_OF
    from pantomim.recipes.continue_ import CONTINUED

    if name is not None:
        _show(name)
        return

    def bare(families: Mapping[str, "Family"]) -> list[tuple[str, str]]:
        return [(each, family.idea + _needed(each)) for each, family in families.items()]

    new = {each: family for each, family in BARE_METHODS.items() if family not in CONTINUED}
    section("Bare methods for any images, and what they predict: pantomim pretrain NAME", bare(new))
    continued = [(each, family.title) for each, family in BARE_METHODS.items() if each not in new]
    section("The same from weights that exist, with --init (begin with continue_dbot)", continued)
    section("Bare tokenizers, and what they learn: pantomim tokenizer train NAME", bare(BARE_TOKENIZERS))
    for trained, heading in OF_PAPERS.items():
        section(heading, [(each.name, _line(each)) for each in RECIPES_OF[trained]])
    say(
        "\npantomim recipes NAME tells cost, expected score and what differs from the paper;\n"
        "pantomim explain NAME what a run would be (but not of tokenizers)."
    )


def _show(name: str) -> None:
    """All that is known of a recipe or a bare method, but for its settings."""
    from pantomim.recipes import BARE_OF, RECIPES_OF
    from pantomim.recipes.outline import outline

    about = outline(name)
    recipe = next((each for listed in RECIPES_OF.values() for each in listed if each.name == name), None)
    rows = [("what", about.summary)]
    if recipe is not None:
        rows += [("cost", recipe.cost), ("expected score", recipe.expected)]
        notes = recipe.notes
    else:
        family = next(kinds[name] for kinds in BARE_OF.values() if name in kinds)
        named, notes = ", ".join(each.name for each in family.recipes), family.notes
        rows += [("predicts", family.idea)] * bool(family.idea) + [("recipes", named)] * bool(named)
    rows += [("needs", f"--{need}") for need in about.needs] + [("differs", note) for note in notes]
    section(name, [(what, readable(value)) for what, value in rows])


def _needed(name: str) -> str:
    """The options without which it does not start."""
    from pantomim.recipes.outline import outline

    needs = " and ".join(f"--{need}" for need in outline(name).needs)
    return f" (needs {needs})" if needs else ""


def _line(recipe: "Recipe") -> Text:
    """What it is, and its score where there is one; in one line, however narrow the terminal."""
    score = "" if recipe.expected.startswith("not ") else f"; {recipe.expected}"
    return Text(recipe.summary.rstrip(".") + score, no_wrap=True, overflow="ellipsis")
