"""The nodes of a cluster by the machine that they are, as comparisons tell machines apart."""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.baselines.machines import other_machine
from bench.errors import BenchError
from bench.measure.nodes import Node
from bench.training.machine import Machine
from bench.units import counted


@dataclass(frozen=True)
class MachineKind:
    """Nodes whose measurements may stand in one run. `name` is that of its folder in results/: the
    machine's id, with a digest where several kinds of the cluster have that id."""

    name: str
    machine: Machine
    nodes: tuple[Node, ...]

    @property
    def label(self) -> str:
        return f"{self.name} ({counted(len(self.nodes), 'node')})"


def machine_kinds(nodes: Iterable[Node]) -> list[MachineKind]:
    """Each kind of machine among the nodes, by name."""
    groups: list[list[Node]] = []
    for node in nodes:
        for group in groups:
            if not other_machine(group[0].machine, node.machine):
                group.append(node)
                break
        else:
            groups.append([node])
    ids = Counter(group[0].machine.id for group in groups)
    found = [
        MachineKind(
            _name(group[0].machine, ids[group[0].machine.id]), group[0].machine, tuple(group)
        )
        for group in groups
    ]
    return sorted(found, key=lambda kind: kind.name)


def choose_kinds(kinds: Sequence[MachineKind], pattern: str | None) -> list[MachineKind]:
    """Those whose name fits, or all. BenchError, with those that are there, where none does."""
    chosen = [kind for kind in kinds if fnmatch.fnmatchcase(kind.name, pattern or "*")]
    if not chosen:
        there = ", ".join(kind.label for kind in kinds)
        raise BenchError(f"--machine {pattern}: the cluster has no such machine: it has {there}")
    return chosen


def _name(machine: Machine, alike: int) -> str:
    if alike == 1:
        return machine.id
    sets = sorted(machine.instruction_sets or ())
    gib = round(machine.memory_bytes / 2**30)
    told = repr((machine.processor, machine.model, sets, gib, machine.accelerator,
                 machine.cpu_limit, machine.memory_limit_bytes))  # fmt: skip
    return f"{machine.id}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"
