"""The inverse of the formulas: which configurations train exactly this many parameters."""

from bench.explain.search import LARGEST_RANK, Explanation, Found, explain

__all__ = ["LARGEST_RANK", "Explanation", "Found", "explain"]
