"""Predicted steps over several GPUs against real ones: torch's DDP and FSDP2 in two processes that
send to each other by gloo, on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from matrices import facts, matrix
from measure_support import kept_out_of_collections, predicted
from ranks_support import (
    GEMMA2,
    GPT2,
    LLAMA,
    RANKS,
    ROBERTA,
    alone,
    classifier,
    peaks,
    processes,
    spread_case,
)  # fmt: skip
from warm import Warm

from bench.cli import main
from bench.training.cases import StepOptions

if TYPE_CHECKING:
    from bench.predict.result import Prediction
    from bench.predict.trace import Trace

WITHIN = 0.02
CASES = [
    spread_case(parallel, precision, gradient_checkpointing=checkpointing)
    for parallel in ("ddp", "fsdp")
    for precision in ("bf16", "nf4")
    for checkpointing in (False, True)
] + [
    spread_case("fsdp", "bf16", "-tied", tie_word_embeddings=True),
    spread_case("fsdp", "nf4-dq", "-wide", target_modules="all-linear", loop="keep-output"),
    spread_case("ddp", "bf16", "-padded", padded=True, batch_size=3, optimizer="sgd"),
    spread_case("fsdp", "bf16", "-half", autocast_adapter_dtype=False, optimizer="adamw-foreach"),
    spread_case("fsdp", "nf4", config={**LLAMA, "model_type": "qwen2"}, accumulation=2,
                max_grad_norm=1.0),
    spread_case("fsdp", "bf16", config=GPT2, target_modules="all-linear"),
    spread_case("fsdp", "fp16", "-saved", adapter={"modules_to_save": ["lm_head"]}),
    spread_case("fsdp", "nf4", "-dora", adapter={"use_dora": True}, kbit_preparation=True),
    spread_case("ddp", "int8", config=GEMMA2, autocast="bf16"),
    classifier("ddp", "nf4", ROBERTA, "query value", optimizer="adagrad"),
    classifier("ddp", "fp32", ROBERTA, "query value", loop="trainer", accumulation=2),
]  # fmt: skip
NAMED = [spread_case(p, precision) for p in ("ddp", "fsdp") for precision in ("bf16", "nf4")]


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections()


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, warm_process: Warm, request: pytest.FixtureRequest
) -> dict[int, tuple[dict[str, int], ...]]:
    """Every rank's peaks in each case that is asked for, and in those that tests below name."""
    file = str(tmp_path_factory.mktemp("group") / "store")
    params = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {each.params.get("number") for each in params if each is not None}
    numbers = [n for n, case in enumerate(CASES) if n in asked or case in NAMED]
    cases = [CASES[n] for n in numbers]
    seen = zip(*processes(warm_process, cases, range(RANKS), file), strict=True)
    return dict(zip(numbers, seen, strict=True))


@cache
def _predicted(number: int) -> Prediction:
    return predicted(CASES[number])


@pytest.mark.parametrize(
    "number",
    matrix(range(len(CASES)), by=lambda number: facts(CASES[number])),
    ids=lambda number: CASES[number].id,
)
def test_peaks_are_those_of_the_real_ranks(number: int, real: Any) -> None:
    found = _predicted(number)
    for rank, seen in enumerate(real[number]):
        assert peaks(found) == pytest.approx(seen, rel=WITHIN), f"rank {rank}"
    assert peaks(found) == pytest.approx(real[number][0], rel=1e-3)
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert min(found.breakdown.values()) >= 0


def test_peaks_are_the_profilers(warm_process: Warm) -> None:
    """Of one rank without the others, whose process sends nothing and is watched by torch alone.
    (DDP waits for what it sent, so that it has no such rank.)"""
    numbers = [n for n, case in enumerate(CASES) if case.step.parallel == "fsdp"][:2]
    (seen,) = processes(warm_process, [CASES[n] for n in numbers], [0], "alone")
    for number, each in zip(numbers, seen, strict=True):
        assert peaks(_predicted(number)) == pytest.approx(each, rel=1e-3)


def test_without_what_is_resized_no_sharded_peak_agrees(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference tells a gathered parameter that is never freed from one that is."""
    number = CASES.index(spread_case("fsdp", "bf16"))
    monkeypatch.setattr("torch.UntypedStorage.resize_", lambda storage, size: storage)
    found = peaks(predicted(CASES[number]))
    assert found["steady"] > (1 + WITHIN) * real[number][0]["steady"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_without_what_is_communicated_no_peak_agrees(
    real: Any, parallel: str, precision: str
) -> None:
    number = CASES.index(spread_case(parallel, precision))
    p = _predicted(number)
    assert p.breakdown["communication"] > 0
    without = p.peak_allocated_bytes - p.breakdown["communication"]
    assert without != pytest.approx(real[number][0]["steady"], rel=WITHIN)


def test_shards_are_halves_and_copies_are_whole() -> None:
    """By hand: on each of two GPUs half of every weight and adapter, and the 4-bit scales whole."""
    alone = predicted(
        replace(CASES[0], precision="nf4", step=replace(CASES[0].step, parallel=None, gpus=1))
    )
    copy = predicted(spread_case("ddp", "nf4"))
    shard = predicted(spread_case("fsdp", "nf4"))
    assert copy.breakdown["weights"] == alone.breakdown["weights"]
    scales = alone.breakdown["quantization_state"]
    assert copy.breakdown["quantization_state"] == scales
    assert shard.breakdown["quantization_state"] == pytest.approx(scales, rel=1e-3)
    odd_rows = 2 * LLAMA["hidden_size"] * 2 // 2  # half a row of embedding and head, in bfloat16
    buffers = 4 * LLAMA["hidden_size"] // LLAMA["num_attention_heads"] // 2  # of the positions
    halves = (alone.breakdown["weights"] - buffers) // 2 + buffers + odd_rows
    assert shard.breakdown["weights"] == pytest.approx(halves, rel=1e-3)
    assert 2 * shard.breakdown["adapters"] == alone.breakdown["adapters"]
    assert 2 * shard.breakdown["optimizer_state"] == pytest.approx(
        alone.breakdown["optimizer_state"], rel=1e-3
    )
    assert copy.breakdown["communication"] == 4 * alone.trainable_parameters


def test_many_ranks_take_no_more_storages_than_few() -> None:
    """Beyond a parameter's rows there is nothing to divide: a head of 501 rows is the longest."""
    few, many = (traced(replace(CASES[4].step, gpus=n)) for n in (512, 4096))
    assert len(few.makers) == len(many.makers)


def test_a_place_is_no_mark_of_a_profile() -> None:
    """Within FSDP2 the profiler's own operations are the last before what it resizes."""
    makers = traced(CASES[4].step).makers
    assert [name for name in makers if name.startswith("profiler.")] == []
    assert "c10d._allgather_base_.default" in makers


def traced(step: StepOptions) -> Trace:
    from bench.predict import kernels
    from bench.predict.trace import trace

    return trace(replace(CASES[4], step=step), kernels.cuda())


def test_the_answer_says_whose_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    words = ["--target-modules", "q_proj", "--seq-len", "8", "--precision", "nf4"]
    assert main(["memory", str(tmp_path), *words, "--parallel", "fsdp", "--gpus", "4"]) == 0
    text = capsys.readouterr().out
    for said in (
        "-fsdp-4gpus: predicted, not measured", "gathered, and to be sent", "assumed: gpus: 4",
        "assumed: 4-bit weights: packed as bfloat16 (bnb_4bit_quant_storage)",
        "assumed: evidence: the real FSDP2 in two processes on a CPU",
        "holds for: one of 4 GPUs, eager mode: no compilation, no offloading", "NCCL's buffers",
    ):  # fmt: skip
        assert said in text


@pytest.mark.parametrize("tied", [False, True])
def test_units_are_layers_embedding_head_and_the_rest(tied: bool) -> None:
    """By hand: the head stays gathered until the backward pass, and takes a tied embedding along;
    what is left, the last norm, is the root's."""
    from bench.training import loading
    from bench.training.parallel import spread

    case = spread_case("fsdp", "bf16", tie_word_embeddings=tied)
    with alone():
        model = loading.adapt(case, loading.skeleton(case, loading.make_config(case)))
        names = {name for name, _ in model.named_parameters()}
        found = _units(spread(case, model))
    expected = {
        (frozenset(n for n in names if f".layers.{i}." in n), True)
        for i in range(LLAMA["num_hidden_layers"])
    }
    base = "base_model.model"
    embedding, head = f"{base}.model.embed_tokens.weight", f"{base}.lm_head.weight"
    ends = [({embedding}, False)] if tied else [({embedding}, True), ({head}, False)]
    ends.append(({f"{base}.model.norm.weight"}, True))
    assert found == expected | {(frozenset(group), freed) for group, freed in ends}


def _units(model: Any) -> set[tuple[frozenset[str], bool]]:
    """The names of the parameters of each unit, and whether it is freed after its forward pass."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        id(group): group
        for module in model.modules()
        if hasattr(module, "_get_fsdp_state")
        for group in module._get_fsdp_state()._fsdp_param_groups
    }
    return {
        (frozenset(names[id(p.sharded_param)] for p in group.fsdp_params),
         group._reshard_after_forward)
        for group in groups.values()
    }  # fmt: skip
