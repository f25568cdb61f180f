"""What makes two machines of two runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench.training.machine import Machine
from bench.units import format_bytes

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
