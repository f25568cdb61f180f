"""A step over several GPUs: torch's own DDP or FSDP2 around an adapted model, and what is refused.

`spread` wraps the model on whatever process group there is: a real one that several processes have
joined, or the fake one in which `bench.predict.ranks` traces what one of them does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.models.precision import precision
from bench.training.options import DDP, FSDP, KEEP_OUTPUT, PLAIN, StepOptions, flag_of

if TYPE_CHECKING:
    from bench.training.cases import Case

MODEL_TYPES = ("llama",)
PARALLEL_PRECISIONS = ("bf16", "nf4", "nf4-dq")
PARALLEL_OPTIMIZERS = ("adamw", "adamw-foreach", "sgd")
PARALLEL_LOOPS = (PLAIN, KEEP_OUTPUT)
_ALLOWED = frozenset(
    ("batch_size", "seq_len", "optimizer", "learning_rate", "gradient_checkpointing", "padded",
     "packed", "attention", "seed", "loop", "autocast_adapter_dtype", "parallel", "gpus")
)  # fmt: skip
"""The fields of a step that may differ from their defaults; every other is refused by its name."""


def check_parallel(case: Case) -> None:
    """Raise BenchError, naming it, for what no prediction over several GPUs has been held to."""
    step = case.step
    if step.parallel is None:
        return
    how = f"--parallel {step.parallel}"
    kind = case.config.get("model_type")
    if kind not in MODEL_TYPES:
        raise BenchError(
            f"{how}: {case.model} is of type {kind}, and this is held to real steps for "
            f"{', '.join(MODEL_TYPES)} alone"
        )
    check_parallel_step(step, case.precision)
    for name in ("use_dora", "modules_to_save", "target_parameters", "trainable_token_indices"):
        if case.adapter.get(name):
            raise BenchError(f"{how} is not predicted with an adapter that has {name}")
    if case.adapter.get("bias", "none") != "none":
        raise BenchError(f"{how} is not predicted with an adapter that trains biases")


def check_parallel_step(step: StepOptions, *precisions: str) -> None:
    """The part of `check_parallel` that no model has to be known for."""
    if step.parallel is None:
        return
    how = f"--parallel {step.parallel}"
    for each in precisions:
        _among(how, "--precision", each, PARALLEL_PRECISIONS)
    _among(how, "--loop", step.loop, PARALLEL_LOOPS)
    _among(how, "--optimizer", step.optimizer, PARALLEL_OPTIMIZERS)
    usual = StepOptions()
    for name in StepOptions.__dataclass_fields__:
        if name not in _ALLOWED and getattr(step, name) != getattr(usual, name):
            raise BenchError(f"{how} is not predicted with {flag_of(name)}")


def _among(how: str, option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BenchError(f"{how} is not predicted with {option} {value}: {', '.join(known)}")


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
        return DistributedDataParallel(model)
    return _sharded(model, step.gpus)


def _sharded(model: Any, gpus: int) -> Any:
    """FSDP2 with the units that accelerate 1.15 makes of a PEFT model (`fsdp2_prepare_model`): each
    layer, the input embedding, the head (which stays gathered until the backward pass has begun),
    and a root that holds the rest. A tied head and embedding are one unit, the head's."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = next(model.parameters()).device.type
    mesh = init_device_mesh("cpu" if kind == "meta" else kind, (gpus,))
    names = set(model._no_split_modules)
    for module in [m for m in model.modules() if type(m).__name__ in names]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tail = [head]
    if embedding.weight is head.weight:
        tail = [embedding, head]
    else:
        fully_shard(embedding, mesh=mesh, reshard_after_forward=True)
    fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def unwrapped(model: Any) -> Any:
    """The PEFT model within what DDP made of it; any other model itself."""
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model
