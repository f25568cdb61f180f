"""Preloaded into workers: on a CPU, steps are timed by the process's processor time.

A process that shares its cores waits for them, in slices as long as a whole small step; what it
waits says nothing about the code. Processor time (all threads together) leaves the waiting out;
what is left of the neighbours are the caches and the memory bandwidth that they take.

A step that sleeps, or waits for a disk or a lock, looks too fast by this clock: `--clock wall`
counts that too. On a GPU nothing changes: there the device's own events are the clock.
"""

from __future__ import annotations

import time

from bench.measure import worker


class ProcessorClock(worker._CpuClock):
    """Reads the process's processor time at each mark."""

    def mark(self, phase: str) -> None:
        self._readings.append((phase, time.process_time()))


worker._CpuClock = ProcessorClock  # type: ignore[misc]
