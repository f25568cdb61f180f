"""Workers: what a healthy case reports, and what becomes of one that fails in any way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from measure_support import MODELS, shared_session, tiny_case

from bench.baselines.runlog import Recorder
from bench.errors import BenchError
from bench.measure import CaseFailed, Measurement, Outcome, Session, WorkerClock, engine
from bench.scenarios.subjects import Request, select

HERE = Path(__file__).parent
MIB = 2**20


@pytest.fixture
def session() -> Session:
    return shared_session()


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
    return psutil.Process(session._server.pid).children(recursive=True)


def test_a_healthy_case_reports_everything(session: Session) -> None:
    with session.start(tiny_case("phi3", "nf4")) as running:
        m = running.prepare()
        times = [running.step() for _ in range(3)]
        before, after = running.check_loss()
    assert m.outcome.name == "ok"
    assert m.adapted_layers == MODELS["phi3"][3]
    assert m.quantized_layers == 8
    assert m.tokens_per_step == 64
    assert 0 < m.loaded_bytes < m.first_step_peak_allocated_bytes <= m.peak_allocated_bytes
    assert m.outcome.peak_allocated_bytes >= m.peak_allocated_bytes
    assert m.peak_rss_bytes > m.rss_before_bytes > m.file_pages_bytes > 0
    assert m.peak_reserved_bytes is None
    assert m.operations["bitsandbytes.gemm_4bit.default"] == 8
    assert m.flops > 0
    assert m.allocated_bytes_total > 0
    assert (m.threads, m.device) == (1, "cpu")
    assert Measurement.from_dict(json.loads(json.dumps(m.to_dict()))) == m
    for t in times:
        phases = t.forward_seconds + t.backward_seconds + t.optimizer_seconds
        assert t.total_seconds == pytest.approx(phases)
        assert min(t.forward_seconds, t.backward_seconds, t.optimizer_seconds) > 0
    assert running.clock() == pytest.approx(sum(t.total_seconds for t in times))
    assert after < before


def test_what_is_known_of_the_gpu_is_recorded(session: Session) -> None:
    """A CPU's measurement, with what a GPU's has besides filled in."""
    (subject,) = select(
        Request(models=("opt-350m",), scenarios=("query",), precisions=("fp32",))
    ).measured.values()
    on_cpu = measure(session, tiny_case("opt"), steps=0)
    on_gpu = dataclasses.replace(on_cpu, peak_reserved_bytes=4 * MIB, process_bytes=500 * MIB)
    without, with_gpu = (Recorder("measurement", subject) for _ in range(2))
    without.measurement(on_cpu)
    with_gpu.measurement(on_gpu)
    gpu_only = {"peak_reserved_bytes": 4 * MIB, "process_bytes": 500 * MIB}
    assert with_gpu.metrics == without.metrics | gpu_only
    assert not gpu_only.keys() & without.metrics.keys()


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4-dq"])
def test_exact_metrics_repeat(session: Session, precision: str) -> None:
    noisy = {"peak_rss_bytes": 0, "rss_before_bytes": 0, "file_pages_bytes": 0}
    case = tiny_case("distilbert", precision, padded=True)
    first, second = (
        dataclasses.replace(measure(session, case, steps=0), **noisy) for _ in range(2)
    )
    assert first == second


def test_nothing_leaks_from_case_to_case(session: Session) -> None:
    alone = measure(session, tiny_case("opt", "bf16"))
    measure(session, tiny_case("phi3", "int8"))
    after = measure(session, tiny_case("opt", "bf16"))
    noisy = {"peak_rss_bytes": 0, "rss_before_bytes": 0, "file_pages_bytes": 0}
    assert alone.to_dict() | noisy == after.to_dict() | noisy


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
    monkeypatch.setattr(engine, "KILL_COUNTERS", (str(counter),))

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
    assert engine._kernel_kills() is not None


def test_weights_that_explode_diverge(session: Session) -> None:
    outcome = failure(session, tiny_case("distilbert", learning_rate=1e30))
    assert (outcome.name, outcome.phase) == ("diverged", "steady-step")


def test_a_loss_that_does_not_fall_diverges(session: Session) -> None:
    with session.start(tiny_case("distilbert", learning_rate=0.0)) as running:
        running.prepare()
        with pytest.raises(CaseFailed, match="diverged in loss-check: the loss did not fall"):
            running.check_loss(steps=3)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_a_model_that_scales_its_weights_by_width_learns(session: Session, precision: str) -> None:
    with session.start(tiny_case("t5", precision, seq_len=48)) as running:
        running.prepare()
        before, after = running.check_loss(20)
    assert after < before


def test_a_session_ends_everything() -> None:
    with Session(device="cpu") as session:
        running = session.start(tiny_case("opt"))
        running.prepare()
        pids = [session._server.pid, running.pid]
        assert all(map(psutil.pid_exists, pids))
    assert not any(map(psutil.pid_exists, pids))
    with pytest.raises(BenchError, match="closed"):
        session.start(tiny_case("opt"))


def test_a_server_that_is_killed_takes_one_case_with_it() -> None:
    """Between two cases it costs none; during a case that one has crashed, and the run goes on."""
    with Session(device="cpu", time_limit_seconds=60) as session:
        first = measure(session, tiny_case("opt"))
        os.kill(session._server.pid, signal.SIGKILL)
        second = measure(session, tiny_case("opt"))
        assert (first.loss, first.peak_allocated_bytes) == (
            second.loss,
            second.peak_allocated_bytes,
        )
        with session.start(tiny_case("opt")) as running:
            running.prepare()
            os.kill(session._server.pid, signal.SIGKILL)
            psutil.Process(running.pid).wait(timeout=10)
            with pytest.raises(CaseFailed, match="crashed in timing: the measuring process ended"):
                running.step()
        assert measure(session, tiny_case("opt")).outcome.name == "ok"
        pids = [session._server.pid]
    assert not any(map(psutil.pid_exists, pids))


def test_a_missing_module_says_so() -> None:
    with (
        Session(preload=["no_such_module"]) as session,
        pytest.raises(BenchError, match="no_such_module"),
    ):
        session.start(tiny_case("opt"))


def test_without_a_gpu_a_worker_is_always_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build without a driver: an interpreter of its own would cost each case seconds."""
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    with (
        Session(device="cpu", preload=["measure_bad_fork"]) as session,
        session.start(tiny_case("opt")) as running,
    ):
        assert running.prepare().outcome.name == "ok"
        server, worker = (
            psutil.Process(pid).cmdline() for pid in (session._server.pid, running.pid)
        )
        assert worker == server


_PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.path.insert(0, {here!r})
from measure_support import tiny_case
from bench.measure import Session
with Session(device="cpu") as session, session.start(tiny_case("opt")) as running:
    running.prepare()
    print(session._server.pid, running.pid, flush=True)
    while True:
        running.step()
"""


def test_nothing_outlives_the_parent() -> None:
    """Neither a Ctrl-C, sent to the whole group as a terminal does, nor a kill -9 with a worker
    that hangs leaves a process behind."""
    signals = (signal.SIGINT, signal.SIGKILL)
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", _PARENT.format(here=str(HERE))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[1],
            start_new_session=True,
        )
        for _ in signals
    ]
    try:
        for parent, how in zip(parents, signals, strict=True):
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert len(pids) == 2
            if how == signal.SIGKILL:
                os.kill(pids[1], signal.SIGSTOP)
            os.killpg(parent.pid, how)
            _, said = parent.communicate(timeout=30)
            if how == signal.SIGINT:
                assert said.rstrip().endswith("KeyboardInterrupt")
            deadline = time.monotonic() + 10
            while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(map(psutil.pid_exists, pids)), how
    finally:
        for parent in parents:
            parent.kill()


def test_the_clock_gives_pytest_benchmark_the_workers_seconds(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # benchmarks are off under xdist
    pytester.makepyfile(
        """
        import pytest
        from bench.measure import WorkerClock

        CLOCK = WorkerClock()
        durations = iter([9.0, 0.25, 0.5, 0.75])

        @pytest.mark.benchmark(timer=CLOCK)
        def test_step(benchmark):
            step = lambda: CLOCK.advance(next(durations))
            benchmark.pedantic(step, rounds=3, warmup_rounds=1)
            assert benchmark.stats.stats.data == [0.25, 0.5, 0.75]
        """
    )
    pytester.runpytest("--benchmark-json=run.json").assert_outcomes(passed=1)
    options = json.loads((pytester.path / "run.json").read_text())["benchmarks"][0]["options"]
    assert "clock" in options["timer"].lower()


def test_the_clock_stands_still_by_itself() -> None:
    clock = WorkerClock()
    clock.advance(0.5)
    assert clock() == clock() == 0.5


def test_importing_the_engine_imports_no_torch() -> None:
    code = (
        "import sys, bench.measure, bench.training.cases, bench.models.precision;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])
