"""What becomes of a case that fails in any way, and of the one after it."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
from engine_support import MIB, failure, limits, workers
from measure_support import MODELS, shared_session, tiny_case

from bench.measure import CaseFailed, Session
from bench.measure import running as runs


@pytest.fixture
def session() -> Session:
    return shared_session()


@pytest.mark.parametrize(
    ("kind", "step", "name", "phase", "says"),
    [
        ("raise", 1, "crashed", "first-step", "ValueError: injected"),
        ("raise", 2, "crashed", "steady-step", "ValueError: injected"),
        ("raise", 3, "crashed", "timing", "ValueError: injected"),
        ("abort", 1, "crashed", "first-step", "SIGABRT"),
        ("segfault", 2, "crashed", "steady-step", "SIGSEGV: Fatal Python error"),
        ("kill", 3, "crashed", "timing", "SIGKILL"),
        ("exit", 2, "crashed", "steady-step", "exit status 3"),
        ("memory", 3, "oom", "timing", "MemoryError"),
        ("nan", 1, "diverged", "first-step", "the loss is nan"),
        ("nan", 4, "diverged", "timing", "the loss is nan"),
    ],
)
def test_faults_have_their_outcome(
    session: Session, kind: str, step: int, *, name: str, phase: str, says: str
) -> None:
    outcome = failure(session, tiny_case("opt", scenario=f"fault-{kind}-{step}"))
    assert (outcome.name, outcome.phase) == (name, phase)
    assert says in outcome.message
    assert outcome.peak_allocated_bytes > 0


@pytest.mark.parametrize(("step", "phase"), [(1, "first-step"), (2, "steady-step"), (3, "timing")])
def test_a_hang_is_killed_at_the_limit(session: Session, step: int, phase: str) -> None:
    with limits(session, seconds=2):
        outcome = failure(session, tiny_case("opt", scenario=f"fault-hang-{step}"))
    assert (outcome.name, outcome.phase) == ("timed-out", phase)
    assert "2 s" in outcome.message


def test_a_stopped_worker_times_out(session: Session) -> None:
    with limits(session, seconds=1), session.start(tiny_case("opt")) as running:
        os.kill(running.pid, signal.SIGSTOP)
        with pytest.raises(CaseFailed, match="timed-out in load"):
            running.prepare()
    assert workers(session) == []


def test_a_failed_case_stays_failed(session: Session) -> None:
    with session.start(tiny_case("opt", scenario="fault-raise-1")) as running:
        for _ in range(2):
            with pytest.raises(CaseFailed, match="injected"):
                running.prepare()
        assert running.failed is not None


def test_an_error_while_loading_is_recorded(session: Session) -> None:
    config = {**MODELS["distilbert"][0], "dim": 30}  # not a multiple of the heads
    case = dataclasses.replace(tiny_case("distilbert"), config=config)
    outcome = failure(session, case)
    assert (outcome.name, outcome.phase) == ("crashed", "load")
    assert "30" in outcome.message


def test_a_real_error_in_the_first_step_is_recorded(session: Session) -> None:
    outcome = failure(session, tiny_case("opt", seq_len=500))  # 128 positions
    assert (outcome.name, outcome.phase) == ("crashed", "first-step")


@pytest.mark.parametrize(
    ("limit", "case", "phase"),
    [
        (8 * MIB, tiny_case("opt"), "load"),
        (200 * MIB, tiny_case("distilbert", batch_size=2000), "first-step"),
    ],
)
def test_a_memory_limit_is_an_outcome(session: Session, limit: int, case, phase: str) -> None:
    if phase == "load":
        config = {**MODELS["opt"][0], "vocab_size": 200_000}
        case = dataclasses.replace(case, config=config)
    with limits(session, memory=limit):
        outcome = failure(session, case)
    assert (outcome.name, outcome.phase) == ("oom", phase)
    assert outcome.peak_allocated_bytes <= limit


@pytest.mark.parametrize(
    ("before", "after", "name", "says"),
    [
        (7, 7, "crashed", "SIGKILL"),  # by somebody: the limit itself makes allocations fail
        (7, 8, "oom", "the kernel ran out of memory"),
        (None, None, "oom", "a memory limit set and no kernel to ask"),
    ],
)
def test_a_kill_under_a_memory_limit_is_what_the_kernel_says_it_is(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: int | None,
    after: int | None,
    name: str,
    says: str,
) -> None:
    counter = tmp_path / "vmstat"
    monkeypatch.setattr(runs, "KILL_COUNTERS", (str(counter),))

    def count(kills: int | None) -> None:
        if kills is not None:
            counter.write_text(f"pgfault 12345\noom_kill {kills}\nthp_fault_alloc 0\n")

    count(before)
    with limits(session, memory=10**10), session.start(tiny_case("opt")) as running:
        running.prepare()
        os.kill(running.pid, signal.SIGKILL)
        count(after)
        with pytest.raises(CaseFailed) as failed:
            running.step()
    found = failed.value.outcome
    assert (found.name, found.phase) == (name, "timing")
    assert says in found.message
    assert found.peak_allocated_bytes == running.measurement.peak_allocated_bytes


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="not Linux")
def test_linux_counts_its_kills() -> None:
    assert runs.kernel_kills() is not None


def test_weights_that_explode_diverge(session: Session) -> None:
    outcome = failure(session, tiny_case("distilbert", learning_rate=1e30))
    assert (outcome.name, outcome.phase) == ("diverged", "steady-step")


def test_a_loss_that_does_not_fall_diverges(session: Session) -> None:
    with session.start(tiny_case("distilbert", learning_rate=0.0)) as running:
        running.prepare()
        with pytest.raises(CaseFailed, match="diverged in loss-check: the loss did not fall"):
            running.check_loss(steps=3)
