"""Side by side: the same cases in two Python environments, for what an upgrade changed."""

from bench.ab.command import ab_command
from bench.ab.environments import Environment, find_python
from bench.ab.measure import Pair, Plan, measure

__all__ = ["Environment", "Pair", "Plan", "ab_command", "find_python", "measure"]
