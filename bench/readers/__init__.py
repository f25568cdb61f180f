"""Other tools' files, read into recipes: one small file a tool, with its keys and their meaning."""

from bench.readers.find import READERS, read_recipe
from bench.readers.recipe import Recipe, RecipeFault, RecipeStep

__all__ = ["READERS", "Recipe", "RecipeFault", "RecipeStep", "read_recipe"]
