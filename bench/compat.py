"""Every private name of a library that is used here, with the version that it was last seen in.

A library may move such a name in any release. It is looked up through `private`, so that a release
without it is told in words, and all that moved with it; `patched` is the one place that puts
something else in the place of a library's function, and puts it back.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bench.errors import BenchError


@dataclass(frozen=True)
class Private:
    """A name that no library promises: `module:attribute`, dots in it for an attribute's own; with
    no module, of an object at hand.

    seen: the newest release that had it, as `distribution version`. use: what goes without it.
    """

    where: str
    seen: str
    use: str

    @property
    def distribution(self) -> str:
        return self.seen.partition(" ")[0]

    def find(self, held: Any = None) -> Any:
        """The object itself. Raises ImportError or AttributeError where it has moved."""
        module, _, path = self.where.partition(":")
        found: Any = importlib.import_module(module) if module else held
        for name in path.split("."):
            found = getattr(found, name)
        return found


_TORCH, _TRANSFORMERS, _BITSANDBYTES = "torch 2.13.0", "transformers 5.23.0", "bitsandbytes 0.50.2"
_BENCHMARK, _PYTEST = "pytest-benchmark 5.3.1", "pytest 9.2.0"
_ACCELERATE, _TRL = "accelerate 1.15.0", "trl 1.16.0"

PRIVATE = {
    "dispatch mode": Private(
        "torch.utils._python_dispatch:TorchDispatchMode", _TORCH,
        "every kernel that a step calls is seen: its memory, cost and values",
    ),
    "loading order": Private(
        "transformers.core_model_loading:dot_natural_key", _TRANSFORMERS,
        "weights arrive in the order in which from_pretrained brings them",
    ),
    "no modes": Private(
        "torch.utils._python_dispatch:_disable_current_modes", _TORCH,
        "a kernel is asked for its workspace without being counted",
    ),
    "dispatch key": Private(
        "torch._C:DispatchKeySet", _TORCH, "what a kernel calls inside is seen, on the CPU's path"
    ),
    "holders of a storage": Private(
        "torch._C:_storage_Use_Count", _TORCH, "which sums of gradients autograd makes in place"
    ),
    "holders of a tensor": Private("torch:Tensor._use_count", _TORCH,
        "which sums of gradients autograd makes in place"),
    "dense tensors": Private(
        "torch._prims_common:is_non_overlapping_and_dense_or_false", _TORCH,
        "which sums of gradients autograd makes in place",
    ),
    "node of autograd": Private(
        "torch._C:_current_autograd_node", _TORCH,
        "what the backward pass's thread keeps on a GPU is counted when it is first used",
    ),
    "bad fork": Private(
        "torch.cuda:_is_in_bad_fork", _TORCH, "a worker whose parent had used CUDA says so"
    ),
    "attention on the cpu": Private(
        "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu", _TORCH,
        "operations of attention on a CPU"
    ),
    "attention, cudnn": Private(
        "torch:ops.aten._scaled_dot_product_cudnn_attention", _TORCH,
        "memory of cuDNN's kernel"
    ),
    "attention, flash": Private(
        "torch:ops.aten._scaled_dot_product_flash_attention", _TORCH,
        "memory and operations of the flash kernel"
    ),
    "attention, efficient": Private(
        "torch:ops.aten._scaled_dot_product_efficient_attention", _TORCH,
        "memory of the efficient kernel"
    ),
    "fused optimizers": Private(
        "torch.optim.adam:_device_dtype_check_for_fused", _TORCH,
        "a fused step is traced on meta, which has none",
    ),
    "foreach support": Private(
        "torch.nn.utils.clip_grad:_has_foreach_support", _TORCH,
        "gradients are clipped as on the device that is predicted",
    ),
    "fake store": Private(
        "torch.testing._internal.distributed.fake_pg:FakeStore", _TORCH,
        "one rank of several is traced in one process",
    ),
    "ended work": Private(
        "torch._C._distributed_c10d:_create_work_from_future", _TORCH,
        "the same: what a collective gives back",
    ),
    **{
        f"fsdp {what}": Private(
            f"torch.distributed.fsdp._fully_shard:_{name}", _TORCH, "FSDP2 is traced on meta"
        )
        for what, name in (("devices", "fully_shard"), ("groups", "fsdp_param_group"),
                           ("collectives", "fsdp_collectives"), ("parameters", "fsdp_param"),
                           ("states", "fsdp_state"))
    },
    "shapes of shards": Private(
        "torch.distributed.tensor._sharding_prop:ShardingPropagator", _TORCH,
        "shapes that DTensor asks fake tensors for are not counted",
    ),
    "ddp": Private("torch.nn.parallel:distributed", _TORCH, "DDP is traced on meta"),
    "conversion patterns": Private(
        "transformers.conversion_mapping:_MODEL_TO_CONVERSION_PATTERN", _TRANSFORMERS,
        "by which family PEFT rewrites the names of fused experts",
    ),
    "models of a class": Private(
        "transformers:AutoModelForCausalLM._model_mapping", _TRANSFORMERS,
        "which class an auto class builds for a configuration",
    ),
    "tied keys": Private(
        "transformers:PreTrainedModel._tied_weights_keys", _TRANSFORMERS,
        "which modules share a weight",
    ),
    "kept in float32": Private(
        "transformers:PreTrainedModel._keep_in_fp32_modules", _TRANSFORMERS,
        "which modules no quantization touches",
    ),
    "grouped attention": Private(
        "transformers.integrations.sdpa_attention:use_gqa_in_sdpa", _TRANSFORMERS,
        "the memory-efficient kernel gets keys and values expanded, as it needs them",
    ),
    "unused autocast key": Private(
        "torch._C:DispatchKey.AutocastPrivateUse1", _TORCH, "autocast is followed on meta"
    ),
    "autocast, perhaps": Private(
        "transformers.utils.generic:maybe_autocast", _TRANSFORMERS,
        "autocast is followed on meta, within models"
    ),
    "trainer, prepared": Private(
        "transformers:Trainer._prepare_for_training", _TRANSFORMERS, "the trainer loops"
    ),
    "trainer's items": Private(
        "transformers:Trainer._get_num_items_in_batch", _TRANSFORMERS, "the trainer loops"
    ),
    "trainer's clipping": Private(
        "transformers:Trainer._clip_grad_norm", _TRANSFORMERS, "the trainer loops"
    ),
    "accelerate's process": Private(
        "accelerate.state:PartialState._shared_state", _ACCELERATE,
        "a trainer is traced beside one that trains",
    ),
    "accelerate's precision": Private(
        "accelerate.state:AcceleratorState._shared_state", _ACCELERATE,
        "a trainer is traced beside one that trains"
    ),
    "accelerate's accumulation": Private(
        "accelerate.state:GradientState._shared_state", _ACCELERATE,
        "a trainer is traced beside one that trains"
    ),
    "fused head": Private(
        "trl.kernels.chunked_logprob:ChunkedLogProbFunction", _TRL,
        "the sft loop, as CUDA runs its head",
    ),
    "fused head's chunks": Private(
        "trl.trainer.utils:_use_triton", _TRL, "the sft loop, as CUDA runs its head"
    ),
    "4-bit bounds": Private(
        "bitsandbytes.backends.default.ops:_get_4bit_quantize_bounds", _BITSANDBYTES,
        "no table of a traced quantization is left for a real one",
    ),
    "4-bit codes": Private(
        "bitsandbytes.backends.utils:_code_4bit_cache", _BITSANDBYTES,
        "no table of a traced quantization is left for a real one"
    ),
    "codes by name": Private(
        "bitsandbytes.functional:name2qmap", _BITSANDBYTES,
        "no table of a traced quantization is left for a real one"
    ),
    "4-bit product": Private(
        "bitsandbytes.autograd._functions:MatMul4Bit", _BITSANDBYTES,
        "the memory of an earlier release, which kept the inputs",
    ),
    "8-bit product": Private(
        "bitsandbytes.autograd._functions:MatMul8bitLt", _BITSANDBYTES,
        "an 8-bit product is predicted",
    ),
    "benchmarks": Private(
        ":_benchmarksession.benchmarks", _BENCHMARK, "what pytest-benchmark timed is in the run"
    ),
    "width of the terminal": Private(
        ":_tw.fullwidth", _PYTEST, "a summary as wide as the terminal"
    ),
    "terminal": Private(":_tw._file", _PYTEST, "the line that counts the cases"),
    "attempt of a task": Private(
        "ray._raylet:CoreWorker.get_current_task_attempt_number", "ray 2.60.0",
        "a case that began anew on another node says so",
    ),
    "messages of nodes": Private(
        "ray._private.worker:print_to_stdstream", "ray 2.60.0", "they are kept off the screen"
    ),
    # Taken from an instance where they are used; `what_moved` tells one that is gone.
    **{
        f"autocast: {name}": Private(f"torch._C:{name}", _TORCH, "autocast is followed on meta")
        for name in ("_ExcludeDispatchKeyGuard", "_dispatch_get_all_op_names",
                     "_dispatch_has_kernel_for_dispatch_key",
                     "_dispatch_tls_set_dispatch_key_included",
                     "_dispatch_tls_set_dispatch_key_excluded")
    },
    **{
        f"an operation's {name}": Private(
            f"torch:ops.aten.add.Tensor.{name}", _TORCH, "what a kernel writes to and gives back"
        )
        for name in ("_schema", "_overloadname", "_overloadpacket")
    },
    "library, taken back": Private(
        "torch.library:Library._destroy", _TORCH, "autocast is followed on meta"
    ),
    "views": Private("torch:Tensor._is_view", _TORCH, "autocast is followed on meta"),
    "address of a storage": Private(
        "torch:UntypedStorage._cdata", _TORCH, "tensors of one storage are counted once"
    ),
    "shard of a tensor": Private(
        "torch.distributed.tensor:DTensor._local_tensor", _TORCH, "one rank of several is traced"
    ),
    "shapes of shards, uncached": Private(
        "torch.distributed.tensor._sharding_prop:"
        "ShardingPropagator._propagate_tensor_meta_non_cached", _TORCH,
        "shapes that DTensor asks fake tensors for are not counted",
    ),
    "ddp's forward": Private(
        "torch.nn.parallel:DistributedDataParallel._pre_forward", _TORCH, "DDP is traced on meta"
    ),
    "widths of attention": Private(
        ":_qkv_same_embed_dim", _TORCH, "how MultiheadAttention holds its weights"
    ),
    "attention's name": Private(
        "transformers:PretrainedConfig._attn_implementation", _TRANSFORMERS,
        "a model at hand is predicted with the attention that it has",
    ),
    "blocks that are not split": Private(
        "transformers:PreTrainedModel._no_split_modules", _TRANSFORMERS, "what FSDP2 shards by"
    ),
    "initialized": Private(
        ":_is_hf_initialized", _TRANSFORMERS, "which weights initialize_weights leaves as they are"
    ),
    "trainer's norm": Private(
        "transformers:Trainer._get_grad_norm", _TRANSFORMERS, "the trainer loops"
    ),
    "trainer's loss": Private(":_tr_loss", _TRANSFORMERS, "the trainer loops"),
    "accelerate's last batch": Private(
        "accelerate.state:GradientState._set_sync_gradients", _ACCELERATE, "the trainer loops"
    ),
    "4-bit packing": Private(
        "bitsandbytes.nn:Params4bit._quantize", _BITSANDBYTES, "weights are packed as on a GPU"
    ),
}  # fmt: skip


_INHERITED = object()


def private(name: str, held: Any = None) -> Any:
    """The object that PRIVATE calls `name`, of `held` where it names no module. BenchError, with
    all that moved in that library, where the installed release has it no more.

    This is the check of a start: whoever works with a private name asks for it here first, whether
    it takes the object from here or, as an instance's own, from the instance."""
    entry = PRIVATE[name]
    try:
        return entry.find(held)
    except (ImportError, AttributeError):
        gone = dict.fromkeys((_told(entry), *moved(entry.distribution)))
        raise BenchError("\n  ".join([_moved_text(entry), *gone])) from None


def instead_of(name: str, value: Any) -> tuple[Any, str, Any]:
    """For `patched`: `value` in the place of what PRIVATE calls `name`, which must be there."""
    private(name)
    module, _, path = PRIVATE[name].where.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, attribute = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, attribute, value


@cache
def moved(distribution: str) -> tuple[str, ...]:
    """What the installed release of a library lacks of PRIVATE, a sentence each; it is imported."""
    lacking = []
    for entry in PRIVATE.values():
        if entry.distribution == distribution and not entry.where.startswith(":"):
            try:
                entry.find()
            except (ImportError, AttributeError):
                lacking.append(_told(entry))
    return tuple(lacking)


def what_moved(error: AttributeError | ImportError) -> str:
    """What is to be said of an error where the name that it misses is one of PRIVATE, with all that
    moved with it; "" of any other."""
    for entry in PRIVATE.values():
        library = entry.where.partition(":")[0].partition(".")[0]
        if error.name == entry.where.rpartition(".")[2].rpartition(":")[2] and (
            not library or library in sys.modules
        ):
            gone = dict.fromkeys((_told(entry), *moved(entry.distribution)))
            return "\n  ".join([_moved_text(entry), *gone])
    return ""


def _told(entry: Private) -> str:
    return f"{entry.where} (last seen in {entry.seen}): {entry.use}"


def _moved_text(entry: Private) -> str:
    try:
        installed = version(entry.distribution)
    except PackageNotFoundError:
        installed = "is not installed"
    return (
        f"{entry.distribution} {installed} lacks what is used of it here; "
        f"pip install '{entry.seen.replace(' ', '==')}', or report what moved:"
    )


def benchmarks_of(config: Any) -> Any:
    """The figures that pytest-benchmark has collected; it offers them to no hook."""
    return private("benchmarks", config)


def width_of(reporter: Any) -> int:
    """Columns of the terminal that pytest writes to; its reporter tells them to nobody."""
    return int(private("width of the terminal", reporter))


def rename(item: Any, nodeid: str) -> None:
    """Give a collected test another id: pytest makes it from whichever folder is the root. In
    9.2.0 it is an object, in older releases a string."""
    structured = type(getattr(item, "_id", nodeid))
    if structured is str:
        item._nodeid = nodeid
    else:
        make: Any = sys.modules[structured.__module__]
        item._id = make.coerce_node_id(nodeid)


def rewrite_line(reporter: Any, text: str) -> None:
    """Put `text` in the place of the terminal's last line: on the file itself, since pytest's
    writer counts what it writes, and would break a line that is rewritten."""
    file = private("terminal", reporter)
    file.write(f"\r\x1b[K{text}")
    file.flush()


@contextlib.contextmanager
def patched(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """While active, attribute `name` of each `owner` is `value`: (owner, name, value)."""
    originals = [
        (owner, name, vars(owner).get(name, _INHERITED)) for owner, name, _ in replacements
    ]
    for owner, name, value in replacements:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(originals):
            if value is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def unreset() -> contextlib.AbstractContextManager[None]:
    """While active, torch's own layers begin with whatever lies in their weights: on meta there is
    nothing to draw, and half of the time that it takes to make a layer goes into not drawing it.
    Unlike torch.nn.init's functions, a method is not kept by a module that is imported meanwhile.
    """
    from torch import nn

    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return patched(*((kind, "reset_parameters", _nothing) for kind in kinds))


def _nothing(*_: Any) -> None:
    pass
