"""The launches of a comparison on nodes of a cluster that are machines like this one.

A launch is a pair of processes, and stays together: both on one node, which it has for itself. Its
steps are told here in the order in which they were taken there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ab.environments import Environment, find_python
from bench.ab.rounds import Launch, Step, interleave
from bench.baselines.verdicts import other_machine
from bench.errors import BenchError
from bench.measure.cluster import Cluster, NodeLost, a_slot
from bench.measure.outcome import StepTime
from bench.training.machine import machine

Keys = tuple[str, str]


Both = tuple[list[StepTime], list[StepTime]]


class Failed(Exception):
    """A side's case has failed. `records`: what both sides say of it, where that was on a node."""

    def __init__(self, records: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__()
        self.records = list(records)


@dataclass(frozen=True)
class Asked:
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
    of the same path here.
    """

    def __init__(self, cluster: Cluster, sides: Sequence[Asked]) -> None:
        here = machine()
        self._cluster, self._sides = cluster, tuple(sides)
        self._nodes = [node for node in cluster.nodes if not other_machine(here, node.machine)]
        if not self._nodes:
            raise BenchError(f"--cluster {cluster.address}: no node of it is a machine like this")
        self._slot = a_slot(self._nodes)
        self._at_once = int(sum(node.gpus for node in self._nodes)) or len(self._nodes)

    def check(self, versions: Sequence[Mapping[str, str]]) -> None:
        """Open both environments on every node."""
        asked = [
            (node, self._cluster.submit(versions_here, self._sides, nodes=[node], **self._slot))
            for node in self._nodes
        ]
        for node, task in asked:
            for side, mine, theirs in zip(self._sides, versions, task.answer(), strict=True):
                if mine != theirs:
                    raise BenchError(
                        f"{side.option} {side.label}: on node {node.name} it has other versions: "
                        f"{dict(theirs)}, here {dict(mine)}"
                    )

    def launches(self, keys: Keys, rounds: int) -> Launch:
        """The next launch of a case, at each call; as many are under way as nodes can take."""
        under_way: deque[Any] = deque()

        def launch() -> tuple[Step, Step]:
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


def versions_here(sides: tuple[Asked, Asked]) -> list[Mapping[str, str]]:
    """What both environments have on this node."""
    return [environment.versions for environment in _opened(sides)[1]]


def launch_here(sides: tuple[Asked, Asked], keys: Keys, rounds: int) -> Both | list[dict[str, Any]]:
    """Every step of a launch, the warm-up's too; both records where a side's case has failed."""
    which, environments = _opened(sides)
    again = _loaded.get(which) == keys
    _loaded[which] = keys
    ready = [
        e.relaunch() if again else e.prepare(k) for e, k in zip(environments, keys, strict=True)
    ]
    taken: Both = ([], [])

    def step_of(number: int) -> Step:
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


def _opened(sides: tuple[Asked, Asked]) -> tuple[Any, list[Environment]]:
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
