"""Side by side: the same cases in two Python environments, for what an upgrade changed."""

from bench.ab.environments import Environment, find_python
from bench.ab.pair import Pair, Plan, measure

__all__ = ["Environment", "Pair", "Plan", "find_python", "measure"]
