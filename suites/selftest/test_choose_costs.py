"""What a row of `bench choose` costs, against predictions of whole traces; what costs them."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from matrices import matrix

from bench.choose import costs, rows
from bench.errors import BenchError
from bench.models.architectures import Model, load_model
from bench.predict.gpus import fit, gpu_with_memory
from bench.training.cases import Case, StepOptions, with_value

pytestmark = pytest.mark.usefixtures("traced_once")

NARROW = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "num_hidden_layers": 5, "vocab_size": 512, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more", "scenario"),
    matrix(
        [
            ("phi-3-mini", {}, "everything"),
            ("llama-3.2-1b", {}, rows.EVERYTHING),
            ("mixtral-8x7b", {"num_local_experts": 4}, "attention"),
            ("bert-base-cased", {"max_position_embeddings": 600}, "everything"),
        ],
        by=lambda *_: {"a row"},
    ),
)
def test_a_row_says_what_a_prediction_of_whole_traces_says(
    name: str, more: dict[str, Any], scenario: str
) -> None:
    """Its peaks and FLOPs, and each limit: the last value that fits."""
    from bench.predict.evidence import interval
    from bench.predict.journal import BREAKDOWN
    from bench.predict.replay import Replayed, replay
    from bench.predict.result import device_of
    from bench.predict.trace import trace
    from bench.scenarios.subjects import Subject

    found = load_model(name)
    model = Model(f"narrow {name}", {**found.config, **NARROW, **more}, found.auto_class)
    adapter = rows.scenario(scenario).adapter(model, 8)
    case = Subject(model, scenario, adapter, precision="nf4").case(StepOptions(2, 48))
    gpu = gpu_with_memory("620MiB")
    device = device_of(case, gpu)

    def whole(case: Case) -> Replayed:
        return replay(trace(case, device), device.allocator(), BREAKDOWN)

    told = costs.cost(costs.CostAsked(case, gpu, 560))
    own = whole(case)
    assert told.peak_allocated_bytes == own.peak_allocated_bytes
    assert told.peak_reserved_bytes == own.peak_reserved_bytes
    assert told.flops == trace(case, device).flops
    within = interval(case.precision, case.step.loop)
    for what, limit in told.limits.items():
        assert limit is not None
        for value, fits in ((limit.value, True), (limit.value + 1, False)):
            if fits or not limit.bounded:
                at = whole(with_value(case, what, value))
                held = fit(gpu, at.peak_allocated_bytes, at.peak_reserved_bytes, within)
                assert held.fits == fits, (what, value)


def test_a_sequence_that_takes_too_long_to_go_through_is_not_searched_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mamba adds operations with every token: a search up to 2**20 of them took all memory."""
    from measure_support import recurrence

    from bench.predict import trace

    lengths = []
    original = trace.trace

    def noted(case: Case, *more: Any) -> Any:
        lengths.append(case.step.seq_len)
        return original(case, *more)

    monkeypatch.setattr(trace, "trace", noted)
    monkeypatch.setattr("bench.predict.stretch.MOST_EVENTS", 3000)
    case = recurrence("mamba", seq_len=8)
    told = costs.cost(costs.CostAsked(case, gpu_with_memory("24GiB"), None))
    limit = told.limits["seq-len"]
    assert limit is not None
    assert limit.bounded
    assert 8 <= limit.value < 128
    assert max(lengths) <= limit.value


def _killed(asked: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "cost", _killed)
    with pytest.raises(BenchError, match=r"was killed, .* memory that 2 of them .* taskset -c 0"):
        costs.costs([None, None], lambda _: None, processes=2)  # type: ignore[list-item]
