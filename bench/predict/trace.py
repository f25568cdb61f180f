"""The training step of a case, traced on meta: no weights, no arithmetic, every allocation."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from bench.compat import instead_of, patched, private
from bench.errors import BenchError
from bench.models.precision import precision
from bench.models.quantization import without_cached_tables
from bench.predict.autocast import followed_autocast
from bench.predict.gpus import Work
from bench.predict.journal import LOGITS, Journal, Untraceable
from bench.predict.kernels import Device
from bench.predict.liger import kernels_on
from bench.predict.ranks import as_rank, of_rank
from bench.predict.trainers import as_in_trainers, strict_within
from bench.predict.unquantized import left_unquantized
from bench.predict.values import tensors_in
from bench.tasks import TASKS
from bench.training import loading, storages
from bench.training.cases import Case
from bench.training.cost import CostCounter, name_of
from bench.training.liger import check_liger
from bench.training.limits import check_length
from bench.training.loops import run_step
from bench.training.options import FSDP, check_step
from bench.training.parallel import check_parallel, spread, unwrapped
from bench.training.step import Training, counted_tokens

LOAD, FIRST, STEADY = "load", "first-step", "steady-step"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trace:
    """What a case allocates, in order, and what its steady step computes.

    `events`, `sizes` (bytes), `categories` and `makers` are the journal's. `marks` are
    (index into events, phase): "load", then "first-step" and "steady-step", each followed by its
    "forward", "backward", "optimizer" and "end". `work` counts the operations with FLOPs that are
    alike; `moved_bytes` is what all others read and write.
    """

    events: tuple[int, ...]
    sizes: tuple[int, ...]
    categories: tuple[str, ...]
    makers: tuple[str, ...]
    marks: tuple[tuple[int, str], ...]
    operations: dict[str, int]
    flops: int
    work: dict[Work, int]
    moved_bytes: int
    trainable_parameters: int
    quantized_layers: int
    unquantized_bytes: dict[str, int]
    unquantized_share: float
    tokens: int

    @property
    def bytes_moved(self) -> int:
        """What every operation reads and writes once."""
        return self.moved_bytes + sum(each.bytes * times for each, times in self.work.items())


def trace(case: Case, device: Device, progress: Progress = lambda phase: None) -> Trace:
    """Trace loading and two steps of the case as `device` runs them (the second has optimizer
    state from the start). Raises Untraceable, naming the operation, where that cannot be done, and
    BenchError where the step fails."""
    check_step(case.step)
    check_liger(case)
    check_parallel(case)
    if case.step.parallel:
        device = of_rank(device)
    name = case.id
    if device.foreach_optimizer and case.step.optimizer == "adamw":
        case = replace(case, step=replace(case.step, optimizer="adamw-foreach"))
    journal = Journal(device)
    try:
        progress(LOAD)
        config, base = _skeleton(case)
        with (
            followed_autocast(device.name, device.attention),
            as_on(device, journal, case),
            as_in_trainers(case.step, device, journal),
            as_rank(case, journal),
            without_cached_tables(),
            no_collections(),
        ):
            return _traced(case, config, base, device, journal, progress)
    except BenchError as error:
        kind = Untraceable if isinstance(error, Untraceable) else BenchError
        raise kind(f"{name}: {error}") from error
    except Exception as error:  # the step itself fails, or the meta device does
        what = "the step cannot be traced"
        if case.step.parallel:
            what = f"--parallel {case.step.parallel}: torch's own code, a real step's too, fails"
        told = f"{type(error).__name__}: {_first_line(error)}{_codes_read(case, error)}"
        raise BenchError(f"{name}: {what}: {told}") from error


def _codes_read(case: Case, error: Exception) -> str:
    """Why it fails where the model reads the codes of a quantized layer as if they were weights, as
    Mamba does of `dt_proj` (transformers 5.23)."""
    if not precision(case.precision).quantized or not re.search(r"torch\.u?int8", str(error)):
        return ""
    skipped = "unless llm_int8_skip_modules leaves it as it is: take another precision here"
    codes = f"the model takes the weight of a layer by itself, which in {case.precision} is codes"
    return f": {codes}. A real step fails, too, {skipped}"


def _skeleton(case: Case) -> tuple[Any, Any]:
    """The case's config and the shapes of its model, which take no memory on any device.

    Whatever has to be imported is, before a function of torch is replaced: a module that is
    imported meanwhile could keep the replacement for good.
    """
    importlib.import_module("peft")
    loading.quiet_libraries()
    torch.manual_seed(case.step.seed)
    config = loading.make_config(case)
    base = loading.skeleton(case, config)
    check_length(case, config, base)
    return config, base


def _traced(  # noqa: PLR0917  # one call
    case: Case, config: Any, base: Any, device: Device, journal: Journal, progress: Progress
) -> Trace:
    journal.mark(LOAD)
    quantized = precision(case.precision).quantized
    journal.storages.category = "quantization_state" if quantized else "weights"
    with journal:
        base = loading.filled(base, case, config, "meta")
        left, share = left_unquantized(base, case)
        left_bytes = {kind: sum(p.nbytes for p in held) for kind, held in left.items()}
        del left
        if case.step.parallel == FSDP:  # whole on the CPU, and each rank's shards on its GPU
            journal.logging = True  # accelerate packs 4-bit weights' states, whatever is in them
            base = spread(case, loading.adapt(case, base))
            journal.logging = False
            storages.tag_model(journal.storages, base)
            journal.begin_here()
            training = loading.ready(case, config, base, "meta")
        else:
            training = loading.prepared(case, config, base, "meta", kernels_on(device, journal))
    for tensor in training.batch.values():
        journal.storages.tag(tensor, "activations")
    storages.tag_model(journal.storages, training.model)
    with (
        storages.tagged_gradients(journal.storages, training.model),
        _logits(journal, training.model),
        strict_within(journal, training),
    ):
        progress(FIRST)
        _step(journal, training, FIRST)
        storages.tag_model(journal.storages, training.model)
        storages.tag_optimizer(journal.storages, training.optimizer)
        progress(STEADY)
        cost = _Cost()
        journal.observer = cost
        _step(journal, training, STEADY)
        journal.observer = None
    return Trace(
        events=tuple(journal.events),
        sizes=tuple(journal.sizes),
        categories=tuple(journal.categories),
        makers=tuple(journal.makers),
        marks=tuple(journal.marks),
        operations=dict(sorted(cost.counter.operations.items())),
        flops=cost.counter.flops,
        work=dict(cost.work),
        moved_bytes=cost.moved_bytes,
        trainable_parameters=training.trainable_parameters,
        quantized_layers=training.quantized_layers,
        unquantized_bytes=left_bytes,
        unquantized_share=share,
        tokens=_tokens(journal, training),
    )


def _step(journal: Journal, training: Training, name: str) -> None:
    journal.mark(name)

    def mark(phase: str) -> None:
        if phase == "optimizer":
            journal.storages.category = "optimizer_state"
        elif not (
            phase == "backward" and journal.storages.category == LOGITS
        ):  # the loss goes first
            journal.storages.category = "activations"
        journal.mark(phase)
        # A product comes soon; and who trained in this process before has the handle already. The
        # backward pass's is made in the middle of the logits: there its place decides what fits.
        journal.keep_handle("main")

    with journal:
        run_step(training, mark)


def _tokens(journal: Journal, training: Training) -> int:
    """What counts in the batch as `Training.tokens` has it, from the values that are known."""
    values = {name: journal.values.of(tensor) for name, tensor in training.batch.items()}
    return int(counted_tokens({n: v for n, v in values.items() if v is not None}).sum())


@contextlib.contextmanager
def _logits(journal: Journal, model: torch.nn.Module) -> Iterator[None]:
    """File what the head, the loss and the loss's backward pass allocate as logits and loss."""
    heads = _heads(unwrapped(model))

    def enter(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        journal.storages.category = LOGITS
        for tensor in tensors_in(args):
            if tensor.requires_grad:
                tensor.register_hook(leave)

    def leave(gradient: torch.Tensor) -> None:
        journal.storages.category = "activations"
        journal.storages.tag(gradient, "activations")

    hooks = [head.register_forward_pre_hook(enter) for head in heads]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _heads(model: torch.nn.Module) -> list[torch.nn.Module]:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        return [head]
    names = {name for task in TASKS for name in task.heads}
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]


class _Cost:
    """Counts operations and FLOPs, and what they read and write."""

    def __init__(self) -> None:
        self.counter = CostCounter()
        self.work: Counter[Work] = Counter()
        self.moved_bytes = 0

    def __call__(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, nested: bool
    ) -> None:
        before = self.counter.flops
        self.counter(func, args, kwargs, out, nested)
        if nested:
            return
        given = [t for t in tensors_in((args, kwargs) if kwargs else args) if t.is_meta]
        made = [t for t in tensors_in(out) if t.is_meta]
        storages = {t.untyped_storage()._cdata for t in given}
        fresh = [t for t in made if t.untyped_storage()._cdata not in storages]
        if not fresh and not (given and func._schema.is_mutable):
            return  # a view
        size = sum(_bytes(t) for t in (*given, *fresh))
        flops = self.counter.flops - before
        if not flops:
            self.moved_bytes += size
            return
        dtype = str(given[0].dtype if given else fresh[0].dtype).removeprefix("torch.")
        if ".int8_" in name_of(func):
            dtype = "int8"
        self.work[Work(flops, size, dtype)] += 1


def _bytes(tensor: torch.Tensor) -> int:
    """What is read or written of a tensor: its elements, expanded ones once."""
    if tensor.is_contiguous():
        return int(tensor.numel() * tensor.element_size())
    shape = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    size: int = prod(shape) * tensor.element_size()
    return size


@contextlib.contextmanager
def as_on(device: Device, journal: Journal, case: Case) -> Iterator[None]:
    """While active, what looks at a tensor's device before it chooses a path takes `device`'s."""
    functional, rng_state = torch.nn.functional, torch.get_rng_state
    replacements: list[tuple[Any, str, Any]] = [
        # A fused optimizer asks for a device that has one.
        instead_of("fused optimizers", _accept),
        instead_of("foreach support", lambda *_: device.foreach_optimizer),
    ]
    if precision(case.precision).bits == 4:
        parameters = importlib.import_module("bitsandbytes.nn").Params4bit
        replacements.append((parameters, "__deepcopy__", _copied_4bit))
    if "cpu" in device.followed:
        # Checkpointing keeps the generator's state, made without the dispatcher.
        replacements += [
            (torch, "get_rng_state", lambda: journal.storages.meet(rng_state())),
            (torch.random, "fork_rng", _forked_generator(journal, rng_state)),
        ]
        if precision(case.precision).quantized:
            functions = importlib.import_module("bitsandbytes.autograd._functions")
            replacements.append(instead_of("8-bit product", functions.MatMul8bitFp))
    if case.step.optimizer.startswith("paged-"):
        functions = importlib.import_module("bitsandbytes.functional")
        replacements += [
            (functions, "get_paged", _paged),
            (functions, "fill", _accept),
            (functions, "prefetch_tensor", _accept),
        ]
    replacements += [(functional, name, value) for name, value in device.functions.items()]
    if device.fused_dropout:
        replacements.append((functional, "dropout", _fused_dropout))
    replacements.append((torch, "tensor", _known_tensor(torch.tensor)))
    with patched(*replacements), loading.undrawn():  # adapters begin on the CPU
        yield


def _known_tensor(made_of: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.tensor`, which forgets the values that it is given for meta, and reads those of
    scalars in a list behind the dispatcher's back. (A function mode would do, and would be asked
    for every function of torch, which takes a tenth of a trace's time.)"""

    def plain(data: Any) -> Any:
        if isinstance(data, (list, tuple)):
            return [plain(item) for item in data]
        scalar = isinstance(data, torch.Tensor) and data.device.type == "meta" and not data.dim()
        return data.item() if scalar else data

    def tensor(data: Any, *, device: Any = None, **settings: Any) -> torch.Tensor:
        made = made_of(plain(data), **settings)
        return made if device is None else made.to(device)

    return tensor


def _forked_generator(journal: Journal, state: Callable[[], torch.Tensor]) -> Callable[..., Any]:
    @contextlib.contextmanager
    def fork(*_: Any, enabled: bool = True, **__: Any) -> Iterator[None]:
        held = journal.storages.meet(state()) if enabled else None
        yield
        del held

    return fork


def _copied_4bit(parameter: Any, memo: dict[int, Any]) -> Any:
    """`Params4bit.__deepcopy__`, which begins with an empty copy on the CPU: data on meta does not
    go in there. DoRA copies each layer that it adapts."""
    settings = {**vars(parameter), "quant_state": copy.deepcopy(parameter.quant_state)}
    data = copy.deepcopy(parameter.data)
    return type(parameter)(data, parameter.requires_grad, **settings)


def _paged(*shape: int, dtype: torch.dtype = torch.float32, **_: Any) -> torch.Tensor:
    """bitsandbytes' managed memory: it is not the allocator's, so nothing follows it."""
    with private("no modes")():
        held = torch.empty(shape, dtype=dtype, device="meta")
    held.is_paged = True
    held.page_deviceid = 0
    return held


def _accept(*_: Any, **__: Any) -> None:
    pass


def _fused_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """CUDA's dropout: one pass, which keeps a byte an element for the backward pass."""
    if not training or p == 0:
        return input
    if inplace:
        return torch.dropout_(input, p, training)
    out: torch.Tensor = torch.native_dropout(input, p, True)[0]
    return out


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Whether a collection falls into a step must not decide its peak."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
