"""Measuring one training step: memory, time and exact cost, each case in a process of its own."""

from __future__ import annotations

from bench.measure.engine import Running, Session, WorkerClock
from bench.measure.outcome import CaseFailed, Measurement, Outcome, StepTime

__all__ = [
    "CaseFailed",
    "Measurement",
    "Outcome",
    "Running",
    "Session",
    "StepTime",
    "WorkerClock",
]
