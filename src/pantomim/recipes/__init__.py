"""Recipes: named starting points of a run, and bare methods that the data complete."""

from pantomim.recipes.prepare import BARE_METHODS, RECIPES, Prepared, prepare

__all__ = ["BARE_METHODS", "RECIPES", "Prepared", "prepare"]
