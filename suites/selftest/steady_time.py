"""Preloaded into a test's workers before `bench.ab.slower`: processor time that a test can rely on.

Every phase of a step takes a millisecond with a spread of 1 %, drawn from a seed, whatever the
machine does meanwhile; the two workers of a comparison draw differently.
"""

from __future__ import annotations

import time
from multiprocessing import Value
from random import Random
from typing import Any

from bench.measure.worker import Worker

PHASE, SPREAD, READING = 1e-3, 1e-5, 1e-7

_started = Value("i", 0)  # shared with the workers, which are forks of the process that loads this
_step = Worker.one_step
_now = 0.0
_drawn: Random | None = None


def _read() -> float:
    """Every reading takes a moment, so that waiting for a time comes to an end."""
    global _now
    _now += READING
    return _now


def _steady_step(self: Any, mark: Any = None) -> Any:
    def worked(phase: str) -> None:
        global _now, _drawn
        if _drawn is None:
            with _started.get_lock():
                _drawn = Random(_started.value)
                _started.value += 1
        _now += max(0.0, _drawn.gauss(PHASE, SPREAD))
        mark(phase)

    return _step(self, mark and worked)


time.process_time = _read
Worker.one_step = _steady_step  # type: ignore[method-assign]
