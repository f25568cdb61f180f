"""The launches of a comparison: two workers alive together, their rounds taken in turn, A B B A,
A B B A; then two new ones. Here, or on nodes of a cluster that are machines like this one.

Both sides meet the same minutes of the machine. A step that follows another worker's finds its
caches cold, and what comes second in one pair comes first in the next: the comparison adds up the
two (`bench.baselines.verdicts.launch_ratios`).

Two processes of the same code differ by a few percent for as long as they live, which more rounds
do not average out. Therefore both sides are started several times, and each launch gives one
ratio. How many are enough depends on the noise: they go on until the interval of the ratio is
narrow, whatever its place (a fixed-width interval: Y. S. Chow, H. Robbins, "On the asymptotic
theory of fixed-width sequential confidence intervals for the mean", Annals of Mathematical
Statistics 36, 1965). Stopping at the first verdict would find one sooner or later.

On a cluster a launch stays together: both on one node, which it has for itself. Its steps are told
here in the order in which they were taken there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.ab.environments import Environment, find_python
from bench.baselines.configuration import others
from bench.baselines.machines import other_machine
from bench.baselines.verdicts import launch_ratios
from bench.errors import BenchError
from bench.measure.cluster import Cluster, a_slot
from bench.measure.outcome import StepTime
from bench.measure.submitted import NodeLost
from bench.statistics import MINIMUM_LAUNCHES, launch_interval
from bench.training.machine import machine

TakeStep = Callable[[], StepTime]
"""Takes one training step in a worker, timed by the worker's own clock."""

Launch = Callable[[], tuple[TakeStep, TakeStep]]
"""Starts a worker on each side, ending those before."""

WARMUP_STEPS = 2
ROUNDS = 20
"""On each side in one launch; an even number, as a pair has its mirror image."""

LAUNCHES = (MINIMUM_LAUNCHES, 24)
"""The fewest and the most."""

WIDTH = 0.05
"""Narrow enough: an interval about 10 % then lies beyond the threshold of 5 % whole."""


@dataclass
class PairedRounds:
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
    launch: Launch, rounds: int = ROUNDS, launches: tuple[int, int] = LAUNCHES, width: float = WIDTH
) -> PairedRounds:
    """`rounds` on each side in each launch; at least the fewest launches, at most the most, until
    the interval is narrower than `width`. Raises what a step or the launch raises."""
    fewest, most = launches
    taken = PairedRounds()
    while taken.launches < fewest or (
        taken.launches < most and (taken.launches < MINIMUM_LAUNCHES or not taken.narrow(width))
    ):
        before, after = interleave(*launch(), rounds)
        taken.baseline += before
        taken.contender += after
        taken.launches += 1
    return taken


def interleave(
    baseline: TakeStep, contender: TakeStep, rounds: int
) -> tuple[list[StepTime], list[StepTime]]:
    """Each side's rounds after the warm-up, in turn."""
    before: list[StepTime] = []
    after: list[StepTime] = []
    for number in range(WARMUP_STEPS + rounds):
        if number % 2 == 0:
            before.append(baseline())
            after.append(contender())
        else:
            after.append(contender())
            before.append(baseline())
    return before[WARMUP_STEPS:], after[WARMUP_STEPS:]


# --- on a cluster --------------------------------------------------------------------------------

Keys = tuple[str, str]
Both = tuple[list[StepTime], list[StepTime]]


class Failed(Exception):
    """A side's case has failed. `records`: what both sides say of it, where that was on a node."""

    def __init__(self, records: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__()
        self.records = list(records)


@dataclass(frozen=True)
class SideAsked:
    """What a node needs to be one side: as `Environment` and its `start_select` take it."""

    python: Path
    option: str
    label: str
    clock: str
    request: Mapping[str, Any]
    step: Mapping[str, Any]
    limits: Mapping[str, Any]


class Far:
    """Launches on the nodes of `cluster` that comparisons take for this machine.

    BenchError where there are none, and where a node's environments have other versions than those
    of the same path here, or read other models.
    """

    def __init__(self, cluster: Cluster, sides: Sequence[SideAsked]) -> None:
        here = machine()
        self._cluster, self._sides = cluster, tuple(sides)
        self._nodes = [node for node in cluster.nodes if not other_machine(here, node.machine)]
        if not self._nodes:
            raise BenchError(f"--cluster {cluster.address}: no node of it is a machine like this")
        self._slot = a_slot(self._nodes)
        self._at_once = int(sum(node.gpus for node in self._nodes)) or len(self._nodes)

    def check(
        self, versions: Sequence[Mapping[str, str]], decided: Sequence[Mapping[str, Any]]
    ) -> None:
        """Open both environments on every node: they have these versions there, and read of models
        and adapters what is read here."""
        asked = [
            (node, self._cluster.submit(found_here, self._sides, nodes=[node], **self._slot))
            for node in self._nodes
        ]
        for node, task in asked:
            try:
                answer = task.answer()
            except (BenchError, NodeLost) as error:
                raise BenchError(f"on node {node.name}: {error}") from None
            for side, mine, read, (theirs, read_there) in zip(
                self._sides, versions, decided, answer, strict=True
            ):
                if mine != theirs:
                    raise BenchError(
                        f"{side.option} {side.label}: on node {node.name} it has other versions: "
                        f"{dict(theirs)}, here {dict(mine)}"
                    )
                if read != read_there:
                    raise BenchError(
                        f"{side.option} {side.label}: node {node.name} reads something else of "
                        f"the models or the adapter than here: "
                        f"{'; '.join(others(read, read_there)) or 'other cases'}"
                    )

    def launches(self, keys: Keys, rounds: int) -> Launch:
        """The next launch of a case, at each call; as many are under way as nodes can take."""
        under_way: deque[Any] = deque()

        def launch() -> tuple[TakeStep, TakeStep]:
            if not under_way:
                under_way.extend(
                    self._cluster.submit(
                        launch_here, self._sides, keys, rounds, nodes=self._nodes, **self._slot
                    )
                    for _ in range(self._at_once)
                )
            try:
                taken = under_way.popleft().answer()
            except NodeLost as lost:
                raise BenchError(f"{keys[0]}: {lost}") from None
            if isinstance(taken, list):
                raise Failed(taken)
            before, after = (iter(steps) for steps in taken)
            return before.__next__, after.__next__

        return launch


_open: dict[Any, list[Environment]] = {}
_loaded: dict[Any, Keys] = {}


def found_here(
    sides: tuple[SideAsked, SideAsked],
) -> list[tuple[Mapping[str, str], Mapping[str, Any]]]:
    """What both environments have on this node, and what they read of the models there."""
    return [(environment.versions, environment.decided) for environment in _opened(sides)[1]]


def launch_here(
    sides: tuple[SideAsked, SideAsked], keys: Keys, rounds: int
) -> Both | list[dict[str, Any]]:
    """Every step of a launch, the warm-up's too; both records where a side's case has failed."""
    which, environments = _opened(sides)
    again = _loaded.get(which) == keys
    _loaded[which] = keys
    ready = [
        e.relaunch() if again else e.prepare(k) for e, k in zip(environments, keys, strict=True)
    ]
    taken: Both = ([], [])

    def step_of(number: int) -> TakeStep:
        def step() -> StepTime:
            time = environments[number].step()
            if time is None:
                raise Failed
            taken[number].append(time)
            return time

        return step

    try:
        if all(ready):
            interleave(step_of(0), step_of(1), rounds)
            return taken
    except Failed:
        pass
    _loaded.pop(which)
    return [environment.finish([], {}) for environment in environments]


def _opened(sides: tuple[SideAsked, SideAsked]) -> tuple[Any, list[Environment]]:
    """Both environments, which stay for the next launch on this node and its GPU."""
    which = (repr(sides), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if which not in _open:
        for python in (side.python for side in sides):
            if not python.exists():
                raise BenchError(f"{python} is not on a node of the cluster: it must be on each")
        found = []
        for side in sides:
            python = find_python(str(side.python), side.option)
            found.append(Environment(python, side.option, side.label, side.clock).__enter__())
        for environment in found:
            environment.wait_open()
        for environment, side in zip(found, sides, strict=True):
            environment.start_select(side.request, side.step, side.limits)
        for environment in found:
            environment.wait_select()
        _open[which] = found
    return which, _open[which]
