"""The inverse of the formulas: which configurations train exactly this many parameters."""

from bench.explain.search import LARGEST_RANK, SEARCHED, Explanation, Found, Search, explain

__all__ = ["LARGEST_RANK", "SEARCHED", "Explanation", "Found", "Search", "explain"]
