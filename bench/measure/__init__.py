"""Measuring one training step: memory, time and exact cost, each case in a process of its own."""

from __future__ import annotations

from bench.measure.engine import WARMUP_ROUNDS, Session
from bench.measure.outcome import CaseFailed, Measurement, Outcome, StepTime
from bench.measure.rounds import Rounds
from bench.measure.running import Running, WorkerClock
from bench.measure.spread import Spread

__all__ = [
    "WARMUP_ROUNDS",
    "CaseFailed",
    "Measurement",
    "Outcome",
    "Rounds",
    "Running",
    "Session",
    "Spread",
    "StepTime",
    "WorkerClock",
]
