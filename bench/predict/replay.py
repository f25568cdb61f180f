"""A trace's allocations replayed through an allocator: peaks, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from bench.training.options import PHASES

if TYPE_CHECKING:
    from bench.predict.allocator import CachingAllocator, ExactAllocator
    from bench.predict.trace import Trace


@dataclass(frozen=True)
class Replayed:
    """Peaks in bytes: of loading, the first step and the steady one.

    `breakdown` sums to `peak_allocated_bytes`, the steady step's peak; `peak_by_phase` and
    `breakdown_by_phase` have both for each of its phases (all that is there meanwhile included);
    `peak_phase` and `peak_operation` say where in the step it lies. `peak_reserved_bytes` is the
    largest until the end, loading included: nothing that was reserved is given back.
    """

    loaded_bytes: int
    load_peak_allocated_bytes: int
    first_step_peak_allocated_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    peak_by_phase: dict[str, int]
    breakdown: dict[str, int]
    breakdown_by_phase: dict[str, dict[str, int]]
    peak_phase: str
    peak_operation: str


def replay(
    trace: Trace, allocator: CachingAllocator | ExactAllocator, categories: tuple[str, ...]
) -> Replayed:
    """Run every event of the trace through a fresh `allocator`."""
    starts = {name: index for index, name in trace.marks if name in ("first-step", "steady-step")}
    bounds = (0, starts["first-step"], starts["steady-step"], len(trace.events))
    events, sizes = trace.events, trace.sizes
    blocks = [0] * len(sizes)
    peaks, ends, at = [], [], 0
    by_phase: dict[str, int] = {}
    places: dict[str, int] = {}  # where in the events a phase's peak lies
    for start, end in pairwise(bounds):
        peak = allocator.allocated_bytes
        at = start
        begin = dict(_phases(trace, start, end))
        by_phase, places, phase_peak, phase = {}, {}, peak, ""
        for index in range(start, end):
            if index in begin:
                phase = begin[index]
                phase_peak = by_phase.get(phase, -1)
                if allocator.allocated_bytes > phase_peak:
                    phase_peak = by_phase[phase] = allocator.allocated_bytes
                    places[phase] = index - 1  # what was there before its first event
            event = events[index]
            if event > 0:
                blocks[event] = allocator.allocate(event, sizes[event])
                allocated = allocator.allocated_bytes
                if allocated > peak:
                    peak, at = allocated, index
                if allocated > phase_peak:
                    phase_peak = by_phase[phase] = allocated
                    places[phase] = index
            else:
                allocator.release(-event)
        peaks.append(peak)
        ends.append(allocator.allocated_bytes)
    parts = _made_of(trace, blocks, {at, *places.values()}, categories)
    phase = [name for index, name in trace.marks if index <= at][-1]
    return Replayed(
        loaded_bytes=ends[0],
        load_peak_allocated_bytes=peaks[0],
        first_step_peak_allocated_bytes=peaks[1],
        peak_allocated_bytes=peaks[2],
        peak_reserved_bytes=allocator.reserved_bytes,
        peak_by_phase={name: by_phase[name] for name in PHASES if name in by_phase},
        breakdown=parts[at],
        breakdown_by_phase={name: parts[places[name]] for name in PHASES if name in places},
        peak_phase=phase,
        peak_operation=trace.makers[abs(trace.events[at])] if trace.events else "",
    )


def _made_of(
    trace: Trace, blocks: list[int], places: set[int], categories: tuple[str, ...]
) -> dict[int, dict[str, int]]:
    """By place in the events: the bytes that are there after it, by what they are for."""
    parts, found = dict.fromkeys(categories, 0), {}
    for index, event in enumerate(trace.events[: max(places) + 1]):
        number = abs(event)
        parts[trace.categories[number]] += blocks[number] if event > 0 else -blocks[number]
        if index in places:
            found[index] = dict(parts)
    return found


def _phases(trace: Trace, start: int, end: int) -> Iterator[tuple[int, str]]:
    """Where a phase of a step begins, in the events of that step; the last of equal places."""
    for index, name in trace.marks:
        if start <= index < end and name in PHASES:
            yield index, name
