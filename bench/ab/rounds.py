"""Two workers alive together, their rounds taken in turn: A B B A, A B B A; then two new ones.

Both sides meet the same minutes of the machine. A step that follows another worker's finds its
caches cold, and what comes second in one pair comes first in the next: the comparison adds up the
two (`bench.baselines.verdicts.launch_ratios`).

Two processes of the same code differ by a few percent for as long as they live, which more rounds
do not average out. Therefore both sides are started several times, and each launch gives one
ratio. How many are enough depends on the noise: they go on until the interval of the ratio is
narrow, whatever its place (a fixed-width interval: Y. S. Chow, H. Robbins, "On the asymptotic
theory of fixed-width sequential confidence intervals for the mean", Annals of Mathematical
Statistics 36, 1965). Stopping at the first verdict would find one sooner or later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.baselines.verdicts import launch_ratios
from bench.measure.outcome import StepTime
from bench.statistics import MINIMUM_LAUNCHES, launch_interval

Step = Callable[[], StepTime]
"""Takes one training step in a worker, timed by the worker's own clock."""

Launch = Callable[[], tuple[Step, Step]]
"""Starts a worker on each side, ending those before."""

WARMUP = 2
ROUNDS = 20
"""On each side in one launch; an even number, as a pair has its mirror image."""

LAUNCHES = (MINIMUM_LAUNCHES, 24)
"""The fewest and the most."""

WIDTH = 0.05
"""Narrow enough: an interval about 10 % then lies beyond the threshold of 5 % whole."""


@dataclass
class Rounds:
    """Each side's rounds, launch after launch, round i of one side beside round i of the other."""

    baseline: list[StepTime] = field(default_factory=list)
    contender: list[StepTime] = field(default_factory=list)
    launches: int = 0

    def narrow(self, width: float) -> bool:
        """Whether the interval of the whole step's ratio is narrower than `width`."""
        old, new = ([step.total_seconds for step in s] for s in (self.baseline, self.contender))
        found = launch_interval(launch_ratios(old, new, self.launches))
        return found.high - found.low < width


def take_rounds(
    launch: Launch,
    rounds: int = ROUNDS,
    launches: tuple[int, int] = LAUNCHES,
    width: float = WIDTH,
) -> Rounds:
    """`rounds` on each side in each launch; at least the fewest launches, at most the most, until
    the interval is narrower than `width`. Raises what a step or the launch raises."""
    fewest, most = launches
    taken = Rounds()
    while taken.launches < fewest or (
        taken.launches < most and (taken.launches < MINIMUM_LAUNCHES or not taken.narrow(width))
    ):
        before, after = interleave(*launch(), rounds)
        taken.baseline += before
        taken.contender += after
        taken.launches += 1
    return taken


def interleave(
    baseline: Step, contender: Step, rounds: int
) -> tuple[list[StepTime], list[StepTime]]:
    """Each side's rounds after the warm-up, in turn."""
    before: list[StepTime] = []
    after: list[StepTime] = []
    for number in range(WARMUP + rounds):
        if number % 2 == 0:
            before.append(baseline())
            after.append(contender())
        else:
            after.append(contender())
            before.append(baseline())
    return before[WARMUP:], after[WARMUP:]
