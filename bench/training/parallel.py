"""A step over several GPUs: torch's own DDP or FSDP2 around an adapted model, and what is refused.

`spread` wraps the model on whatever process group there is: a real one that several processes have
joined, or the fake one in which `bench.predict.ranks` traces what one of them does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.models.precision import precision
from bench.training.options import DDP, FSDP, KEEP_OUTPUT, PLAIN, SFT, TRAINER, StepOptions, flag_of

if TYPE_CHECKING:
    from bench.training.cases import Case

COMPARED = (
    "distilbert", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3",
    "qwen2", "qwen3", "qwen3_moe", "roberta", "t5", "vit",
)  # fmt: skip
"""The types of models whose predicted steps were held against real ones of two processes."""
PARALLEL_LOOPS = {DDP: (PLAIN, KEEP_OUTPUT, TRAINER, SFT), FSDP: (PLAIN, KEEP_OUTPUT)}
"""The loops that are predicted, by how the step is spread."""
_ALLOWED = frozenset(
    ("batch_size", "seq_len", "optimizer", "learning_rate", "gradient_checkpointing", "reentrant",
     "padded", "packed", "attention", "seed", "loop", "kbit_preparation", "autocast",
     "compute_dtype", "loss_scaling", "fused_head", "accumulation", "max_grad_norm",
     "autocast_adapter_dtype", "parallel", "gpus")
)  # fmt: skip
"""The fields of a step that may differ from their defaults; every other is refused by its name."""
_UNSHARDED = (
    "bitsandbytes keeps an int8 weight's scales beside the weight, where a shard loses them"
)
_UNRULED = "FSDP2's tensors have no rule for bitsandbytes' optimizers, and the real step fails too"
_POLICY = "accelerate gives FSDP2 a policy of precision in its place, which is not predicted"


def check_parallel(case: Case) -> None:
    """Raise BenchError, naming it, for what is not predicted over several GPUs."""
    step = case.step
    if step.parallel is None:
        return
    how = f"--parallel {step.parallel}"
    check_parallel_step(step, case.precision)
    if precision(case.precision).stored:
        raise BenchError(
            f"{how} is not predicted for {case.precision} weights, as a checkpoint stores them"
        )


def check_parallel_step(step: StepOptions, *precisions: str) -> None:
    """The part of `check_parallel` that no model has to be known for."""
    if step.parallel is None:
        return
    how = f"--parallel {step.parallel}"
    if step.loop not in (loops := PARALLEL_LOOPS[step.parallel]):
        raise BenchError(f"{how} is not predicted with --loop {step.loop}: {', '.join(loops)}")
    usual = StepOptions()
    for name in StepOptions.__dataclass_fields__:
        if name not in _ALLOWED and getattr(step, name) != getattr(usual, name):
            raise BenchError(f"{how} is not predicted with {flag_of(name)}")
    if step.parallel != FSDP:
        return
    for each in precisions:
        if precision(each).bits == 8:
            raise BenchError(f"{how} is not predicted with --precision {each}: {_UNSHARDED}")
    if step.optimizer.endswith("bit"):
        raise BenchError(f"{how} is not predicted with --optimizer {step.optimizer}: {_UNRULED}")
    if step.autocast is not None:
        raise BenchError(f"{how} is not predicted with --autocast: {_POLICY}")


def storage_dtype(case: Case) -> str | None:
    """torch's name of the dtype that 4-bit weights are packed into, where it is not bytes: FSDP
    shards 4-bit weights that look like the floats beside them (`bnb_4bit_quant_storage`)."""
    four_bits = precision(case.precision).bits == 4
    return case.compute if case.step.parallel == FSDP and four_bits else None


def spread(case: Case, model: Any) -> Any:
    """The adapted model as one rank has it: itself on one GPU, wrapped by DDP, or its parameters
    sharded by FSDP2. Raises BenchError where no process group of that size has been joined."""
    step = case.step
    if step.parallel is None:
        return model
    check_parallel(case)
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    joined = distributed.is_available() and distributed.is_initialized()
    if not joined or distributed.get_world_size() != step.gpus:
        raise BenchError(
            f"--parallel {step.parallel} --gpus {step.gpus} is predicted; to run it, {step.gpus} "
            "processes have to join a process group first"
        )
    if step.parallel == DDP:
        # A trainer's accelerate wraps it.
        return model if step.by_trainer else DistributedDataParallel(model)
    return _sharded(model, step.gpus)


def _sharded(model: Any, gpus: int) -> Any:
    """FSDP2 as accelerate shards an adapted model, by its own `fsdp2_prepare_model`: it decides the
    units (since 1.15 each layer, the input embedding, the head, which stays gathered until the
    backward pass has begun, and a root that holds the rest). It is given what it asks an
    Accelerator for."""
    try:
        from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model
    except ImportError:
        raise BenchError(
            f"--parallel {FSDP}: this accelerate does not know FSDP2: pip install -U accelerate"
        ) from None
    from torch.distributed.device_mesh import init_device_mesh

    device = next(model.parameters()).device
    mesh = init_device_mesh("cpu" if device.type == "meta" else device.type, (gpus,))
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )  # fmt: skip
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), torch_device_mesh={("shards",): mesh},
        parallelism_config=SimpleNamespace(fsdp_dim_names=("shards",)), mixed_precision="no",
        is_main_process=False, device=device,
    )  # fmt: skip
    return fsdp2_prepare_model(accelerator, model)


def unwrapped(model: Any) -> Any:
    """The PEFT model within what DDP made of it; any other model itself."""
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model
