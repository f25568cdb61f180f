"""`torch.autocast` on meta: its lists against torch's, its steps against the profiler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from matrices import matrix
from measure_support import kept_out_of_collections, tiny_case
from test_measure_memory import profiled
from test_predict_kinds import kind_case

from bench.training.cases import Case

CASES = [
    *(
        tiny_case(name, precision, autocast="bf16", **options)
        for name in ("distilbert", "opt", "phi3", "t5", "vit")
        for precision, options in (
            ("fp32", {}),
            ("fp32", {"gradient_checkpointing": True, "batch_size": 8}),
            ("bf16", {"padded": name != "vit"}),
        )
    ),
    tiny_case("phi3", "nf4", autocast="bf16", kbit_preparation=True),
    tiny_case("opt", "nf4", autocast="bf16", kbit_preparation=True, gradient_checkpointing=True),
    tiny_case("phi3", "int8", autocast="bf16"),
    tiny_case("opt", "fp32", autocast="bf16", loop="keep-output", accumulation=2),
    tiny_case("phi3", "fp32", autocast="bf16", gradient_checkpointing=True, reentrant=True),
    *(kind_case(name, autocast="bf16") for name in ("gemma3", "whisper", "wav2vec2", "bert")),
]


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("case", matrix(CASES), ids=lambda case: case.id)
def test_autocast_peaks_are_the_profilers(case: Case) -> None:
    from bench.predict import kernels, predict

    found, reference = predict(case, device=kernels.cpu()), profiled(case)
    peaks = found.first_step_peak_allocated_bytes, found.peak_allocated_bytes
    expected = reference.first_step_peak_bytes, reference.steady_step_peak_bytes
    assert peaks == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_autocast_is_predicted_for_cuda(dtype: str) -> None:
    """The weights stay as wide as they are; what is saved of the products is halved."""
    from bench.predict import predict

    found = predict(tiny_case("opt", "fp32", autocast=dtype, batch_size=16))
    plain = predict(tiny_case("opt", "fp32", batch_size=16))
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert found.breakdown["weights"] == plain.breakdown["weights"]
    assert found.breakdown["activations"] < plain.breakdown["activations"]


def header_list(macro: str) -> set[str]:
    """The names in one of the lists of torch's own header."""
    import torch

    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    body = re.search(rf"#define {macro}\(_\)(.*?)\n\n", header.read_text(), re.DOTALL)
    assert body is not None
    return set(re.findall(r"_\((\w+)", body[1])) - {"ADD_NS"} | set(
        re.findall(r"ADD_NS\((\w+)\)", body[1])
    )


def test_cudas_lists_are_those_of_torchs_header() -> None:
    from bench.predict.autocast import LOWER, RESULT, WIDEST

    cudnn = {"cudnn_convolution", "cudnn_convolution_transpose"}  # named beside, autocast_mode.cpp
    assert LOWER["cuda"] - cudnn == header_list("AT_FORALL_LOWER_PRECISION_FP")
    assert WIDEST["cuda"] == header_list("AT_FORALL_PROMOTE")
    results = header_list("AT_FORALL_FP32_SET_OPT_DTYPE")
    appended = header_list("AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE")
    assert RESULT["cuda"] == results | appended
    rest = {op._schema.name.removeprefix("aten::") for op in operations("cuda")}
    rest -= LOWER["cuda"] | WIDEST["cuda"] | RESULT["cuda"]
    # Refused under autocast, in torch as here.
    assert rest - {"binary_cross_entropy"} == header_list("AT_FORALL_FP32")


def operations(device: str) -> tuple:
    from bench.predict.autocast import autocast_operations

    return autocast_operations(device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_name_is_listed_that_autocast_has_no_kernel_for(device: str) -> None:
    from bench.predict.autocast import LOWER, RESULT, WIDEST

    registered = {op._schema.name.removeprefix("aten::") for op in operations(device)}
    assert LOWER[device] | WIDEST[device] | RESULT[device] <= registered


def test_the_cpus_casts_are_those_of_autocast_itself() -> None:
    """Real tensors under torch's own autocast: the dtype that each policy leaves."""
    import torch

    half = torch.ones(4, 4, dtype=torch.bfloat16)
    wide = torch.ones(4, 4)
    target = torch.zeros(4, dtype=torch.int64)
    calls = {
        "mm": lambda f, x: f.mm(x, x),
        "cross_entropy": lambda f, x: torch.nn.functional.cross_entropy(x, target.to(x.device)),
        "cat": lambda f, x: f.cat([x, half.to(x.device)]),
        "softmax": lambda f, x: f.softmax(x, -1),
        "layer_norm": lambda f, x: torch.nn.functional.layer_norm(x, (4,)),
    }
    from bench.predict.attention import cpu_attention
    from bench.predict.autocast import followed_autocast

    for call in calls.values():
        for x in (half, wide):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                real = call(torch, x).dtype
            with (
                followed_autocast("cpu", cpu_attention),
                torch.autocast("meta", dtype=torch.bfloat16),
            ):
                assert call(torch, x.to("meta")).dtype == real


def test_a_cast_weight_is_kept_until_autocast_is_left() -> None:
    import torch

    from bench.predict.attention import cpu_attention
    from bench.predict.autocast import followed_autocast
    from bench.training.memory import MemoryTracker

    weight = torch.nn.Parameter(torch.ones(64, 64, device="meta"))
    frozen = torch.ones(64, 64, device="meta")
    x = torch.ones(1, 64, device="meta", dtype=torch.bfloat16)
    tracker = MemoryTracker(device="meta")
    half = 64 * 64 * 2
    with followed_autocast("cpu", cpu_attention):
        with tracker, torch.no_grad(), torch.autocast("meta", dtype=torch.bfloat16):
            torch.nn.functional.linear(x, weight)
            torch.nn.functional.linear(x, weight)
            assert tracker.storages.live_bytes == half
            torch.nn.functional.linear(x, frozen)
            assert tracker.storages.live_bytes == half
        assert tracker.storages.live_bytes == 0


def test_everything_is_torchs_own_again_afterwards() -> None:
    import torch

    from bench.predict import predict

    before = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    predict(tiny_case("opt", "fp32", autocast="bf16"))
    assert (torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype) == before
    half = torch.ones(2, 2, device="meta") @ torch.ones(2, 2, device="meta")
    assert half.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
