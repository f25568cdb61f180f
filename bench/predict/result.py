"""A prediction: what one case's training step would take on a CUDA GPU, without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.predict.assumptions import assumptions
from bench.predict.evidence import interval
from bench.predict.gpus import HOPPER, Fit, Gpu, fit, step_seconds
from bench.training.machine import versions
from bench.training.options import SDPA, StepOptions

if TYPE_CHECKING:
    from bench.predict.kernels import Device
    from bench.predict.trace import Trace
    from bench.training.cases import Case

_FUSED_ATTENTION = (
    "aten._scaled_dot_product_flash_attention.",
    "aten._scaled_dot_product_efficient_attention.",
)
LIMITS = (
    "one GPU, eager mode: no compilation, no sharding",
    "the CUDA context is outside the allocator (assumed 0.5 GiB where a GPU is asked for)",
    "the allocator's default settings, and a device with room: nothing is freed to make room",
)
"""What no prediction of one GPU covers, to be said wherever one is shown."""


def limits_of(step: StepOptions | Prediction) -> tuple[str, ...]:
    """What the prediction of such a step does not cover."""
    if step.parallel is None:
        return LIMITS
    each = f"one of {step.gpus} GPUs, eager mode: no compilation, no offloading"
    return (each, *LIMITS[1:], NCCL)


NCCL = "NCCL's buffers, too, are outside the allocator, and are not known"


@dataclass(frozen=True)
class Prediction:
    """What the steady training step of a case takes. Bytes are bytes; nothing here was measured.

    `peak_allocated_bytes` and `peak_reserved_bytes` are what `torch.cuda.max_memory_allocated` and
    `max_memory_reserved` would say: the first of the steady step, the second since the start,
    loading included. `peak_by_phase` has the first for the steady step's forward, backward and
    optimizer, all that is there meanwhile included. `breakdown` sums to the peak allocated, whole
    blocks counted; `peak_phase` and `peak_operation` say where in the step it lies. FLOPs count
    products and attention, two for a multiply-add; `bytes_moved` what every operation reads and
    writes once.
    `cudnn_first` says that on `gpu` torch would ask cuDNN for the attention that is predicted as
    PyTorch's own kernel. `unquantized_bytes` says what a quantized precision leaves as it
    is though one would expect otherwise, by kind: "experts", or the class of linear layers;
    `unquantized_share` what share of the layers' linear and expert weights that is.
    `assumptions` says what is taken for granted, the loop first.
    `modelled_step_seconds` is a bound from below on `gpu`, None without one, and over several GPUs.
    `parallel` and `gpus` say how the step is spread: every figure is one GPU's.
    """

    case: str
    model: str
    scenario: str
    rank: int
    precision: str
    step: str
    loop: str
    parallel: str | None
    gpus: int
    device: str
    attention: str
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    peak_by_phase: dict[str, int]
    breakdown: dict[str, int]
    breakdown_by_phase: dict[str, dict[str, int]]
    peak_phase: str
    peak_operation: str
    loaded_bytes: int
    load_peak_allocated_bytes: int
    first_step_peak_allocated_bytes: int
    trainable_parameters: int
    quantized_layers: int
    cudnn_first: bool
    unquantized_bytes: dict[str, int]
    unquantized_share: float
    tokens_per_step: int
    flops: int
    operations: int
    operations_by_name: dict[str, int]
    bytes_moved: int
    fit: Fit | None
    modelled_step_seconds: float | None
    assumptions: tuple[str, ...]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values, labelled predicted."""
        found = {"kind": "predicted", **asdict(self)}
        if self.fit is not None:
            found["fit"]["fits"] = self.fit.fits
        return found


def _step(case: Case) -> str:
    """The step in words: `1 × 2048 tokens, adamw, checkpointed, plain loop`."""
    step = case.step
    length = "frames of audio" if case.task.name in ("ctc", "audio-classification") else "tokens"
    each = f"× {step.seq_len} {length}" if case.task.has_length else case.task.inputs
    size = f"{step.batch_size} {each}"
    if step.images:
        size += f" with {step.images} image{'s' * (step.images > 1)} in each sequence"
    usual = StepOptions()
    rest = replace(
        step, batch_size=usual.batch_size, seq_len=usual.seq_len, optimizer=usual.optimizer,
        learning_rate=usual.learning_rate, loop=usual.loop, fused_head=True, images=0,
    )  # fmt: skip
    head = [] if step.fused_head else ["the model's own loss"]
    return ", ".join([size, step.optimizer, *rest.labels(), *head, f"{step.loop} loop"])


def _cudnn_first(case: Case, gpu: Gpu, traced: Trace) -> bool:
    from bench.predict.attention import prefers_cudnn

    halves = case.compute != "float32" and not case.step.kbit_preparation
    if case.step.attention != SDPA:
        return False
    fused = any(name.startswith(_FUSED_ATTENTION) for name in traced.operations)
    return gpu.capability != HOPPER and prefers_cudnn(gpu.capability) and halves and fused


def _seconds(case: Case, gpu: Gpu | None, traced: Trace) -> float | None:
    """A step's least time; None where it waits for other GPUs, of which nothing is modelled."""
    if gpu is None or case.step.parallel:
        return None
    return step_seconds(gpu, traced.work, traced.moved_bytes)


def device_of(case: Case, gpu: Gpu | None) -> Device:
    """The NVIDIA GPU that a case is predicted for: of `gpu`'s compute capability, and with the
    attention kernel that the step names."""
    from bench.predict import kernels

    return kernels.cuda(case.step.pinned_attention, gpu.capability if gpu else 8.0)


def predict(
    case: Case,
    *,
    gpu: Gpu | None = None,
    device: Device | None = None,
    progress: Callable[[str], None] = lambda phase: None,
) -> Prediction:
    """Trace the case's training step on meta and replay its allocations. Of layers that are all
    alike a few are traced (`stretch`), which changes no figure.

    `gpu` adds whether it fits and a model of the step time; `device` is an NVIDIA GPU by default.
    Raises BenchError where the step cannot be traced, naming the operation.
    """
    from bench.predict.journal import breakdown_of
    from bench.predict.replay import replay
    from bench.predict.stretch import Stretched

    if device is None:
        device = device_of(case, gpu)
    traced = Stretched(case, device, progress=progress).trace
    within = interval(case.precision, case.step.loop, case.step.gpus)
    found = replay(traced, device.allocator(), breakdown_of(case.step))
    allocated, reserved = found.peak_allocated_bytes, found.peak_reserved_bytes
    return Prediction(
        case=case.id,
        model=case.model,
        scenario=case.scenario,
        rank=case.adapter.get("r", 8),
        precision=case.precision,
        step=_step(case),
        device=device.name,
        parallel=case.step.parallel,
        gpus=case.step.gpus,
        attention=case.step.attention,
        **vars(found),
        trainable_parameters=traced.trainable_parameters,
        quantized_layers=traced.quantized_layers,
        cudnn_first=gpu is not None and _cudnn_first(case, gpu, traced),
        unquantized_bytes=traced.unquantized_bytes,
        unquantized_share=traced.unquantized_share,
        tokens_per_step=traced.tokens,
        flops=traced.flops,
        operations=sum(traced.operations.values()),
        operations_by_name=traced.operations,
        bytes_moved=traced.bytes_moved,
        loop=case.step.loop,
        fit=fit(gpu, allocated, reserved, within) if gpu else None,
        modelled_step_seconds=_seconds(case, gpu, traced),
        assumptions=assumptions(case, gpu, device.name),
        versions=versions(),
    )
