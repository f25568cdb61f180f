"""What is asked of CUDA: which attention kernel runs, what kernels need, what a GPU holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from measure_support import tiny_case

from bench.errors import BenchError, UnknownName
from bench.predict import Prediction, Solution, gpu_with_memory, predict, solve
from bench.predict.evidence import interval
from bench.predict.gpus import (
    CONTEXT_BYTES,
    Gpu,
    PeakRange,
    find_gpu,
    fit,
    load_gpus,
    step_seconds,
)
from bench.predict.largest import MOST_WALKED
from bench.predict.result import LIMITS
from bench.training.cases import Case

FLASH = "aten._scaled_dot_product_flash_attention.default"
EFFICIENT = "aten._scaled_dot_product_efficient_attention.default"


@pytest.mark.parametrize(
    ("precision", "options", "kernel"),
    [
        ("bf16", {}, FLASH),
        ("fp16", {}, FLASH),
        ("nf4", {}, FLASH),
        ("bf16", {"padded": True}, EFFICIENT),  # a mask, which flash does not take
        ("fp32", {}, EFFICIENT),  # flash takes halves only
        ("bf16", {"attention": "eager"}, None),
    ],
)
def test_attention_kernel(precision: str, options: dict[str, Any], kernel: str | None) -> None:
    operations = predict(tiny_case("opt", precision, **options)).operations_by_name
    assert {k for k in (FLASH, EFFICIENT) if operations.get(k)} == ({kernel} if kernel else set())
    if kernel is not None:
        assert operations[kernel] == 2  # layers
        assert operations[kernel.replace("attention.", "attention_backward.")] == 2


def test_before_ampere_there_is_no_flash_kernel_and_no_fused_one_for_bfloat16() -> None:
    """sdp_utils.cpp: flash from compute capability 8.0 on; the efficient kernel from 5.0 on, but in
    float16 and float32 alone before 8.0; it takes no grouped heads (torch 2.13)."""
    t4, a100 = load_gpus()["t4"], load_gpus()["a100-80gb"]

    def kernels(name: str, precision: str, gpu: Gpu) -> set[str]:
        operations = predict(tiny_case(name, precision), gpu=gpu).operations_by_name
        return {k for k in (FLASH, EFFICIENT) if operations.get(k)}

    assert kernels("opt", "fp16", a100) == {FLASH}
    assert kernels("opt", "fp16", t4) == {EFFICIENT}
    assert kernels("opt", "fp32", t4) == {EFFICIENT}
    assert kernels("opt", "bf16", t4) == kernels("opt", "nf4", t4) == set()
    assert kernels("phi3", "fp16", t4) == set()  # two key heads for four query heads
    assert kernels("phi3", "fp16", load_gpus()["v100-32gb"]) == set()


def test_before_ampere_every_score_of_bfloat16_is_kept() -> None:
    """batch, heads, tokens², layers: in float32, which the path of plain products computes in."""
    case = tiny_case("opt", "bf16", seq_len=128)
    t4, a100 = (predict(case, gpu=load_gpus()[key]) for key in ("t4", "a100-80gb"))
    assert t4.peak_allocated_bytes > a100.peak_allocated_bytes + 2 * 4 * 128 * 128 * 2 * 4


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("flash", "needs a GPU of compute capability 8.0 or later, and this one has 7.5"),
        (
            "efficient",
            r"bfloat16 on GPUs of compute capability 8.0 or later .*this one has 7.5",
        ),
    ],
)
def test_a_kernel_that_a_gpu_has_not_is_refused(kernel: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        predict(tiny_case("opt", "bf16", attention=kernel), gpu=load_gpus()["t4"])


def test_a_forced_kernel_is_taken() -> None:
    """Plain products keep every score for the backward pass: tokens² for every head and layer."""
    case = tiny_case("opt", "bf16", seq_len=128)
    math_ = predict(tiny_case("opt", "bf16", seq_len=128, attention="math"))
    assert not {FLASH, EFFICIENT} & set(math_.operations_by_name)
    scores = 2 * 4 * 128 * 128 * 2 * 2  # batch, heads, tokens², layers, bytes
    assert math_.peak_allocated_bytes > predict(case).peak_allocated_bytes + scores


def test_what_is_kept_of_a_step_that_is_known_by_hand() -> None:
    """The parts that a closed form gives: rounding to 512 bytes is all that is added."""
    p = predict(tiny_case("opt", "bf16"))
    pairs = 4  # adapted layers; each has A (4 × 64) and B (64 × 4), in float32
    each = 4 * 64 * 4
    assert p.breakdown["adapters"] == 2 * pairs * each
    assert p.breakdown["optimizer_state"] == 2 * 2 * pairs * each
    assert p.trainable_parameters == 2 * pairs * 4 * 64
    assert p.breakdown["quantization_state"] == 0
    assert p.versions["torch"]
    assert p.to_dict()["kind"] == "predicted"


def test_what_attention_needs_on_the_way_back() -> None:
    """The buffers that flash_api.cpp and attention_backward.cu name, by hand for 100 tokens."""
    import torch

    from bench.predict.kernels import cuda

    def size(kernel: str, dtype: torch.dtype, key_heads: int) -> int:
        query = torch.empty(2, 4, 100, 48, dtype=dtype, device="meta")
        key = torch.empty(2, key_heads, 100, 48, dtype=dtype, device="meta")
        name = f"aten._scaled_dot_product_{kernel}_attention_backward.default"
        return cuda().workspace(name, None, (query, query, key, key))

    heads = 2 * 4
    # flash: rows in blocks of 128, widths of 32; one float a row, and the query's gradient.
    flash = heads * 128 * 4 + heads * 128 * 64 * 4
    assert size("flash", torch.bfloat16, 4) == flash
    grouped = 2 * heads * 100 * 48 * 2  # gradients of key and value for every query head
    assert size("flash", torch.bfloat16, 2) == flash + grouped
    # efficient: one float a row (3200 bytes, rounded to 512), and the gradient in blocks of 64
    # by 64, two of them for 100 rows, each with a header of 16.
    blocks = heads * 2 * (64 * 64 * 4 + 16)
    assert size("efficient", torch.bfloat16, 4) == 3584 + blocks + -blocks % 512
    assert size("efficient", torch.float32, 4) == 3584 + heads * 100 * 48 * 4


def test_what_other_kernels_take_once_their_results_are_there() -> None:
    """SoftMax.cu, EmbeddingBackwardKernel.cu, Indexing.cu and SortStable.cu, by hand."""
    import torch

    from bench.predict.kernels import cuda

    def size(name: str, *args: Any) -> int:
        return cuda().temporaries(f"aten.{name}", args)

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    scores = meta(2, 4, 64, 64), meta(2, 4, 64, 64)
    half = meta(2, 4, 64, 64, dtype=torch.bfloat16)
    assert size("_softmax_backward_data.default", *scores, -1, torch.float16) == 4 * 2 * 4 * 64**2
    assert size("_softmax_backward_data.default", half, half, -1, torch.bfloat16) == 2 * 8 * 64**2
    ids, gradient = meta(4, 1024, dtype=torch.int64), meta(4, 1024, 256, dtype=torch.bfloat16)
    sorted_ids = 6 * 8 * 4096
    assert size("embedding_dense_backward.default", gradient, ids, 500, 0, False) == (
        sorted_ids + 4 * 4096 * 256
    )
    assert size("embedding_dense_backward.default", gradient[:2], ids[:2], 500, 0, False) == 0
    table = meta(500, 16)
    assert size("index_put_.default", table, [ids], gradient, True) == 3 * 8 * 4096
    assert size("index_put_.default", table, [ids], gradient, False) == 0
    assert size("sort.default", meta(2, 8192), -1) == 2 * 8192 * 8 + 2 * 8192 * 12
    assert size("sort.default", meta(8192, 4), -1) == 0
    assert size("mm.default", *scores) == 0


def test_softmax_from_float16_to_float32_makes_no_copy_of_its_input() -> None:
    """SoftMax.cpp: one kernel from float16 to float32; bfloat16 is cast first."""
    import torch

    from bench.predict.journal import Journal
    from bench.predict.kernels import cuda

    def made(name: str, dtype: torch.dtype) -> list[int]:
        scores = torch.empty(8, 64, dtype=dtype, device="meta")
        with Journal(cuda()) as journal:
            out = cuda().functions[name](scores, dim=-1, dtype=torch.float32)
        assert out.dtype == torch.float32
        return journal.sizes[1:]

    whole = 4 * 8 * 64
    for name in ("softmax", "log_softmax"):
        assert made(name, torch.float16) == [whole]
        assert made(name, torch.bfloat16) == [whole, whole]


def test_workspaces_of_cublas_follow_the_compute_capability() -> None:
    case = tiny_case("opt", "bf16")
    older, hopper = (
        predict(case, gpu=load_gpus()[name]).peak_allocated_bytes for name in ("a100-80gb", "h100")
    )
    assert hopper - older == 2 * (32 * 1024**2 - (8 * 1024**2 + 8 * 16 * 1024))


def test_more_of_anything_takes_more() -> None:
    base = predict(tiny_case("phi3", "bf16")).peak_allocated_bytes
    for options in ({"batch_size": 3}, {"seq_len": 64}):
        assert predict(tiny_case("phi3", "bf16", **options)).peak_allocated_bytes > base
    checkpointed = tiny_case("phi3", "bf16", batch_size=32, gradient_checkpointing=True)
    plain = replace(checkpointed, step=replace(checkpointed.step, gradient_checkpointing=False))
    assert predict(checkpointed).peak_allocated_bytes < predict(plain).peak_allocated_bytes
    assert predict(checkpointed).flops > predict(plain).flops  # the forward pass twice


def test_it_is_the_same_each_time() -> None:
    case = tiny_case("phi3", "nf4-dq", padded=True)
    assert predict(case) == predict(case)


# GPUs


EXACT = PeakRange(1, 1, "by hand")


def test_a_fit_has_room_for_the_context() -> None:
    gpu = gpu_with_memory("24GiB")
    room = 24 * 1024**3 - CONTEXT_BYTES
    assert fit(gpu, 1, room, EXACT).margin_bytes == 0
    assert fit(gpu, 1, room, EXACT).fits
    assert not fit(gpu, room, room + 1, EXACT).fits
    assert fit(gpu, room, room + 1, EXACT).allocated_fits
    assert any("context" in limit for limit in LIMITS)


def test_a_fit_says_yes_no_or_uncertain_by_what_was_measured() -> None:
    """Steps measured at 0.95 to 1.05 of the prediction: 19 to 21 GiB for one of 20."""
    gib = 1024**3
    within = PeakRange(0.95, 1.05, "measured so")

    def verdict(memory: float) -> str:
        gpu = Gpu("x", round(memory * gib) + CONTEXT_BYTES)
        return fit(gpu, 15 * gib, 20 * gib, within).verdict

    assert [verdict(size) for size in (21.01, 20.5, 19.5, 18.9)] == [
        "yes", "uncertain", "uncertain", "no",
    ]  # fmt: skip
    found = fit(Gpu("x", 22 * gib), 15 * gib, 20 * gib, within)
    assert (found.low_bytes, found.high_bytes) == (19 * gib, 21 * gib)
    assert found.margin_bytes == 22 * gib - CONTEXT_BYTES - 21 * gib
    # What is allocated is there in any case.
    assert fit(Gpu("x", 19 * gib), int(19.9 * gib), 20 * gib, within).low_bytes > 19.8 * gib


def test_sizes_have_units() -> None:
    assert gpu_with_memory("24GiB").memory_bytes == 24 * 1024**3
    assert gpu_with_memory("24 GB") == replace(gpu_with_memory("24 GiB"), name="24 GB")
    assert gpu_with_memory("1.5gib").memory_bytes == 1.5 * 1024**3


def test_the_modelled_time_is_the_roofline() -> None:
    from bench.predict.trace import Work

    gpu = Gpu("x", 1, bandwidth=100.0, rates={"float32": 10.0, "bfloat16": 50.0})
    work = {Work(100, 100, "float32"): 1, Work(100, 1000, "bfloat16"): 2}
    assert step_seconds(gpu, work, 50) == pytest.approx(10 + 2 * 10 + 0.5)
    assert step_seconds(Gpu("unknown", 1), work, 50) is None


NVIDIA_SMI = {"h100": 81559, "a100-80gb": 81920, "a100-40gb": 40960, "a10": 23028, "l40s": 46068,
              "l4": 23034, "t4": 15360, "h200": 143771, "rtx-a6000": 49140, "rtx-4090": 24564,
              "rtx-3090": 24576, "v100-32gb": 32768}  # fmt: skip
"""MiB that `nvidia-smi` prints as total, the first seven as a cloud published them for all of its
kinds (github.com/modal-labs/modal-client/pull/2797)."""


@pytest.mark.parametrize(
    ("printed", "key"),
    [
        ("Tesla T4", "t4"), ("Tesla V100-SXM2-32GB", "v100-32gb"), ("NVIDIA A10", "a10"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H200", "h200"), ("a100 80 GB sxm", "a100-80gb"),
    ],
)  # fmt: skip
def test_a_gpu_may_be_called_as_its_driver_prints_it(printed: str, key: str) -> None:
    assert find_gpu(printed) == load_gpus()[key]


def test_a_name_of_several_gpus_says_which() -> None:
    with pytest.raises(UnknownName, match="known: a100-40gb, a100-80gb "):
        find_gpu("A100")


def test_a_gpu_has_not_more_memory_than_its_driver_says() -> None:
    """A step that would take the size on the box does not fit; one 6 % smaller may."""
    for key, mib in NVIDIA_SMI.items():
        gpu = load_gpus()[key]
        assert 0.94 * mib < gpu.memory_bytes / 1024**2 <= mib, key
    t4 = load_gpus()["t4"]
    assert not fit(t4, 0, 15 * 1024**3 - CONTEXT_BYTES, EXACT).fits


def test_every_gpu_states_its_source() -> None:
    for gpu in load_gpus().values():
        assert gpu.source
        assert gpu.bandwidth
        assert gpu.rate("float32") <= gpu.rate("float16")


# The largest that fits


def _linear(size: int, calls: list[int]) -> Callable[[Case], Any]:
    """A step that takes 1000 bytes and 70 a sequence, on a GPU with room for `size` bytes."""
    example = predict(tiny_case("opt"))

    def prediction(case: Case) -> Prediction:
        batch = case.step.batch_size
        calls.append(batch)
        peak = 1000 + 70 * batch
        gpu = Gpu("x", size + CONTEXT_BYTES)
        return replace(example, fit=fit(gpu, peak, peak, EXACT))

    return prediction


@pytest.mark.parametrize("largest", [1, 2, 3, 63, 64, 1000, 12345])
def test_the_largest_batch_is_found_in_few_trials(largest: int) -> None:
    calls: list[int] = []
    size = 1000 + 70 * largest + 69  # one more sequence would miss one byte
    found = solve(tiny_case("opt"), "batch-size", _linear(size, calls))
    assert isinstance(found, Solution)
    assert (found.value, found.bounded) == (largest, False)
    assert len(calls) <= 6 + math.log2(largest)


def test_the_search_ends_at_the_models_limit() -> None:
    found = solve(tiny_case("opt"), "batch-size", _linear(10**9, []), limit=100)
    assert (found.value, found.bounded) == (100, True)


def test_no_sequence_is_tried_that_takes_too_long_to_go_through() -> None:
    """A model that goes through it token by token: 200 operations each. Any other is searched on,
    whatever its operations are."""
    tried: list[int] = []

    def step(each: int) -> Callable[[Case], Prediction]:
        def prediction(case: Case) -> Prediction:
            length = case.step.seq_len
            tried.append(length)
            found = _linear(10**9, [])(case)
            return replace(found, operations=900_000 if not each else 1000 + each * length)

        return prediction

    found = solve(tiny_case("opt", seq_len=16), "seq-len", step(200), limit=4096)
    assert (found.value, found.bounded) == ((MOST_WALKED - 1000) // 200, True)
    assert max(tried) == found.value
    other = solve(tiny_case("opt", seq_len=16), "seq-len", step(0), limit=4096)
    assert (other.value, other.bounded) == (4096, True)


def test_a_trace_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.predict.journal.MOST_OPERATIONS", 50)
    with pytest.raises(BenchError, match=r"more than 50 operations, .* shorter one \(--seq-len\)"):
        predict(tiny_case("opt"))


def test_a_gpu_that_is_too_small_for_anything() -> None:
    with pytest.raises(BenchError, match="not even a batch-size of 1 fits x: 70 bytes are missing"):
        solve(tiny_case("opt"), "batch-size", _linear(1000, []))


@pytest.mark.parametrize(
    "what",
    [
        "seq-len",
        pytest.param("batch-size", marks=pytest.mark.slow),
        pytest.param("rank", marks=pytest.mark.slow),
    ],
)
def test_solved_is_the_largest_for_real(what: str) -> None:
    """One more of it, predicted anew, does not fit."""
    from bench.training.cases import with_value

    case = tiny_case("phi3", "bf16")
    needed = predict(with_value(case, what, 21)).peak_reserved_bytes
    gpu = Gpu("x", round(needed * interval("bf16", "plain").high) + CONTEXT_BYTES)
    found = solve(case, what, lambda trial: predict(trial, gpu=gpu))
    assert found.value >= 21
    more = predict(with_value(case, what, found.value + 1), gpu=gpu)
    assert more.fit is not None
    assert not more.fit.fits
