"""Other tools' files, read into recipes: one small file a tool; its keys are in fixtures/tools/."""

from bench.readers.find import READERS, read_recipe
from bench.readers.recipe import Recipe, RecipeFault, RecipeStep

__all__ = ["READERS", "Recipe", "RecipeFault", "RecipeStep", "read_recipe"]
