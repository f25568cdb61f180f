"""Predicted against real steps on the CPU: torch's profiler, and real quantization.

Only the device's kernels differ between this and a prediction for CUDA; what is traced, and how
its storages are followed, is the same.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matrices import matrix
from measure_support import (
    RECURRENCES,
    kept_out_of_collections,
    predicted,
    recurrence,
    shared_session,
    tiny_case,
)
from test_measure_memory import profiled

from bench.errors import BenchError
from bench.training.cases import Case, StepOptions

UNQUANTIZED = [
    tiny_case(name, precision, padded=padded, **options)
    for name, precision, padded, options in (
        ("distilbert", "fp32", False, {}),
        ("distilbert", "bf16", True, {}),
        ("distilbert", "fp16", False, {"gradient_checkpointing": True, "batch_size": 8}),
        ("distilbert", "fp32", True, {"attention": "eager"}),
        ("distilbert-tokens", "bf16", False, {}),
        ("distilbert-answers", "fp32", True, {}),
        ("opt", "fp32", False, {"attention": "eager"}),
        ("opt", "bf16", False, {}),
        ("opt", "fp16", False, {}),
        ("opt", "fp32", True, {"gradient_checkpointing": True}),
        ("opt", "bf16", False, {"gradient_checkpointing": True, "batch_size": 16}),
        ("opt", "fp16", True, {"gradient_checkpointing": True, "optimizer": "adamw-foreach"}),
        ("phi3", "fp32", False, {"optimizer": "adamw-foreach"}),
        ("phi3", "bf16", False, {"optimizer": "adamw-fused"}),
        ("phi3", "fp16", True, {}),
        ("phi3", "fp32", False, {"gradient_checkpointing": True, "batch_size": 8}),
        ("phi3", "bf16", True, {"gradient_checkpointing": True}),
        ("phi3", "fp16", False, {"attention": "eager"}),
        ("t5", "fp32", False, {}),
        ("t5", "bf16", True, {}),
        ("t5", "fp16", False, {"gradient_checkpointing": True}),
        ("vit", "fp32", False, {}),
        ("vit", "bf16", False, {"gradient_checkpointing": True}),
        ("vit", "fp16", False, {"optimizer": "adamw-foreach"}),
    )
]
OTHER_ADAPTERS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("dora", "opt", "fp32", {"use_dora": True}),
    ("biases", "opt", "bf16", {"bias": "all"}),
    ("biases-fp16", "opt", "fp16", {"bias": "all"}),
    ("everything", "opt", "bf16", {"target_modules": "all-linear"}),
    ("pissa", "opt", "fp16", {"init_lora_weights": "pissa"}),
    ("pissa-niter", "phi3", "fp32", {"init_lora_weights": "pissa_niter_4"}),
    ("kasa", "opt", "bf16", {"kasa_config": {}}),
    ("olora", "opt", "bf16", {"init_lora_weights": "olora", "use_dora": True}),
    ("saved", "opt", "fp16", {"modules_to_save": ["fc1", "lm_head"]}),
]
QUANTIZED = [
    tiny_case("distilbert", "int8"),
    tiny_case("opt", "int8", gradient_checkpointing=True, batch_size=64),
    tiny_case("phi3", "int8", kbit_preparation=True),
    tiny_case("opt", "nf4"),
    tiny_case("opt", "fp4", padded=True),
    tiny_case("phi3", "fp4", optimizer="adamw-foreach"),
    tiny_case("opt", "nf4-dq"),
    tiny_case("phi3", "fp4-dq", batch_size=5),
    tiny_case("distilbert", "nf4-dq", gradient_checkpointing=True, batch_size=128),
    # Small ones, where the generator's states that checkpointing keeps are a few percent.
    tiny_case("distilbert", "int8", gradient_checkpointing=True),
    tiny_case("phi3", "nf4", gradient_checkpointing=True),
]

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def mixture(precision: str, *targets: str, **options: Any) -> Case:
    """A tiny mixture of experts, whose experts' projections are parameters, not modules."""
    config = {
        "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 500, "num_local_experts": 4, "num_experts_per_tok": 2,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    adapter = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    if targets:
        adapter["target_parameters"] = list(targets)
    step = StepOptions(seq_len=32, **options)
    scenario = "experts" if targets else "attention"
    return Case("mixtral", config, "AutoModelForCausalLM", scenario, adapter, precision, step)


MIXTURES = [
    mixture("fp32", *EXPERTS),
    mixture("fp32", gradient_checkpointing=True),
    mixture("bf16", *EXPERTS, gradient_checkpointing=True),
]


def with_adapter(scenario: str, name: str, precision: str, changes: dict[str, Any]) -> Case:
    from dataclasses import replace

    case = tiny_case(name, precision, scenario=scenario)
    return replace(case, adapter={**case.adapter, **changes})


ADAPTED = [
    with_adapter("dora", name, precision, {"use_dora": True})
    for name, precision in (("opt", "nf4"), ("opt", "fp4"), ("phi3", "nf4-dq"))
] + [
    with_adapter("olora", "opt", "nf4", {"init_lora_weights": "olora"}),
    with_adapter("kasa", "opt", "nf4", {"kasa_config": {}}),
]
# Autograd sums many gradients of one tensor here, in place. xLSTM trains in fp32 alone: in bf16
# transformers' own step fails.
RECURRENT = [
    *(recurrence(name) for name in RECURRENCES),
    recurrence("mamba", "bf16"),
    recurrence("jamba", "bf16"),
    recurrence("recurrent_gemma", "bf16"),
    recurrence("mamba", gradient_checkpointing=True),
]
# Jamba and FalconMamba call a layer, once quantized, of which they take the weight otherwise. The
# step of Mamba fails there (from_pretrained, both precisions: dt_proj), as xLSTM's does in bf16.
QUANTIZED_RECURRENT = [
    recurrence(name, precision)
    for name in RECURRENCES
    if name not in ("mamba", "xlstm")
    for precision in ("nf4", "int8")
]
CASES = UNQUANTIZED + [with_adapter(*v) for v in OTHER_ADAPTERS] + MIXTURES + RECURRENT


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("case", matrix(CASES), ids=lambda case: case.id)
def test_predicted_peaks_are_the_profilers(case: Case) -> None:
    found = predicted(case)
    reference = profiled(case)
    assert found.loaded_bytes == pytest.approx(reference.loaded_bytes, rel=1e-3)
    peaks = found.first_step_peak_allocated_bytes, found.peak_allocated_bytes
    expected = reference.first_step_peak_bytes, reference.steady_step_peak_bytes
    assert peaks == pytest.approx(expected, rel=1e-3)
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert min(found.breakdown.values()) >= 0
    for phase, parts in found.breakdown_by_phase.items():
        assert sum(parts.values()) == found.peak_by_phase[phase]
        assert min(parts.values()) >= 0
    assert found.breakdown == found.breakdown_by_phase[found.peak_phase]


def test_there_are_enough_configurations() -> None:
    kinds = {(c.model, c.precision, c.step.gradient_checkpointing, c.scenario) for c in CASES}
    assert len(kinds) >= 24
    assert {c.precision for c in CASES} == {"fp32", "bf16", "fp16"}


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_model_that_reads_the_codes_of_a_layer_is_told(precision: str) -> None:
    with pytest.raises(BenchError, match="takes the weight of a layer by itself, which in"):
        predicted(recurrence("mamba", precision))


@pytest.mark.parametrize(
    "case", matrix(QUANTIZED + ADAPTED + QUANTIZED_RECURRENT), ids=lambda case: case.id
)
def test_quantized_steps_are_as_tracked(case: Case) -> None:
    """bitsandbytes' CPU kernels allocate outside torch, so the tracker sees the real step."""
    found = predicted(case)
    with shared_session().start(case) as running:
        real = running.prepare()
    assert found.loaded_bytes == pytest.approx(real.loaded_bytes, rel=1e-3)
    assert found.peak_allocated_bytes == pytest.approx(real.peak_allocated_bytes, rel=1e-3)
    assert found.breakdown["weights"] == real.breakdown["weights"]
    # The worker files the quantizer's cached tables here too: a code, its bounds, their order.
    tables = real.breakdown["quantization_state"] - found.breakdown["quantization_state"]
    assert tables in (0, 16 * 4 + 15 * 4 + 16 * 8)
    assert found.breakdown["optimizer_state"] == pytest.approx(
        real.breakdown["optimizer_state"], abs=4 * 64
    )
    assert found.trainable_parameters == real.trainable_parameters
    assert found.quantized_layers == real.quantized_layers
    assert found.flops == real.flops
    assert list(found.peak_by_phase) == list(real.peak_by_phase)
    assert found.peak_by_phase == pytest.approx(real.peak_by_phase, rel=1e-3)


@pytest.mark.parametrize(
    ("precision", "rank", "optimizer"),
    [
        ("fp32", 8, "lion-32bit"),
        ("bf16", 8, "adamw-32bit"),
        ("bf16", 70, "adamw-8bit"),  # from 4,096 elements on in 8 bits
        ("nf4", 70, "paged-lion-8bit"),
    ],
)
def test_bitsandbytes_optimizers_are_as_tracked(precision: str, rank: int, optimizer: str) -> None:
    """Its CPU kernels are written in torch's operations, each of which has a result of its own."""
    from dataclasses import replace

    case = tiny_case("opt", precision, optimizer=optimizer)
    case = replace(case, adapter={**case.adapter, "r": rank})
    found = predicted(case)
    with shared_session().start(case) as running:
        real = running.prepare()
    assert found.peak_by_phase["optimizer"] == pytest.approx(
        real.peak_by_phase["optimizer"], abs=4 * 64
    )
    assert found.peak_allocated_bytes == pytest.approx(real.peak_allocated_bytes, abs=4 * 64)


@pytest.mark.parametrize("name", ["opt", "phi3", "distilbert"])
def test_dora_in_int8_is_as_the_first_step_is_tracked(name: str) -> None:
    """On the CPU alone the second step fails: PEFT loses the layer's scales when it puts the weight
    back "on the CPU", so the first is the reference. The whole step must be predictable."""
    from bench.models.quantization import without_cached_tables
    from bench.predict import predict
    from bench.training.loading import load
    from bench.training.memory import MemoryTracker
    from bench.training.step import training_step

    case = with_adapter("dora", name, "int8", {"use_dora": True})
    tracker = MemoryTracker()
    with without_cached_tables(), tracker:
        t = load(case)
        gc.collect()
        loaded = tracker.storages.live_bytes
        tracker.storages.reset_peak()
        training_step(t.model, t.batch, t.optimizer, t.scaler)
    found = predicted(case)
    assert found.loaded_bytes == pytest.approx(loaded, rel=1e-3)
    assert found.first_step_peak_allocated_bytes == pytest.approx(
        tracker.storages.peak_bytes, rel=1e-3
    )
    for whole in (found, predict(case)):
        assert sum(whole.breakdown.values()) == whole.peak_allocated_bytes
        assert whole.quantized_layers > 0


def test_int8_weights_are_expanded_in_two_float32_products() -> None:
    """What DoRA asks of bitsandbytes, for real: the profiler sees the same peak as the journal."""
    import bitsandbytes
    import torch
    from torch.profiler import ProfilerActivity, profile

    from bench.predict.kernels import cpu, cuda

    weight, scales = torch.ones(64, 48, dtype=torch.int8), torch.ones(64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        bitsandbytes.functional.int8_vectorwise_dequant(weight, scales)
    events = profiler.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    product = 4 * 64 * 48
    # The CPU casts the whole numbers in a temporary; on CUDA the product's kernel casts.
    scalars = 8 + 4  # the factor, as a tensor of float64 and of float32
    assert peak == 2 * product + scalars
    assert peak_on_meta(cpu(), weight, scales) == 2 * product
    assert peak_on_meta(cuda(), weight, scales) == 2 * product


def peak_on_meta(device: Any, weight: Any, scales: Any) -> int:
    """The journal's peak while an int8 weight is expanded, its operands not counted."""
    import bitsandbytes

    from bench.predict.journal import Journal

    journal = Journal(device)
    operands = weight.to("meta"), scales.to("meta")
    for tensor in operands:
        journal.storages.tag(tensor, "weights")
    live = peak = -sum(journal.sizes)
    with journal:
        bitsandbytes.functional.int8_vectorwise_dequant(*operands)
    for event in journal.events:
        live += journal.sizes[event] if event > 0 else -journal.sizes[-event]
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["distilbert", "phi3", "t5"])
def test_cost_is_that_of_the_real_step(name: str, precision: str) -> None:
    """The same operations are dispatched as on the CPU: FLOPs are equal."""
    case = tiny_case(name, precision)
    found = predicted(case)
    with shared_session().start(case) as running:
        real = running.prepare()
    assert found.flops == real.flops
    assert found.tokens_per_step == real.tokens_per_step


@pytest.mark.parametrize("precision", ["int8", "nf4", "fp4", "nf4-dq", "fp4-dq"])
@pytest.mark.parametrize("name", ["distilbert", "opt", "phi3"])
def test_quantized_weights_are_byte_identical(name: str, precision: str) -> None:
    """Every tensor of every quantized weight, on meta and for real: shape, dtype and bytes."""
    import torch

    from bench.models.quantization import without_cached_tables
    from bench.training import loading

    case = tiny_case(name, precision)
    config = loading.make_config(case)

    def layout(device: str) -> dict[str, list[tuple[tuple[int, ...], torch.dtype, int]]]:
        with without_cached_tables():
            model = loading.random_weights(case, config, device)
        found = {}
        for key, layer in model.named_modules():
            if layer not in set(loading.quantized_layers(model)):
                continue
            weight = layer.weight
            tensors = [weight.data, getattr(weight, "SCB", None)]
            state = getattr(weight, "quant_state", None)
            for holder in filter(None, (state, getattr(state, "state2", None))):
                tensors += [holder.absmax, holder.code, holder.offset]
            found[key] = [
                (tuple(t.shape), t.dtype, t.untyped_storage().nbytes())
                for t in tensors
                if isinstance(t, torch.Tensor)
            ]
        return found

    real, meta = layout("cpu"), layout("meta")
    assert real
    assert meta == real


FRESH = """
from measure_support import tiny_case
from bench.predict import predict
from bench.training.loading import load
case = tiny_case("distilbert", "bf16", gradient_checkpointing=True)
predict(case)
print([float(parameter.detach().double().sum()) for parameter in load(case).model.parameters()])
"""


@pytest.mark.evidence
@pytest.mark.evidence
def test_a_prediction_leaves_the_libraries_as_they_are() -> None:
    """In a fresh process, which imports the libraries while it predicts: real weights are drawn
    afterwards as they are in this one, which had imported them before."""
    from bench.training.loading import load

    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, cwd=folder
    )
    case = tiny_case("distilbert", "bf16", gradient_checkpointing=True)
    drawn = [float(p.detach().double().sum()) for p in load(case).model.parameters()]
    assert json.loads(done.stdout.splitlines()[-1]) == drawn


def test_a_real_quantization_before_changes_nothing() -> None:
    """The table that one leaves for the process is neither used nor lost."""
    from bitsandbytes import functional

    case = tiny_case("opt", "nf4-dq")
    before = predicted(case)
    table = functional.create_dynamic_map()
    kept = dict(functional.name2qmap)
    functional.name2qmap["dynamic"] = table
    try:
        assert predicted(case) == before
        assert functional.name2qmap["dynamic"] is table
    finally:
        functional.name2qmap.clear()
        functional.name2qmap.update(kept)


def test_no_table_on_meta_is_left_behind() -> None:
    """A real quantization after a prediction must not find meta tensors in a global table."""
    import bitsandbytes.functional

    predicted(tiny_case("opt", "nf4-dq"))
    devices = {t.device.type for t in bitsandbytes.functional.name2qmap.values()}
    assert "meta" not in devices
