"""A trace's allocations replayed through an allocator: peaks, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.predict.allocator import CachingAllocator, ExactAllocator
    from bench.predict.trace import Trace


@dataclass(frozen=True)
class Replayed:
    """Peaks in bytes: of loading, the first step and the steady one.

    `breakdown` sums to `peak_allocated_bytes`, the steady step's peak; `peak_phase` and
    `peak_operation` say where in the step it lies. `peak_reserved_bytes` is the largest until the
    end, loading included: nothing that was reserved is given back.
    """

    loaded_bytes: int
    load_peak_allocated_bytes: int
    first_step_peak_allocated_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    breakdown: dict[str, int]
    peak_phase: str
    peak_operation: str


def replay(
    trace: Trace, allocator: CachingAllocator | ExactAllocator, categories: tuple[str, ...]
) -> Replayed:
    """Run every event of the trace through a fresh `allocator`."""
    starts = {name: index for index, name in trace.marks if name in ("first-step", "steady-step")}
    bounds = (0, starts["first-step"], starts["steady-step"], len(trace.events))
    blocks = [0] * len(trace.sizes)
    peaks, ends, at = [], [], 0
    for start, end in pairwise(bounds):
        peak = allocator.allocated_bytes
        at = start
        for index in range(start, end):
            event = trace.events[index]
            if event > 0:
                blocks[event] = allocator.allocate(event, trace.sizes[event])
                if allocator.allocated_bytes > peak:
                    peak, at = allocator.allocated_bytes, index
            else:
                allocator.release(-event)
        peaks.append(peak)
        ends.append(allocator.allocated_bytes)
    alive: set[int] = set()
    for event in trace.events[: at + 1]:
        if event > 0:
            alive.add(event)
        else:
            alive.discard(-event)
    breakdown = dict.fromkeys(categories, 0)
    for number in alive:
        breakdown[trace.categories[number]] += blocks[number]
    phase = [name for index, name in trace.marks if index <= at][-1]
    return Replayed(
        loaded_bytes=ends[0],
        load_peak_allocated_bytes=peaks[0],
        first_step_peak_allocated_bytes=peaks[1],
        peak_allocated_bytes=peaks[2],
        peak_reserved_bytes=allocator.reserved_bytes,
        breakdown=breakdown,
        peak_phase=phase,
        peak_operation=trace.makers[abs(trace.events[at])] if trace.events else "",
    )
