"""Tracked memory: against torch's own profiler, its breakdown, and its categories."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from matrices import matrix
from measure_support import kept_out_of_collections, recurrence, shared_session, tiny_case

from bench.measure import Session
from bench.training.cases import Case

CASES = [
    tiny_case("distilbert", "fp32"),
    tiny_case("distilbert", "bf16", padded=True),
    tiny_case("distilbert", "int8"),
    tiny_case("opt", "fp32", attention="eager"),
    tiny_case("opt", "fp16"),
    tiny_case("opt", "bf16", gradient_checkpointing=True, batch_size=64),
    tiny_case("opt", "nf4", kbit_preparation=True, gradient_checkpointing=True, batch_size=64),
    # Small ones, where the generator's states that checkpointing keeps are a few percent.
    tiny_case("opt", "fp32", gradient_checkpointing=True),
    tiny_case("distilbert", "int8", gradient_checkpointing=True),
    tiny_case("phi3", "nf4", gradient_checkpointing=True),
    tiny_case("vit", "bf16", gradient_checkpointing=True),
    tiny_case("phi3", "fp32", optimizer="adamw-foreach"),
    tiny_case("phi3", "bf16", optimizer="adamw-fused"),
    tiny_case("phi3", "int8", kbit_preparation=True),
    tiny_case("phi3", "fp4"),
    tiny_case("phi3", "nf4-dq", batch_size=5),
    tiny_case("t5", "fp32"),
    tiny_case("vit", "bf16"),
    # Autograd sums many gradients of one tensor here, in place.
    recurrence("mamba"),
    recurrence("mamba", "bf16"),
    recurrence("xlstm"),
    recurrence("rwkv", "bf16"),
    recurrence("jamba", gradient_checkpointing=True),
]


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections()


@pytest.fixture
def session() -> Session:
    return shared_session()


@dataclass(frozen=True)
class Profiled:
    """What torch's profiler saw allocated, in bytes."""

    loaded_bytes: int
    first_step_peak_bytes: int
    steady_step_peak_bytes: int


def profiled(case: Case) -> Profiled:
    """Load and train twice under torch.profiler; no part of the tracker is involved.

    Half-precision products run without oneDNN here: it takes scratch space that depends on the
    CPU model, and that never becomes a tensor, so that the tracker rightly knows nothing of it.
    """
    import torch
    from bitsandbytes import functional
    from torch.profiler import ProfilerActivity, profile, record_function

    from bench.training.loading import load
    from bench.training.loops import run_step

    torch.set_num_threads(1)
    functional.name2qmap.clear()  # made once a process: a case in a process of its own makes it
    gc.collect()  # what an earlier case leaves must not be freed within this one
    with (
        torch.backends.mkldnn.flags(enabled=case.precision == "fp32" and not case.step.autocast),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        training = load(case)
        gc.collect()
        gc.disable()
        try:
            for name in ("first", "steady"):
                gc.collect()
                with record_function(name):
                    run_step(training)
        finally:
            gc.enable()
    events = list(profiler.profiler.kineto_results.events())
    starts = {e.name(): e.start_ns() for e in events if e.name() in ("first", "steady")}
    ends = {e.name(): e.end_ns() for e in events if e.name() in ("first", "steady")}
    live = loaded = 0
    peaks = {"first": 0, "steady": 0}
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        if event.start_ns() < starts["first"]:
            loaded = live
        for name, peak in peaks.items():
            if starts[name] <= event.start_ns() <= ends[name]:
                peaks[name] = max(peak, live)
    return Profiled(loaded, peaks["first"], peaks["steady"])


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("case", matrix(CASES), ids=lambda case: case.id)
def test_tracked_peaks_are_the_profilers(session: Session, case: Case) -> None:
    with session.start(case) as running:
        tracked = running.prepare()
    reference = profiled(case)
    # bitsandbytes makes the table of its 4-bit code once a process, and this one is used again.
    assert tracked.loaded_bytes == pytest.approx(reference.loaded_bytes, abs=512)
    peaks = tracked.first_step_peak_allocated_bytes, tracked.peak_allocated_bytes
    expected = reference.first_step_peak_bytes, reference.steady_step_peak_bytes
    assert peaks == pytest.approx(expected, rel=1e-3)
    assert sum(tracked.breakdown.values()) == tracked.peak_allocated_bytes
    assert min(tracked.breakdown.values()) >= 0


def test_sums_of_gradients_are_in_place_where_autograd_alone_holds_them() -> None:
    """By hand: three gradients of one tensor of 1 MiB meet. Two are alive at once, for the second
    is added to the first; where Python holds the first, a third is made."""
    import torch

    from bench.training.memory import MemoryTracker

    size = 1 << 20
    for held, most in ((False, 2), (True, 3)):
        kept: list[torch.Tensor] = []

        class Branch(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x: torch.Tensor) -> torch.Tensor:
                return x.sum()

            @staticmethod
            def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
                new = torch.ones(size // 4)
                if held:  # noqa: B023
                    kept.append(new)  # noqa: B023
                return new

        leaf = torch.ones(size // 4, requires_grad=True)
        middle = leaf.view(-1)
        total = Branch.apply(middle) + Branch.apply(middle)
        with MemoryTracker() as tracker:
            torch.autograd.grad(total, middle)
        assert tracker.storages.peak_bytes // size == most


def test_the_breakdown_says_what_each_byte_is_for(session: Session) -> None:
    """Every part but the activations, by hand, for the tiny OPT: two layers of width 64."""
    blocks = 2 * (4 * 64 * 64 + 2 * 64 * 256)  # q, k, v, out; fc1, fc2
    biases = 2 * (4 * 64 + 256 + 64)
    norms = 2 * 2 * 2 * 64
    projections = 2 * 64 * 32  # project_in and project_out
    embeddings = 500 * 32 + (128 + 2) * 64
    adapters = 2 * 2 * 4 * (64 + 64)
    quantized = blocks + projections
    rest = biases + norms + embeddings
    parts = {
        "fp32": (4 * (quantized + rest), 0),
        "bf16": (2 * (quantized + rest), 0),
        # One float32 scale for each output: q, k, v, out, fc1, fc2, project_in, project_out.
        "int8": (quantized + 2 * rest, 4 * (2 * (5 * 64 + 256) + 64 + 32)),
        # One float32 scale for each 64 weights, the 16 values of the code for every layer, and
        # the quantizer's tables: the code, the 15 bounds between its values, and their order.
        "nf4": (
            quantized // 2 + 2 * rest,
            4 * quantized // 64 + 14 * 16 * 4 + (16 * 4 + 15 * 4 + 16 * 8),
        ),
    }
    for precision, (weights, state) in parts.items():
        with session.start(tiny_case("opt", precision)) as running:
            breakdown = running.prepare().breakdown
        assert breakdown["weights"] == weights, precision
        assert breakdown["quantization_state"] == state, precision
        assert breakdown["adapters"] == 4 * adapters
        # Adam's two moments, and a step count for each matrix.
        assert breakdown["optimizer_state"] == 2 * 4 * adapters + 4 * 8, precision


def test_the_tracker_sees_resizing_views_and_the_end() -> None:
    import torch

    from bench.training.memory import MemoryTracker

    tracker = MemoryTracker()
    with tracker:
        a = torch.zeros(100)
        view = a[:10]
        assert tracker.storages.live_bytes == 400
        del a
        assert tracker.storages.live_bytes == 400  # the view keeps it
        tracker.storages.tag(view, "weights")
        b = torch.zeros(10, dtype=torch.uint8)
        b.resize_(1000)
        assert tracker.storages.by_category["weights"] == 400
        assert tracker.storages.by_category["activations"] == 1000
    del view, b
    assert tracker.storages.live_bytes == 0
    assert tracker.storages.peak_bytes == 1400
    assert sum(tracker.storages.peak_by_category.values()) == 1400
    assert tracker.storages.made_bytes == 1400


def test_the_tracker_sees_the_generators_state() -> None:
    """It is made in C++, without the dispatcher; the function is the library's again afterwards."""
    import torch

    from bench.training.memory import MemoryTracker

    original = torch.get_rng_state
    tracker = MemoryTracker()
    with contextlib.suppress(KeyboardInterrupt), tracker:
        half = torch.ones(10, dtype=torch.bfloat16)
        half.mul_(torch.ones(10))  # the mode is entered again within
        before = tracker.storages.live_bytes
        state = torch.get_rng_state()
        assert tracker.storages.live_bytes - before == state.nbytes > 0
        raise KeyboardInterrupt
    assert torch.get_rng_state is original
    del state
    assert tracker.storages.live_bytes == before


def test_the_tracker_sees_temporaries_of_type_promotion() -> None:
    """On the CPU an in-place product of mixed dtypes is computed in two wide temporaries."""
    import torch

    from bench.training.memory import MemoryTracker

    half, wide = torch.ones(100, dtype=torch.bfloat16), torch.ones(100)
    tracker = MemoryTracker()
    with tracker:
        half.mul_(wide)
    assert tracker.storages.peak_bytes == 200 + 2 * 400  # the output is filed when it is first met
