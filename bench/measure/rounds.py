"""How many timed steps a case takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.measure.engine import WARMUP_ROUNDS
from bench.measure.outcome import StepTime
from bench.statistics import MINIMUM_ROUNDS, is_narrow

MOST_ROUNDS = 20
"""Where the times never come to lie close together."""

ENOUGH_SECONDS = 0.5
"""No further round begins after so long in rounds: a case whose steps are slow takes the least."""


@dataclass(frozen=True)
class Rounds:
    """At least `least` rounds, and on until the interval of their median is narrow, there are
    `most`, or they took `seconds` together; before them `warmup` steps that do not count."""

    least: int = MINIMUM_ROUNDS
    most: int = MOST_ROUNDS
    seconds: float = ENOUGH_SECONDS
    warmup: int = WARMUP_ROUNDS

    @classmethod
    def exactly(cls, number: int, warmup: int = 0) -> Rounds:
        """So many, whatever they took."""
        return cls(number, number, math.inf, warmup)

    def enough(self, seconds: Sequence[float]) -> bool:
        """Whether rounds that took these seconds are all that are taken."""
        if len(seconds) < self.least:
            return False
        return len(seconds) >= self.most or sum(seconds) >= self.seconds or is_narrow(seconds)

    def take(self, step: Callable[[], StepTime]) -> list[StepTime]:
        """The steps, the warm-up first."""
        taken = [step() for _ in range(self.warmup)]
        while not self.enough([s.total_seconds for s in taken[self.warmup :]]):
            taken.append(step())
        return taken
