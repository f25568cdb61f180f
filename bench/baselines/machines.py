"""What makes two machines of two runs, and so which kinds of machine a cluster's nodes are."""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.errors import BenchError
from bench.measure.nodes import Node
from bench.training.machine import Machine
from bench.units import counted, format_bytes

MEMORY = ("id", "memory", "accelerator", "memory limit")
MACHINE = (
    "id", "processor", "processor model", "instruction sets", "cores", "memory", "accelerator",
    "driver", "threads", "processor limit", "memory limit",
)  # fmt: skip
"""What makes a machine another one, for a case's end and for what is measured."""

_SAME_MEMORY = 0.01
"""A kernel keeps more or less of the same memory for itself."""


def other_machine(old: Machine, new: Machine, parts: Iterable[str] = MACHINE) -> str:
    """What makes these two machines; "" if they are one."""
    found: list[str] = []
    for part in parts:
        left, right = _part(old, part), _part(new, part)
        if part == "instruction sets":
            found += _other_sets(old.instruction_sets, new.instruction_sets)
        elif part == "memory":
            if abs(old.memory_bytes - new.memory_bytes) > _SAME_MEMORY * old.memory_bytes:
                found.append(f"memory {left} -> {right}")
        elif left != right:
            found.append(f"{part} {left} -> {right}")
    return f"another machine: {', '.join(found)}" if found else ""


def _other_sets(old: frozenset[str] | None, new: frozenset[str] | None) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield "instruction sets recorded in one run alone"
        return
    for names, what in ((old - new, "without"), (new - old, "with")):
        if names:
            yield f"{what} {' '.join(sorted(names))}"


def _part(machine: Machine, part: str) -> object:
    gpu = machine.accelerator
    match part:
        case "accelerator":
            return f"{gpu.count} x {gpu.name} ({format_bytes(gpu.memory_bytes)})" if gpu else "none"
        case "driver":
            return (gpu.driver or "unknown") if gpu else "none"
        case "processor model":
            return machine.model or "not recorded"
        case "cores":
            return machine.cpu_count
        case "memory":
            return format_bytes(machine.memory_bytes)
        case "processor limit":
            return "none" if machine.cpu_limit is None else f"{machine.cpu_limit:g} cores"
        case "memory limit":
            limit = machine.memory_limit_bytes
            return "none" if limit is None else format_bytes(limit)
    return getattr(machine, part, None)


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
