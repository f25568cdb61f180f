"""Predicted steps over several GPUs against real ones: torch's DDP and FSDP2 in two processes that
send to each other by gloo, on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from measure_support import kept_out_of_collections, predicted
from warm import Warm

from bench.cli import main
from bench.errors import BenchError
from bench.training.cases import Case, StepOptions

if TYPE_CHECKING:
    from bench.predict.result import Prediction
    from bench.predict.trace import Trace

WITHIN = 0.02
RANKS = 2
LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 501,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Few tokens and wide layers, so that the weights and what is gathered of them are what counts. The
vocabulary is odd: the last rank's rows are padded."""


def spread_case(parallel: str, precision: str, /, name: str = "", **changes: Any) -> Case:
    """A small Llama's step over RANKS; of `changes` those of config and adapter by their names."""
    config = {k: changes.pop(k, v) for k, v in LLAMA.items()}
    adapter: dict[str, Any] = {
        "r": 8, "task_type": "CAUSAL_LM",
        "target_modules": changes.pop("target_modules", ["q_proj", "v_proj"]),
    }  # fmt: skip
    options = {"batch_size": 1, "seq_len": 8, "parallel": parallel, "gpus": RANKS, **changes}
    step = StepOptions(**options)
    return Case(f"llama{name}", config, "AutoModelForCausalLM", "small", adapter, precision, step)


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
]


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections()


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, warm_process: Warm
) -> list[tuple[dict[str, int], ...]]:
    """For each case every rank's peaks."""
    file = str(tmp_path_factory.mktemp("group") / "store")
    return list(zip(*_processes(warm_process, CASES, range(RANKS), file), strict=True))


def _processes(
    warm: Warm, cases: list[Case], ranks: Iterable[int], file: str
) -> list[list[dict[str, int]]]:
    """For each rank its peaks in each case: a process a rank, for all of the cases."""
    script = Path(__file__).with_name("ranks_reference.py")
    given = "".join(f"{json.dumps(case.to_dict())}\n" for case in cases)
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [warm.python, str(script), str(rank), str(RANKS), file],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=settings,
        )
        for rank in ranks
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdin is not None
            process.stdin.write(given)
            process.stdin.close()
            process.stdin = None
        ends = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, said) in zip(started, ends, strict=True):
        assert process.returncode == 0, said[-3000:]
    return [[json.loads(line) for line in out.splitlines()] for out, _ in ends]


@cache
def _predicted(number: int) -> Prediction:
    return predicted(CASES[number])


def _peaks(p: Prediction) -> dict[str, int]:
    return {
        "loaded": p.loaded_bytes,
        "first": p.first_step_peak_allocated_bytes,
        "steady": p.peak_allocated_bytes,
    }


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].id)
def test_peaks_are_those_of_the_real_ranks(number: int, real: Any) -> None:
    found = _predicted(number)
    for rank, seen in enumerate(real[number]):
        assert _peaks(found) == pytest.approx(seen, rel=WITHIN), f"rank {rank}"
    assert _peaks(found) == pytest.approx(real[number][0], rel=1e-3)
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert min(found.breakdown.values()) >= 0


def test_peaks_are_the_profilers(warm_process: Warm) -> None:
    """Of one rank without the others, whose process sends nothing and is watched by torch alone.
    (DDP waits for what it sent, so that it has no such rank.)"""
    numbers = [n for n, case in enumerate(CASES) if case.step.parallel == "fsdp"][:2]
    (seen,) = _processes(warm_process, [CASES[n] for n in numbers], [0], "alone")
    for number, each in zip(numbers, seen, strict=True):
        assert _peaks(_predicted(number)) == pytest.approx(each, rel=1e-3)


def test_without_what_is_resized_no_sharded_peak_agrees(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference tells a gathered parameter that is never freed from one that is."""
    number = CASES.index(spread_case("fsdp", "bf16"))
    monkeypatch.setattr("torch.UntypedStorage.resize_", lambda storage, size: storage)
    found = _peaks(predicted(CASES[number]))
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


REFUSED = [
    (("--parallel", "fsdp"), "--parallel fsdp is over several GPUs: add --gpus 2 or more"),
    (("--gpus", "2"), "--gpus 2: say how the step is spread: --parallel ddp or fsdp"),
    (("--parallel", "zero3", "--gpus", "2"), "choose from"),
    (("--gpus", "0"), "step option gpus: expected a whole number >= 1, found 0"),
    *(
        (("--parallel", "fsdp", "--gpus", "2", *words), said)
        for words, said in (
            (("--precision", "int8"), "not predicted with --precision int8: bf16, nf4, nf4-dq"),
            (("--optimizer", "paged-adamw-8bit"), "with --optimizer paged-adamw-8bit: adamw"),
            (("--loop", "trainer"), "with --loop trainer: plain, keep-output"),
            (("--gradient-checkpointing", "--reentrant"), "with --reentrant"),
            (("--gradient-accumulation", "2"), "with --gradient-accumulation"),
            (("--max-grad-norm", "1"), "with --max-grad-norm"),
            (("--kbit",), "with --kbit"),
            (("--modules-to-save", "lm_head"), "with an adapter that has modules_to_save"),
            (("--measure",), "--measure is of one GPU: give it without --parallel fsdp"),
            (("--store",), "--store is of one GPU: give it without --parallel fsdp"),
        )
    ),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=lambda value: " ".join(value[:4])[:40])
def test_what_is_not_covered_is_refused_by_name(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    command = ["memory", str(tmp_path), "--target-modules", "q_proj", "--seq-len", "8", *words]
    try:
        status = main(command)
    except SystemExit as left:  # argparse
        status = int(str(left.code))
    out = capsys.readouterr()
    assert (status, out.out) == (2, "")
    assert said in out.err
    assert "Traceback" not in out.err


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


def test_another_model_is_refused_by_its_type(tmp_path: Path) -> None:
    case = replace(spread_case("ddp", "bf16"), config={**LLAMA, "model_type": "mistral"})
    with pytest.raises(
        BenchError, match="of type mistral, and this is held to real steps for llama"
    ):
        predicted(case)


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
def test_units_are_those_that_accelerate_makes(tied: bool) -> None:
    """Its own function, given the same adapted model on meta."""
    pytest.importorskip("accelerate")
    import torch
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.device_mesh import init_device_mesh

    from bench.predict.journal import Journal
    from bench.predict.kernels import cpu
    from bench.predict.ranks import as_rank
    from bench.training import loading
    from bench.training.parallel import spread

    case = spread_case("fsdp", "bf16", tie_word_embeddings=tied)
    config = loading.make_config(case)
    ours, theirs = (loading.adapt(case, loading.skeleton(case, config)) for _ in ("ours", "theirs"))
    with as_rank(case, Journal(cpu())):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
        )  # fmt: skip
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            parallelism_config=SimpleNamespace(fsdp_dim_names=("data",)),
            torch_device_mesh={("data",): init_device_mesh("cpu", (RANKS,))},
            mixed_precision="no", is_main_process=True, device=torch.device("meta"),
        )  # fmt: skip
        spread(case, ours)
        fsdp2_prepare_model(accelerator, theirs)
    assert _units(ours) == _units(theirs)
    assert len(_units(ours)) == LLAMA["num_hidden_layers"] + (2 if tied else 3)


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
