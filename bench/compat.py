"""Every private name of a library that is used here, with the version that it was last seen in.

A library may move such a name in any release. It is looked up through `private`, so that a release
without it is told in words, and all that moved with it; `patched` is the one place that puts
something else in the place of a library's function, and puts it back.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
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


def _of(seen: str, uses: Mapping[str, Mapping[str, str]]) -> dict[str, Private]:
    """Of one release: use → {name: where}."""
    return {
        name: Private(where, seen, use)
        for use, places in uses.items()
        for name, where in places.items()
    }


PRIVATE = {
    **_of("torch 2.13.0", {
        "every kernel that a step calls is seen: its memory, cost and values": {
            "dispatch mode": "torch.utils._python_dispatch:TorchDispatchMode",
        },
        "a kernel is asked for its workspace without being counted": {
            "no modes": "torch.utils._python_dispatch:_disable_current_modes",
        },
        "what a kernel calls inside is seen, on the CPU's path": {
            "dispatch key": "torch._C:DispatchKeySet",
        },
        "which sums of gradients autograd makes in place": {
            "holders of a storage": "torch._C:_storage_Use_Count",
            "holders of a tensor": "torch:Tensor._use_count",
            "dense tensors": "torch._prims_common:is_non_overlapping_and_dense_or_false",
        },
        "what the backward pass's thread keeps on a GPU is counted when it is first used": {
            "node of autograd": "torch._C:_current_autograd_node",
        },
        "a worker whose parent had used CUDA says so": {"bad fork": "torch.cuda:_is_in_bad_fork"},
        "operations of attention on a CPU": {
            "attention on the cpu": "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu",
        },
        "memory of cuDNN's kernel": {
            "attention, cudnn": "torch:ops.aten._scaled_dot_product_cudnn_attention",
        },
        "memory and operations of the flash kernel": {
            "attention, flash": "torch:ops.aten._scaled_dot_product_flash_attention",
        },
        "memory of the efficient kernel": {
            "attention, efficient": "torch:ops.aten._scaled_dot_product_efficient_attention",
        },
        "a fused step is traced on meta, which has none": {
            "fused optimizers": "torch.optim.adam:_device_dtype_check_for_fused",
        },
        "gradients are clipped as on the device that is predicted": {
            "foreach support": "torch.nn.utils.clip_grad:_has_foreach_support",
        },
        "one rank of several is traced in one process": {
            "fake store": "torch.testing._internal.distributed.fake_pg:FakeStore",
            "ended work": "torch._C._distributed_c10d:_create_work_from_future",
            "shard of a tensor": "torch.distributed.tensor:DTensor._local_tensor",
        },
        "FSDP2 is traced on meta": {
            **{f"fsdp {what}": f"torch.distributed.fsdp._fully_shard:_{name}" for what, name in (
                ("devices", "fully_shard"), ("groups", "fsdp_param_group"),
                ("collectives", "fsdp_collectives"), ("parameters", "fsdp_param"),
                ("states", "fsdp_state"))},
        },
        "shapes that DTensor asks fake tensors for are not counted": {
            "shapes of shards": "torch.distributed.tensor._sharding_prop:ShardingPropagator",
            "shapes of shards, uncached":
                "torch.distributed.tensor._sharding_prop:"
                "ShardingPropagator._propagate_tensor_meta_non_cached",
        },
        "DDP is traced on meta": {
            "ddp": "torch.nn.parallel:distributed",
            "ddp's forward": "torch.nn.parallel:DistributedDataParallel._pre_forward",
        },
        "autocast is followed on meta": {
            "unused autocast key": "torch._C:DispatchKey.AutocastPrivateUse1",
            "library, taken back": "torch.library:Library._destroy",
            "views": "torch:Tensor._is_view",
            **{f"autocast: {name}": f"torch._C:{name}" for name in (
                "_ExcludeDispatchKeyGuard", "_dispatch_get_all_op_names",
                "_dispatch_has_kernel_for_dispatch_key",
                "_dispatch_tls_set_dispatch_key_included",
                "_dispatch_tls_set_dispatch_key_excluded")},
        },
        "what a kernel writes to and gives back": {
            **{f"an operation's {name}": f"torch:ops.aten.add.Tensor.{name}"
               for name in ("_schema", "_overloadname", "_overloadpacket")},
        },
        "tensors of one storage are counted once": {
            "address of a storage": "torch:UntypedStorage._cdata",
        },
        "how MultiheadAttention holds its weights": {"widths of attention": ":_qkv_same_embed_dim"},
    }),
    **_of("transformers 5.23.0", {
        "weights arrive in the order in which from_pretrained brings them": {
            "loading order": "transformers.core_model_loading:dot_natural_key",
        },
        "by which family PEFT rewrites the names of fused experts": {
            "conversion patterns": "transformers.conversion_mapping:_MODEL_TO_CONVERSION_PATTERN",
        },
        "nobody is asked at the terminal whether a model's own code may run": {
            "time to answer": "transformers.dynamic_module_utils:TIME_OUT_REMOTE_CODE",
        },
        "which class an auto class builds for a configuration": {
            "models of a class": "transformers:AutoModelForCausalLM._model_mapping",
        },
        "which modules share a weight": {
            "tied keys": "transformers:PreTrainedModel._tied_weights_keys",
        },
        "which modules no quantization touches": {
            "kept in float32": "transformers:PreTrainedModel._keep_in_fp32_modules",
        },
        "a quantized model calls the layers whose weights it would read otherwise": {
            "quantized": ":_is_quantized",
        },
        "the memory-efficient kernel gets keys and values expanded, as it needs them": {
            "grouped attention": "transformers.integrations.sdpa_attention:use_gqa_in_sdpa",
        },
        "autocast is followed on meta, within models": {
            "autocast, perhaps": "transformers.utils.generic:maybe_autocast",
        },
        "the trainer loops": {
            "trainer, prepared": "transformers:Trainer._prepare_for_training",
            "trainer's items": "transformers:Trainer._get_num_items_in_batch",
            "trainer's clipping": "transformers:Trainer._clip_grad_norm",
            "trainer's norm": "transformers:Trainer._get_grad_norm",
            "trainer's loss": ":_tr_loss",
        },
        "a model at hand is predicted with the attention that it has": {
            "attention's name": "transformers:PretrainedConfig._attn_implementation",
        },
        "what FSDP2 shards by": {
            "blocks that are not split": "transformers:PreTrainedModel._no_split_modules",
        },
        "which weights initialize_weights leaves as they are": {
            "initialized": ":_is_hf_initialized",
        },
    }),
    **_of("peft 0.21.2", {
        "KaSA's step is traced on meta": {"pending cuts": ":_lora_kasa_truncation_deferred"},
    }),
    **_of("accelerate 1.15.0", {
        "a trainer is traced beside one that trains": {
            "accelerate's process": "accelerate.state:PartialState._shared_state",
            "accelerate's precision": "accelerate.state:AcceleratorState._shared_state",
            "accelerate's accumulation": "accelerate.state:GradientState._shared_state",
        },
        "the trainer loops": {
            "accelerate's last batch": "accelerate.state:GradientState._set_sync_gradients",
        },
    }),
    **_of("trl 1.16.0", {
        "the sft loop, as CUDA runs its head": {
            "fused head": "trl.kernels.chunked_logprob:ChunkedLogProbFunction",
            "fused head's chunks": "trl.trainer.utils:_use_triton",
        },
    }),
    **_of("bitsandbytes 0.50.2", {
        "no table of a traced quantization is left for a real one": {
            "4-bit bounds": "bitsandbytes.backends.default.ops:_get_4bit_quantize_bounds",
            "4-bit codes": "bitsandbytes.backends.utils:_code_4bit_cache",
            "codes by name": "bitsandbytes.functional:name2qmap",
        },
        "the memory of an earlier release, which kept the inputs": {
            "4-bit product": "bitsandbytes.autograd._functions:MatMul4Bit",
        },
        "an 8-bit product is predicted": {
            "8-bit product": "bitsandbytes.autograd._functions:MatMul8bitLt",
        },
        "weights are packed as on a GPU": {"4-bit packing": "bitsandbytes.nn:Params4bit._quantize"},
    }),
    **_of("pytest-benchmark 5.3.1", {
        "what pytest-benchmark timed is in the run": {
            "benchmarks": ":_benchmarksession.benchmarks",
        },
        "a run whose --benchmark-json cannot be written is stored": {
            "benchmarks' file": ":_benchmarksession.save_json",
        },
    }),
    **_of("pytest 9.2.0", {
        "a summary as wide as the terminal": {"width of the terminal": ":_tw.fullwidth"},
        "the line that counts the cases": {"terminal": ":_tw._file"},
        "the project is that of the tests, whatever folder an option names": {
            "root directory": "_pytest.config.findpaths:determine_setup",
        },
    }),
    **_of("ray 2.60.0", {
        "a case that began anew on another node says so": {
            "attempt of a task": "ray._raylet:CoreWorker.get_current_task_attempt_number",
        },
        "they are kept off the screen": {
            "messages of nodes": "ray._private.worker:print_to_stdstream",
        },
    }),
}  # fmt: skip
"""What an object at hand has (no module), or an instance where it is used, stands here for
`what_moved`, which tells one that is gone."""


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
        raise BenchError(_moved_text(entry), *gone) from None


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


def rename(item: Any, nodeid: str) -> None:
    """Give a collected test another id: pytest makes it from whichever folder is the root. In
    9.2.0 it is an object, in older releases a string."""
    structured = type(getattr(item, "_id", nodeid))
    if structured is str:
        item._nodeid = nodeid
    else:
        make: Any = sys.modules[structured.__module__]
        item._id = make.coerce_node_id(nodeid)


@contextlib.contextmanager
def patched(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """While active, attribute `name` of each `owner` is `value`: (owner, name, value).

    A `TorchFunctionMode` would be asked for every function, and would not see dropout, softmax and
    attention within a function that it is shown whole (`multi_head_attention_forward`), nor
    functions that take no tensor (`get_rng_state`, `is_autocast_enabled`).
    """
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


def unasked(trusted: bool = False) -> contextlib.AbstractContextManager[None]:
    """While active, transformers refuses a model's own code where it would ask whoever is at the
    terminal: its models and tokenizers load parts of theirs without a word about that code."""
    return contextlib.nullcontext() if trusted else patched(instead_of("time to answer", 0))


class _Uncompiled:
    """Finds a module once, and leaves what it has torch compile as it is written."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        if (spec := find_spec(name)) is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            import torch

            with patched((torch, "compile", _as_written)):
                execute(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def spare_the_compiler() -> None:
    """For the main function of a process in which nothing of somebody else's runs. bitsandbytes has
    two functions compiled where it is imported, for which torch imports its whole compiler: a sixth
    of what a command takes that has little else to do. They run uncompiled where that fails."""
    if "bitsandbytes" not in sys.modules:
        sys.meta_path.insert(0, _Uncompiled("bitsandbytes"))


def _as_written(function: Any = None, **_: Any) -> Any:
    return function if function is not None else _as_written
