"""A case measured whole or failing, under limits, in the session that the tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
import pytest
from measure_support import tiny_case

from bench.measure import CaseFailed, Measurement, Outcome, Session

MIB = 2**20


def measure(session: Session, case, steps: int = 1) -> Measurement:
    with session.start(case) as running:
        measurement = running.prepare()
        for _ in range(steps):
            running.step()
        return measurement


@contextlib.contextmanager
def limits(session: Session, memory: int | None = None, seconds: float = 60) -> Iterator[None]:
    before = session.memory_limit_bytes, session.time_limit_seconds
    session.memory_limit_bytes, session.time_limit_seconds = memory, seconds
    try:
        yield
    finally:
        session.memory_limit_bytes, session.time_limit_seconds = before


def failure(session: Session, case, steps: int = 2) -> Outcome:
    """How `case` failed; no worker may stay afterwards, and the next case must run."""
    with pytest.raises(CaseFailed) as failed:
        measure(session, case, steps)
    assert workers(session) == []
    with limits(session):
        assert measure(session, tiny_case("opt")).outcome.name == "ok"
    return failed.value.outcome


def workers(session: Session) -> list[psutil.Process]:
    return psutil.Process(session.pid).children(recursive=True)
