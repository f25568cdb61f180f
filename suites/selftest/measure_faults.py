"""Preloaded into a test's fork server: steps that fail when the scenario's label says so.

The label is "fault-KIND-N": what goes wrong in the worker's N-th step (the first, the steady, then
the timed ones).
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from bench.measure.worker import Worker

_step = Worker.one_step


def _faulty(self: Any, *args: Any) -> torch.Tensor:
    self.steps = getattr(self, "steps", 0) + 1
    label = self._case.scenario.split("-")
    if label[0] == "fault" and self.steps == int(label[2]):
        match label[1]:
            case "raise":
                raise ValueError("injected")
            case "hang":
                time.sleep(600)
            case "abort":
                os.abort()
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "nan":
                return torch.tensor(float("nan"))
            case "memory":
                raise MemoryError
    return _step(self, *args)


Worker.one_step = _faulty  # type: ignore[method-assign]
