"""Two workers alive together, their rounds taken in turn: A B, then B A, then A B again.

Both rounds of a pair meet the same minute of the machine, and neither side always goes first:
what slows one side for longer than a pair slows the other too, and cancels in the pair's ratio
(T. Kalibera, R. Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013, on randomising the
order of what is compared).
"""

from __future__ import annotations

from collections.abc import Callable

from bench.measure.outcome import StepTime

Step = Callable[[], StepTime]
"""Takes one training step in a worker, and gives its time by the worker's own clock."""

ROUNDS = 60
"""Pairs of rounds a case, by default: what the experiment in `bench.ab.experiment` found to be
enough to tell 10 % from 5 % on a noisy machine."""

WARMUP = 2


def interleave(
    baseline: Step, contender: Step, rounds: int = ROUNDS, warmup: int = WARMUP
) -> tuple[list[StepTime], list[StepTime]]:
    """Each side's rounds, round i of one side beside round i of the other.

    Every second pair starts with the contender. Raises what a step raises.
    """
    before: list[StepTime] = []
    after: list[StepTime] = []
    for number in range(warmup + rounds):
        if number % 2 == 0:
            before.append(baseline())
            after.append(contender())
        else:
            after.append(contender())
            before.append(baseline())
    return before[warmup:], after[warmup:]
