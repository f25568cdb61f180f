"""A step stretched from few layers is the step of the whole model, held against whole traces."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from matrices import matrix

from bench.choose.rows import EVERYTHING
from bench.choose.rows import scenario as scenario_of
from bench.models.architectures import Model, load_model
from bench.scenarios.scenario import find_scenario
from bench.scenarios.subjects import Subject
from bench.training.cases import Case, StepOptions, with_value

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


def _case(model: str, scenario: str, precision: str, checkpointing: bool, **step: Any) -> Case:
    return _subject(load_model(model), scenario, precision).case(
        StepOptions(batch_size=1, seq_len=128, gradient_checkpointing=checkpointing, **step)
    )


def _subject(model: Model, scenario: str, precision: str) -> Subject:
    known = find_scenario(scenario)
    return Subject(model, scenario, known.adapter(model, 16), known, precision=precision)


SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "num_hidden_layers": 6, "vocab_size": 512,
}  # fmt: skip
NARROW = {
    "llama-3.2-1b": {},
    "mixtral-8x7b": {"num_local_experts": 4, "head_dim": 16},
    "bert-base-cased": {},
}


def _narrow(model: str) -> Model:
    found = load_model(model)
    return Model(f"small {model}", {**found.config, **SMALL, **NARROW[model]}, found.auto_class)


def _agrees(case: Case) -> Any:
    """Every figure of the stretched step is the whole trace's; which of several storages ends that
    are alike, with nothing allocated between, may not be."""
    stretched, whole = _stretched(case), _traced(case)
    for field in fields(whole):
        if field.name != "events":
            assert getattr(stretched.trace, field.name) == getattr(whole, field.name), field.name
    assert stretched.replayed() == _replayed(whole)
    return stretched


@pytest.mark.parametrize(
    ("model", "scenario", "precision", "checkpointing"),
    matrix(
        [
            ("llama-3.2-1b", "everything", "nf4", True),
            ("opt-350m", "query-value", "int8", False),
            ("phi-3-mini", "feed-forward", "bf16", True),
            ("distilbert-base-uncased", "attention", "bf16", False),
        ],
        by=lambda model, scenario, precision, checkpointing: {checkpointing},
    ),
)
def test_stretched_steps_are_those_of_the_whole_trace(
    model: str, scenario: str, precision: str, checkpointing: bool
) -> None:
    from bench.predict.stretch import FEW

    assert _agrees(_case(model, scenario, precision, checkpointing)).layers == FEW + 1


STEPS = {
    "fp16": StepOptions(batch_size=2, seq_len=24, optimizer="adamw-8bit"),
    "nf4": StepOptions(seq_len=40, gradient_checkpointing=True, attention="eager"),
    "int8": StepOptions(batch_size=2, seq_len=24, autocast="bf16", accumulation=2),
}


@pytest.mark.parametrize(
    ("precision", "step", "model"),
    matrix(
        pytest.param(precision, step, model, id=f"{precision}-step{number}-{model}")
        for model in NARROW
        for number, (precision, step) in enumerate(STEPS.items())
    ),
)
def test_small_models_agree_however_the_step_is_run(
    model: str, precision: str, step: StepOptions
) -> None:
    _agrees(_subject(_narrow(model), "everything", precision).case(step))


@pytest.mark.parametrize("loop", ["trainer", pytest.param("sft", marks=pytest.mark.evidence)])
def test_a_list_of_every_layers_norms_grows_with_the_layers(loop: str) -> None:
    """Trainers clip gradients: one tensor holds a norm for each of them."""
    pytest.importorskip({"trainer": "accelerate", "sft": "trl"}[loop])
    step = StepOptions(batch_size=1, seq_len=64, loop=loop)
    stretched = _agrees(_subject(_narrow("llama-3.2-1b"), "everything", "bf16").case(step))
    assert stretched.layers is not None


@pytest.mark.parametrize(
    ("loop", "precision", "layers"),
    matrix(
        [("plain", "bf16", 6), ("plain", "nf4", 2), ("trainer", "bf16", 2), ("trainer", "nf4", 2)],
        by=lambda loop, precision, layers: {"accumulated"},
    ),
)
def test_of_many_accumulated_batches_a_few_are_traced(
    loop: str, precision: str, layers: int
) -> None:
    """The peaks and every sum are those of all of them; of many layers too."""
    if loop == "trainer":
        pytest.importorskip("accelerate")
    step = StepOptions(batch_size=1, seq_len=64, loop=loop, accumulation=7)
    model = _narrow("llama-3.2-1b")
    model = replace(model, config={**model.config, "num_hidden_layers": layers})
    case = _subject(model, "everything", precision).case(step)
    stretched, whole = _stretched(case), _traced(case)
    assert len(stretched.trace.events) < 0.7 * len(whole.events)
    for field in ("tokens", "flops", "operations", "work", "moved_bytes", "trainable_parameters"):
        assert getattr(stretched.trace, field) == getattr(whole, field), field
    assert stretched.replayed() == _replayed(whole)


@pytest.mark.parametrize(
    ("what", "values"),
    matrix(
        [("rank", (3, 37)), ("batch-size", (3, 5)), ("seq-len", (7, 300, 3100))],
        by=lambda what, _: {what == "rank"},  # in proportion to one side, or to all of a batch
    ),
)
def test_other_values_are_predicted_as_they_are_alone(what: str, values: tuple[int, ...]) -> None:
    """3,100 tokens are more than the backward pass of an embedding takes without sorting."""
    model = _narrow("llama-3.2-1b")
    adapter = scenario_of(EVERYTHING).adapter(model, 16)
    case = Subject(model, EVERYTHING, adapter, precision="bf16").case(
        StepOptions(batch_size=1, seq_len=64)
    )
    stretched = _stretched(case)
    stretched.estimated(what, 4 * values[0])  # makes lines that exact values must not follow
    for value in values:
        expected = _replayed(_traced(with_value(case, what, value)))
        assert stretched.replayed(what, value) == expected


def test_layers_that_differ_are_traced_whole() -> None:
    """A list with something else for each layer says so; so do layers whose class makes a pattern
    of one number, and an adapter that names some of them."""
    from bench.predict.alike import depth_of, layers_alike

    case = _case("llama-3.2-1b", "query-value", "bf16", False)
    depth = depth_of(case)
    assert depth == case.config["num_hidden_layers"] == layers_alike(case, 4)
    kinds = ["full_attention", "sliding_attention"] * (depth // 2)
    for more in ({"layer_types": kinds}, {"vision_config": {"num_layers": 2}}):
        assert depth_of(replace(case, config={**case.config, **more})) is None
    gemma = {**SMALL, "model_type": "gemma2", "sliding_window": 16}
    patterned = replace(case, config=gemma)
    assert depth_of(patterned) == SMALL["num_hidden_layers"]
    assert layers_alike(patterned, 4) is None
    sparse = {**SMALL, "model_type": "qwen3_moe", "num_experts": 4, "decoder_sparse_step": 3}
    assert layers_alike(replace(case, config=sparse), 4) is None
    some = {**case.adapter, "layers_to_transform": [0, 1]}
    assert layers_alike(replace(case, adapter=some), 4) is None


@pytest.mark.parametrize(("near", "answer"), [(0, 57), (1, 57), (56, 57), (57, 57), (90, 57)])
def test_the_search_around_an_estimate_ends_at_the_same_value(near: int, answer: int) -> None:
    from bench.predict.largest import settled

    assert settled(near, 100, lambda value: value <= 57) == answer
    assert settled(near, 40, lambda value: value <= 57) == 40
    assert settled(near, 100, lambda value: False) == 0


def test_an_operation_asked_again_gives_what_it_gave() -> None:
    """By shapes, strides and dtypes; numbers with their types; views and what is written to are the
    tensors themselves; and nothing that was given is kept alive."""
    import weakref

    import torch

    from bench.predict.shapes import KnownShapes

    known, aten = KnownShapes(), torch.ops.aten
    ints = torch.empty(3, 4, dtype=torch.int64, device="meta")
    floats = torch.empty(4, 3, device="meta")
    asked: list[tuple[Any, tuple[Any, ...]]] = [
        (aten.mul.Scalar, (ints, 2)),
        (aten.mul.Scalar, (ints, 2.0)),
        (aten.mul.Scalar, (ints, True)),
        (aten.add.Tensor, (floats.t(), floats.t())),
        (aten.add.Tensor, (floats, floats[:1])),
        (aten.native_dropout.default, (floats, 0.1, True)),
        (aten._foreach_sqrt.default, ([floats],)),
        (aten.mm.default, (floats, torch.empty(3, 5, device="meta"))),
    ]
    for func, args in 2 * asked:
        expected, found = func(*args), known.run(func, args, {})
        several = isinstance(expected, (tuple, list))
        assert type(found) is type(expected)
        for a, b in zip(
            expected if several else [expected], found if several else [found], strict=True
        ):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
            assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes()
    for _ in range(3):
        assert known.run(aten.t.default, (floats,), {})._base is floats
        assert known.run(aten.add_.Tensor, (floats, floats), {}) is floats
        held = known.run(aten._foreach_sqrt.default, ([ints.double()],), {})
        gone = weakref.ref(held[0])
        del held
        assert gone() is None
