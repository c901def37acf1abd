from pantomim.cli.command_line import typed
from pantomim.cli.console import grid, say


@typed()
def recipes() -> None:
    """List the recipes with their cost and expected score."""
    from pantomim.recipes import BARE_METHODS, BARE_TOKENIZERS, RECIPES, TOKENIZER_RECIPES

    for listed in (RECIPES, TOKENIZER_RECIPES):
        if listed is TOKENIZER_RECIPES:
            say("Tokenizers, for pantomim tokenizer train\n")
        rows = [(recipe.name, recipe.summary, recipe.cost, recipe.expected) for recipe in listed]
        grid(("recipe", "what", "cost", "expected score"), rows, gap=1)
    say(
        f"Bare methods, for any images: {', '.join(BARE_METHODS)} (then --size and the data decide the rest); "
        f"tokenizers: {', '.join(BARE_TOKENIZERS)}.\n"
        "pantomim explain RECIPE tells what a run would be, but not of tokenizers."
    )
