"""Two workers alive together, their rounds taken in turn: A B B A, A B B A, until it is enough.

Both sides meet the same minutes of the machine. A step that follows another worker's finds its
caches cold, and what comes second in one pair comes first in the next: the comparison adds up the
two (`bench.baselines.verdicts.blocks`).

How many rounds are enough depends on the noise: they go on until the interval of the ratio is
narrow, whatever its place (a fixed-width interval: Y. S. Chow, H. Robbins, "On the asymptotic
theory of fixed-width sequential confidence intervals for the mean", Annals of Mathematical
Statistics 36, 1965). Stopping at the first verdict would find one sooner or later.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.baselines.verdicts import blocks
from bench.measure.outcome import StepTime
from bench.statistics import ratio_interval

Step = Callable[[], StepTime]
"""Takes one training step in a worker, timed by the worker's own clock."""

CLOCKS = {"processor": ("bench.ab.processor_time",), "wall": ()}
"""The clocks of steps on a CPU, by name: what to preload into the workers."""

WARMUP = 2
ROUNDS = 60
"""On each side, at least."""

MOST_ROUNDS = 900
WIDTH = 0.035
"""Narrow enough: below the threshold of 5 %, so that 10 % lies beyond it whole."""


def interleave(
    baseline: Step,
    contender: Step,
    rounds: int = ROUNDS,
    most: int = MOST_ROUNDS,
    width: float = WIDTH,
) -> tuple[list[StepTime], list[StepTime]]:
    """Each side's rounds, round i of one side beside round i of the other.

    At least `rounds` on each side, at most `most`, until the interval is narrower than `width`.
    Raises what a step raises.
    """
    before: list[StepTime] = []
    after: list[StepTime] = []

    def pairs(count: int) -> None:
        for _ in range(count):
            if len(before) % 2 == 0:
                before.append(baseline())
                after.append(contender())
            else:
                after.append(contender())
                before.append(baseline())

    pairs(WARMUP)
    before.clear()
    after.clear()
    pairs(rounds)
    while len(before) < most and _width(before, after) > width:
        pairs(min(rounds, most - len(before)))
    return before, after


def _width(before: list[StepTime], after: list[StepTime]) -> float:
    old, new = ([step.total_seconds for step in steps] for steps in (before, after))
    found = ratio_interval(blocks(old), blocks(new), paired=True)
    return found.high - found.low
