"""A step stretched from few layers is the step of the whole model, held against whole traces."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from bench.predict.largest import with_value
from bench.scenarios.scenario import find_scenario
from bench.scenarios.subjects import Subject, load_model
from bench.training.cases import Case, StepOptions

if TYPE_CHECKING:
    from bench.predict.replay import Replayed
    from bench.predict.trace import Trace


@cache
def _gpu() -> Any:
    """Made when it is first asked for: collecting imports no torch."""
    from bench.predict import kernels

    return kernels.cuda(None, 8.6)


def _stretched(case: Case) -> Any:
    from bench.predict.stretch import Stretched

    return Stretched(case, _gpu())


def _traced(case: Case) -> Trace:
    from bench.predict.trace import trace

    return trace(case, _gpu())


def _replayed(traced: Trace) -> Replayed:
    from bench.predict.journal import BREAKDOWN
    from bench.predict.replay import replay

    return replay(traced, _gpu().allocator(), BREAKDOWN)


def _case(model: str, scenario: str, precision: str, checkpointing: bool) -> Case:
    found, known = load_model(model), find_scenario(scenario)
    subject = Subject(found, scenario, known.adapter(found, 16), known, precision=precision)
    step = StepOptions(batch_size=1, seq_len=128, gradient_checkpointing=checkpointing)
    return subject.case(step)


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
    from bench.predict.stretch import FEW

    case = _case(model, scenario, precision, checkpointing)
    stretched, whole = _stretched(case), _traced(case)
    assert stretched.layers == FEW + 1
    assert stretched.replayed() == _replayed(whole)
    assert stretched.flops == whole.flops


@pytest.mark.parametrize(("what", "value"), [("rank", 37), ("batch-size", 3), ("seq-len", 300)])
def test_other_values_are_within_a_segment_of_the_allocator(what: str, value: int) -> None:
    """The allocator's segments are 2 and 20 MiB; two of the larger would be 40."""
    case = _case("llama-3.2-1b", "everything", "bf16", True)
    found, expected = (
        _stretched(case).replayed(what, value),
        _replayed(_traced(with_value(case, what, value))),
    )
    assert found.peak_allocated_bytes == pytest.approx(expected.peak_allocated_bytes, rel=2e-3)
    assert abs(found.peak_reserved_bytes - expected.peak_reserved_bytes) <= 20 << 20


def test_layers_that_differ_are_traced_whole() -> None:
    """A list with something else for each layer says that they are not alike."""
    from bench.predict.stretch import depth_of

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
