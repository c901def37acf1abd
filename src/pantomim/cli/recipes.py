from pantomim.cli.command_line import typed
from pantomim.cli.console import grid, say

FOR = {
    "tokenizer": "Tokenizers, for pantomim tokenizer train",
    "classifier": "Classifiers, for pantomim finetune: the preset is the middle of the name",
    "segmenter": "Segmenters, for pantomim segment: the preset is the middle of the name",
}


@typed()
def recipes() -> None:
    """List the recipes with their cost and expected score.

    Examples:
        pantomim recipes
    """
    from pantomim.recipes import BARE_METHODS, BARE_TOKENIZERS, RECIPES_OF

    for trained, listed in RECIPES_OF.items():
        if trained in FOR:
            say(f"{FOR[trained]}\n")
        rows = [(recipe.name, recipe.summary, recipe.cost, recipe.expected) for recipe in listed]
        grid(("recipe", "what", "cost", "expected score"), rows, gap=1)
    say(
        f"Bare methods, for any images: {', '.join(BARE_METHODS)} (then --size, or --init where it "
        f"continues, and the data decide the rest); "
        f"tokenizers: {', '.join(BARE_TOKENIZERS)}.\n"
        "pantomim explain RECIPE tells what a run would be, but not of tokenizers."
    )
