"""Cases spread over several devices: one at a time on each, every answer with its own case."""

from __future__ import annotations

import contextlib
import threading

import psutil
import pytest
from measure_support import tiny_case
from warm import Warm

from bench.errors import BenchError
from bench.measure import CaseFailed, Rounds, Session, Spread, WorkerClock


class TwoDevices(Session):
    """The CPU under two names. Each name's first case waits for the other's."""

    devices = ("first", "second")

    def __init__(self) -> None:
        super().__init__(device="cpu", time_limit_seconds=60)
        self.both = threading.Barrier(2, timeout=60)
        self.busy: list[str] = []
        self.overlaps: list[str] = []

    def start(self, case, device=None, clock=None):
        self.overlaps += [device] * (device in self.busy)
        self.busy.append(device)
        with contextlib.suppress(threading.BrokenBarrierError):
            self.both.wait()
            self.both.abort()  # only the first two wait
        running = super().start(case, "cpu", clock)
        leave = running.close

        def close() -> None:
            leave()
            if device in self.busy:
                self.busy.remove(device)

        running.close = close
        return running


CASES = [
    tiny_case("opt"),
    tiny_case("distilbert", learning_rate=1e30),
    tiny_case("phi3", "nf4"),
    tiny_case("distilbert"),
    tiny_case("vit"),
]


def test_cases_are_spread_one_at_a_time_on_each_device(warm: Warm) -> None:
    """The exact figures are those of the same cases one after the other."""
    with TwoDevices() as session:
        clock = WorkerClock()
        with Spread(session, CASES, rounds=Rounds.exactly(3), loss_steps=20) as spread:
            taken = {case.id: spread.start(case, clock) for case in CASES}
            assert {each.device for each in taken.values()} == {"first", "second"}
            assert session.overlaps == []
            with pytest.raises(BenchError, match="not among the cases"):
                spread.start(tiny_case("t5"), clock)
    with Session(device="cpu", time_limit_seconds=60) as alone:
        for case in (CASES[0], CASES[2], CASES[3], CASES[4]):
            with taken[case.id] as running, alone.start(case) as reference:
                before = clock()
                mine, expected = running.prepare(), reference.prepare()
                steps = [running.step() for _ in range(3)]
                assert running.check_loss()[1] < running.check_loss()[0]
                for name in ("operations", "breakdown", "flops", "allocated_bytes_total", "loss"):
                    assert getattr(mine, name) == getattr(expected, name), (case.id, name)
                assert clock() - before == pytest.approx(sum(s.total_seconds for s in steps))
                with pytest.raises(BenchError, match="only 3 steps"):
                    running.step()
    with pytest.raises(CaseFailed, match="diverged in steady-step"):
        taken[CASES[1].id].prepare()


def test_leaving_ends_what_still_runs(warm: Warm) -> None:
    with TwoDevices() as session:
        with Spread(session, CASES * 20, rounds=Rounds.exactly(10_000), loss_steps=0):
            while len(session.running) < 2:
                threading.Event().wait(0.01)
            server = psutil.Process(session.pid)
        assert not server.is_running()
    assert [t for t in threading.enumerate() if t.name in TwoDevices.devices] == []


class Together(Session):
    """No case goes on before another one has begun."""

    def __init__(self) -> None:
        super().__init__(device="cpu", time_limit_seconds=60)
        self.both = threading.Barrier(2, timeout=60)

    def start(self, case, device=None, clock=None):
        running = super().start(case, device, clock)
        self.both.wait()
        return running


def test_a_device_named_twice_has_two_cases_at_once(warm: Warm) -> None:
    """As where times are not asked for; the exact figures are those of a case alone."""
    plan = [CASES[0], CASES[3]]
    with (
        Together() as session,
        Spread(
            session, plan, rounds=Rounds.exactly(1), loss_steps=0, devices=("cpu", "cpu")
        ) as spread,
    ):
        measured = [spread.start(case, WorkerClock()).prepare() for case in plan]
    with Session(device="cpu", time_limit_seconds=60) as alone:
        for case, found in zip(plan, measured, strict=True):
            with alone.start(case) as running:
                expected = running.prepare()
            assert found.breakdown_by_phase == expected.breakdown_by_phase
            assert found.operations == expected.operations
