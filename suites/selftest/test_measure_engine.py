"""Workers: what a healthy case reports, and that it is that case alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
from engine_support import MIB, measure
from measure_support import MODELS, shared_session, tiny_case

from bench.baselines.runlog import Recorder
from bench.measure import Measurement, Session, WorkerClock
from bench.scenarios.subjects import Request, select


@pytest.fixture
def session() -> Session:
    return shared_session()


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


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_a_model_that_scales_its_weights_by_width_learns(session: Session, precision: str) -> None:
    with session.start(tiny_case("t5", precision, seq_len=48)) as running:
        running.prepare()
        before, after = running.check_loss(20)
    assert after < before


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
