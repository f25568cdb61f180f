"""A step stretched from few layers is the step of the whole model, held against whole traces."""

from __future__ import annotations

import pytest

from bench.predict import kernels
from bench.predict.journal import BREAKDOWN
from bench.predict.largest import with_value
from bench.predict.replay import Replayed, replay
from bench.predict.stretch import FEW, Stretched, depth_of
from bench.predict.trace import trace
from bench.scenarios.scenario import find_scenario
from bench.scenarios.subjects import Subject, load_model
from bench.training.cases import Case, StepOptions

GPU = kernels.cuda(None, 8.6)


def _case(model: str, scenario: str, precision: str, checkpointing: bool) -> Case:
    found, known = load_model(model), find_scenario(scenario)
    subject = Subject(found, scenario, known.adapter(found, 16), known, precision=precision)
    step = StepOptions(batch_size=1, seq_len=128, gradient_checkpointing=checkpointing)
    return subject.case(step)


def _whole(case: Case) -> Replayed:
    return replay(trace(case, GPU), GPU.allocator(), BREAKDOWN)


@pytest.mark.parametrize(
    ("model", "scenario", "precision", "checkpointing"),
    [
        ("llama-3.2-1b", "everything", "nf4", True),
        ("opt-350m", "query-value", "int8", False),
        ("phi-3-mini", "feed-forward", "bf16", True),
        ("distilbert-base-uncased", "attention", "bf16", False),
    ],
)
def test_stretched_peaks_are_those_of_the_whole_trace(
    model: str, scenario: str, precision: str, checkpointing: bool
) -> None:
    case = _case(model, scenario, precision, checkpointing)
    stretched, whole = Stretched(case, GPU), trace(case, GPU)
    assert stretched.layers == FEW + 1
    assert stretched.replayed() == replay(whole, GPU.allocator(), BREAKDOWN)
    assert stretched.flops == whole.flops


@pytest.mark.parametrize(("what", "value"), [("rank", 37), ("batch-size", 3), ("seq-len", 300)])
def test_other_values_are_within_a_segment_of_the_allocator(what: str, value: int) -> None:
    """The allocator's segments are 2 and 20 MiB; two of the larger would be 40."""
    case = _case("llama-3.2-1b", "everything", "bf16", True)
    found, expected = (
        Stretched(case, GPU).replayed(what, value),
        _whole(with_value(case, what, value)),
    )
    assert found.peak_allocated_bytes == pytest.approx(expected.peak_allocated_bytes, rel=2e-3)
    assert abs(found.peak_reserved_bytes - expected.peak_reserved_bytes) <= 20 << 20


def test_layers_that_differ_are_traced_whole() -> None:
    """A list with something else for each layer says that they are not alike."""
    case = _case("llama-3.2-1b", "query-value", "bf16", False)
    depth = depth_of(case)
    assert depth == case.config["num_hidden_layers"]
    kinds = ["full_attention", "sliding_attention"] * (depth // 2)
    assert depth_of(Case(**{**vars(case), "config": {**case.config, "layer_types": kinds}})) is None
    assert (
        depth_of(
            Case(**{**vars(case), "config": {**case.config, "vision_config": {"num_layers": 2}}})
        )
        is None
    )
