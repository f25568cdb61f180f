"""The inverse of the formulas: which configurations train exactly this many parameters."""

from bench.explain.found import Explanation, Found
from bench.explain.search import SEARCHED, SEARCHED_RANK, Search, explain

__all__ = ["SEARCHED", "SEARCHED_RANK", "Explanation", "Found", "Search", "explain"]
