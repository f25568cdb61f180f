"""What a prediction takes for granted, in words, to be said with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.models.precision import precision
from bench.models.stored import AWQ, COMPRESSED, GPTQ, HQQ, read_stored
from bench.predict.gpus import HOPPER, bfloat16_note
from bench.training.liger import fused_loss
from bench.training.options import DDP, DTYPES, FSDP, KEEP_OUTPUT, PINNED, PLAIN, SDPA
from bench.training.parallel import COMPARED

if TYPE_CHECKING:
    from bench.predict.gpus import Gpu
    from bench.training.cases import Case

LOOP_WORDS: Mapping[str, str] = {
    PLAIN: "the plain loop, which drops the model's output once it has the loss",
    KEEP_OUTPUT: "a loop that keeps the model's output, logits included, until the step ends",
}
"""What each loop does with what it holds; a loop without an entry is named alone."""


def assumptions(case: Case, gpu: Gpu | None, device: str = "cuda") -> tuple[str, ...]:
    """What is assumed of this case's step on a "cuda" or "cpu" device, the loop that it holds for
    first."""
    step, kind = case.step, precision(case.precision)
    said = [f"loop: {LOOP_WORDS.get(step.loop, step.loop)}"]
    kernel = "eager code" if step.attention not in (SDPA, *PINNED) else f"{step.attention} kernel"
    if step.attention == SDPA:
        kernel = "the kernel that PyTorch's rules choose"
    if device == "cpu" and step.attention == SDPA:
        kernel += " on a CPU"
    elif gpu is None and step.attention == SDPA:
        kernel += " on a GPU of compute capability 8.0 or later"
    elif gpu and step.attention == SDPA and gpu.capability == HOPPER:
        kernel += ", cuDNN's for halves"
    said.append(f"attention: {kernel}")
    wide = (
        "float32, to which PEFT casts them" if step.autocast_adapter_dtype else "the base's dtype"
    )
    said.append(f"adapters: in {wide}")
    if case.decomposed:
        init = case.adapter.get("init_lora_weights")
        named = init if isinstance(init, str) else "kasa_config"
        said.append(
            f"initialisation: {named} leaves tensors as large as PEFT's default; what taking the "
            "weights apart needs, before the first step, is not predicted"
        )
    if kind.stored:
        said.append(_stored(case))
    elif kind.quantized and step.parallel != FSDP:
        way = "its own loader's order" if step.loop == PLAIN else "from_pretrained's order, by name"
        said.append(
            f"weights: quantized on the way in, one at a time, in {way}; threads of a loader "
            "leave up to 2 % more, another amount in every run"
        )
    said += trainer_assumptions(case)
    if step.liger:
        said.append(_liger(case))
    said += parallel_assumptions(case)
    halves = DTYPES["bf16"] in (case.compute, DTYPES.get(step.autocast or ""))
    if halves and (note := bfloat16_note(gpu)):
        said.append(f"bf16: {note}")
    if case.precision == "int8":
        said.append("int8: no outlier columns (they depend on the data)")
    if step.padded:
        said.append("lengths: drawn from the seed; the longest is the length asked for")
    if step.optimizer.startswith("paged-"):
        said.append("paged state: in managed memory, outside the allocator, as much as it takes")
    return tuple(said)


_EXPANSION: Mapping[str, str] = {
    AWQ: "gptqmodel's AWQ layers: more than 1,024 rows expand their layer's weight to {} forward, "
    "and any number backward (kernels that cannot train take less)",
    GPTQ: "gptqmodel's layers for training: every product expands its layer's weight to {}, and "
    "autograd keeps it until the backward pass; checkpointing frees it",
    HQQ: "HQQ's own layers: each keeps its input, and expands its weight to {}, forward and "
    "backward",
    COMPRESSED: "decompressed to {} by the first forward pass, for good",
}
"""How each library trains on what it stores, as `bench.models.stored_layers` has it."""


def _stored(case: Case) -> str:
    stored = read_stored(case.config["quantization_config"], case.model)
    groups = f"groups of {stored.group}" if stored.group else "one group a row"
    how = _EXPANSION[stored.method].format(case.compute)
    return f"weights: {stored.method} as stored ({stored.bits} bits, {groups}); {how}"


def _liger(case: Case) -> str:
    what = (
        "norms, RoPE and MLPs" if not fused_loss(case.step) else "norms, RoPE, MLPs, head and loss"
    )
    said = f"Liger's kernels (as of 0.8.5) for {what}, by what they allocate"
    named = case.adapter.get("target_modules") or ()
    if fused_loss(case.step) and ("lm_head" in named):
        said += "; its loss reads the head's weight, so that an adapter on lm_head takes no part"
    return said


_DDP = (
    "ddp: torch's own with its defaults: buckets of 25 MiB, the first of 1 MiB, for the gradients "
    "of what is trained, beside the gradients; buffers sent before every forward pass",
)
_FSDP = (
    "fsdp: torch's FSDP2 with its defaults: no policy of precision, no offloading, gathered again "
    "for the backward pass; its units are accelerate's own (fsdp2_prepare_model)",
    "loading: on the CPU; only shards reach the GPU",
    "streams: FSDP2 frees when Python does, so that what is allocated is the same on CUDA; what is "
    "reserved is of one pool, where CUDA has one for each stream, which may take more",
)
_EVIDENCE = (
    "evidence: the real {} in two processes on a CPU, whose peaks allocated agree within 0.1 % "
    "(gloo's copies left out: NCCL makes none){}; no GPU has confirmed it"
)
_ACCUMULATED = "accumulation: gradients are sent after each of the {} batches (no no_sync)"
_DEFERRED = "accumulation: gradients are sent after the last of {} batches, as the trainer does"


def parallel_assumptions(case: Case) -> tuple[str, ...]:
    """Those of a step over several GPUs."""
    step = case.step
    if step.parallel is None:
        return ()
    said = [f"gpus: {step.gpus}, {step.batch_size} × {step.seq_len} tokens on each"]
    said += _DDP if step.parallel == DDP else _FSDP
    if step.parallel == FSDP and precision(case.precision).bits == 4:
        said.append(
            f"4-bit weights: packed as {case.compute} (bnb_4bit_quant_storage), without which "
            "accelerate leaves them whole; their scales are no parameters and are whole on each GPU"
        )
    if step.accumulation > 1:
        how = _DEFERRED if step.by_trainer else _ACCUMULATED
        said.append(how.format(step.accumulation))
    kind = case.config.get("model_type")
    other = "" if kind in COMPARED else f", for other models than {kind}"
    return (*said, _EVIDENCE.format("DDP" if step.parallel == DDP else "FSDP2", other))


def trainer_assumptions(case: Case) -> tuple[str, ...]:
    """Those of the loops that a trainer runs, which load it."""
    if not case.step.by_trainer:
        return ()
    from bench.predict.trainers import assumed

    return assumed(case.step, precision(case.precision).quantized)
