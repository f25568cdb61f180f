"""Precisions and cases: names, ids and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from measure_support import MODELS, tiny_case

from bench.errors import BenchError, UnknownName
from bench.models.precision import PRECISIONS, precision
from bench.training.cases import Case, StepOptions


def test_precisions() -> None:
    assert list(PRECISIONS) == [
        "fp32", "bf16", "fp16", "int8", "nf4", "fp4", "nf4-dq", "fp4-dq",
    ]  # fmt: skip
    assert [p.bits for p in PRECISIONS.values()] == [32, 16, 16, 8, 4, 4, 4, 4]
    assert [n for n, p in PRECISIONS.items() if p.double_quant] == ["nf4-dq", "fp4-dq"]
    assert precision("int8").quantized
    with pytest.raises(UnknownName, match="did you mean nf4"):
        precision("nf5")


def test_ids_are_short_and_tell_options_apart() -> None:
    case = Case("opt-350m@w4-l6", {"model_type": "opt"}, "AutoModelForCausalLM", "query-value",
                {"r": 8}, "nf4")  # fmt: skip
    assert case.id == "opt-350m@w4-l6-query-value-r8-nf4"
    others = [
        {"batch_size": 4}, {"seq_len": 128}, {"optimizer": "adamw-fused"}, {"learning_rate": 0.01},
        {"gradient_checkpointing": True}, {"padded": True}, {"attention": "eager"}, {"seed": 3},
        {"kbit_preparation": True},
    ]  # fmt: skip
    ids = {dataclasses.replace(case, step=StepOptions(**options)).id for options in others}
    assert len(ids) == len(others)
    assert dataclasses.replace(case, step=StepOptions(batch_size=4, seq_len=128)).id.endswith(
        "-nf4-b4-s128"
    )
    assert dataclasses.replace(case, weights="/some/folder").id.endswith("-real-weights")


def test_cases_survive_json() -> None:
    for name in MODELS:
        case = tiny_case(name, "fp4-dq", padded=True, learning_rate=3e-4)
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        (
            {"auto_class": "AutoModelForObjectDetection"},
            "no training step is known",
        ),
        ({"config": {}}, "model_type"),
        ({"adapter": {"r": 0}}, "r must be a whole number >= 1"),
    ],
)
def test_bad_cases_are_refused(change: dict, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        dataclasses.replace(tiny_case("opt"), **change)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"seq_len": 1.5}, "seq_len"),
        ({"optimizer": "adam"}, "did you mean adamw"),
        ({"attention": "flex"}, "unknown attention 'flex'"),
    ],
)
def test_bad_options_are_refused(options: dict, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        StepOptions(**options)


def test_unknown_keys_are_refused() -> None:
    data = tiny_case("opt").to_dict()
    with pytest.raises(BenchError, match="rank"):
        Case.from_dict({**data, "rank": 8})
    with pytest.raises(BenchError, match="batch"):
        Case.from_dict({**data, "step": {"batch": 8}})
    del data["model"]
    with pytest.raises(BenchError, match="model"):
        Case.from_dict(data)
