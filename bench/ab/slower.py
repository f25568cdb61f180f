"""Preloaded into the experiment's workers: steps that take longer, as the scenario's label says.

A worker whose case has the scenario `slower-10` spends a tenth more time in every phase of every
step, computing nothing. Nobody else imports this module: it changes `Worker` for good.
"""

from __future__ import annotations

import time
from typing import Any

from bench.measure.worker import Worker

PREFIX = "slower-"
_step = Worker.one_step


def _slower_step(self: Any, mark: Any = None) -> Any:
    label = self._case.scenario
    if mark is None or not label.startswith(PREFIX):
        return _step(self, mark)
    share = float(label.removeprefix(PREFIX)) / 100
    begun = time.process_time()

    def spin(phase: str) -> None:
        nonlocal begun
        end = time.process_time() * (1 + share) - begun * share
        while phase != "forward" and time.process_time() < end:
            pass
        mark(phase)
        begun = time.process_time()

    return _step(self, spin)


Worker.one_step = _slower_step  # type: ignore[method-assign]
