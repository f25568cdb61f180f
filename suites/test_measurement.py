"""Memory and step time of each scenario and precision, each case in a process of its own."""

from __future__ import annotations

import pytest

from bench.formulas import lora_parameters
from bench.measure import CaseFailed, WorkerClock
from bench.scenarios.subjects import Subject

CLOCK = WorkerClock()


@pytest.mark.measured
@pytest.mark.benchmark(timer=CLOCK, group="step")
def test_step(
    measured: Subject,
    measuring,
    launches,
    step_options,
    timed_rounds,
    benchmark,
    record,
    pytestconfig,
) -> None:
    """One training step: peak memory in one pass, seconds by the worker's clock in another."""
    ledger = measured.ledger
    parameters = lora_parameters(ledger)
    record.ledger(ledger)
    record.parameters(parameters)
    record.detail |= step_options.recorded()
    try:
        for _ in launches:
            with measuring.start(measured.case(step_options), clock=CLOCK) as running:
                if running.reruns:  # its node was lost
                    record.detail["reruns"] = running.reruns
                measurement = running.prepare()
                record.measurement(measurement)
                assert measurement.trainable_parameters == parameters.trainable
                assert measurement.adapted_layers == ledger.adapted_layers

                taken = timed_rounds.take(running.step)
                if within := pytestconfig.option.check_loss:
                    running.check_loss(within)
            if record.times(taken[timed_rounds.warmup :]):
                steps = taken
    except CaseFailed as failure:
        record.outcome = failure.outcome.name
        record.detail["failure"] = str(failure)
        if failure.outcome.name == "oom":
            pytest.xfail(f"out of memory: {failure}")
        pytest.fail(str(failure), pytrace=False)
    told = iter(steps)
    benchmark.pedantic(
        lambda: CLOCK.advance(next(told).total_seconds),
        rounds=len(steps) - timed_rounds.warmup,
        warmup_rounds=timed_rounds.warmup,
    )
