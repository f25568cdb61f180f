"""The inverse of the formulas: which configurations train exactly this many parameters."""

from bench.explain.search import SEARCHED, SEARCHED_RANK, Explanation, Found, Search, explain

__all__ = ["SEARCHED", "SEARCHED_RANK", "Explanation", "Found", "Search", "explain"]
