"""Memory, seen three ways: tracked storages, the CUDA allocator, and the process.

The tracker is exact and repeatable on every device: it follows the life of each tensor storage
that passes through torch's dispatcher, and knows at the peak what each byte was for.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.compat import private

CATEGORIES = (
    "weights",
    "quantization_state",
    "adapters",
    "gradients",
    "optimizer_state",
    "activations",
)
"""What bytes are for. "adapters" holds every trainable parameter, whole saved modules too;
"activations" whatever forward and backward allocate beyond gradients, temporaries and the batch
included; "optimizer_state" the temporaries of its step too."""

_CPU = private("dispatch key")(torch._C.DispatchKey.CPU)
_DispatchMode = private("dispatch mode")

Observer = Callable[[Any, tuple[Any, ...], dict[str, Any], Any, bool], None]
"""Told of each operation: function, args, kwargs, output, and whether another operation ran it."""


@dataclass(slots=True)
class _Storage:
    bytes: int
    category: str
    watch: Any  # the weak reference whose callback tells of the storage's end


@dataclass
class MemoryTracker(_DispatchMode):  # type: ignore[misc, valid-type]  # torch is seen untyped
    """Follows the storages of one device type that are made while the mode is active.

    A storage counts its bytes (`nbytes`, no rounding) from the operation that made it until it is
    freed, also after the mode has been left. New storages are filed under `category`; `tag` files
    a tensor elsewhere. On the CPU, bitsandbytes' kernels and the temporaries of type promotion are
    followed inside, and the generator's states that checkpointing keeps are met as they are made;
    what other compiled kernels allocate for themselves is not seen.
    """

    device: str = "cpu"
    category: str = "activations"
    observer: Observer | None = None
    live_bytes: int = 0
    peak_bytes: int = 0
    made_bytes: int = 0
    """Bytes of every storage made so far, freed or not."""
    by_category: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    peak_by_category: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))

    def __post_init__(self) -> None:
        super().__init__()
        self._storages: dict[int, _Storage] = {}
        self._inside: Any = None
        self._temporaries: list[Any] | None = None

    def __enter__(self) -> MemoryTracker:
        if self._outermost():
            self._get_rng_state = torch.get_rng_state
            torch.get_rng_state = self._generator_state
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._outermost():
            torch.get_rng_state = self._get_rng_state

    def _outermost(self) -> bool:
        """Whether this is not the mode entered again, to see what a kernel calls."""
        return self.device == "cpu" and self._inside is None

    def _generator_state(self) -> torch.Tensor:
        """`torch.get_rng_state`, whose tensor is made in C++ without the dispatcher."""
        state: torch.Tensor = self._get_rng_state()
        self._meet(state.untyped_storage())
        return state

    def reset_peak(self) -> None:
        """Start a new phase: the peak is what is alive now."""
        self.peak_bytes = self.live_bytes
        self.peak_by_category = dict(self.by_category)

    def tag(self, tensor: torch.Tensor, category: str) -> None:
        """File the tensor's storage under `category`; a storage not seen yet counts from now on."""
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            self._begin(storage, category)
        elif known.category != category:
            self.by_category[known.category] -= known.bytes
            self.by_category[category] += known.bytes
            known.category = category

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        nested = self._inside is not None
        follow = self.device == "cpu" and _allocates_inside(func, args)
        outer = self._temporaries
        if follow:  # an elementwise kernel's temporaries live until its result is there
            self._temporaries = None if func.namespace == "bitsandbytes" else []
        out = self._follow(func, args, kwargs) if follow else func(*args, **kwargs)
        for tensor in _tensors(out):
            if tensor.device.type == self.device:
                self._meet(tensor.untyped_storage())
        self._temporaries = outer
        if outer is not None:
            outer.append(out)
        if self.observer is not None:
            self.observer(func, args, kwargs, out, nested)
        return out

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the kernel with the mode still active, so that what it calls is seen."""
        outer, self._inside = self._inside, func
        try:
            with self:
                return func.redispatch(_CPU, *args, **kwargs)
        finally:
            self._inside = outer

    def _meet(self, storage: torch.UntypedStorage) -> None:
        known = self._storages.get(storage._cdata)
        if known is None:
            self._begin(storage, self.category)
        elif known.bytes != storage.nbytes():
            self._resize(storage)

    def _begin(self, storage: torch.UntypedStorage, category: str) -> None:
        key = storage._cdata
        watch = weakref.ref(storage, lambda _: self._end(key))
        self._storages[key] = _Storage(storage.nbytes(), category, watch)
        self._add(category, storage.nbytes())

    def _end(self, key: int) -> None:
        gone = self._storages.pop(key)
        self.live_bytes -= gone.bytes
        self.by_category[gone.category] -= gone.bytes

    def _resize(self, storage: torch.UntypedStorage) -> None:
        known = self._storages[storage._cdata]
        self._add(known.category, storage.nbytes() - known.bytes)
        known.bytes = storage.nbytes()

    def _add(self, category: str, size: int) -> None:
        self.by_category[category] += size
        self.live_bytes += size
        self.made_bytes += max(0, size)
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self.peak_by_category = dict(self.by_category)


def _allocates_inside(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a CPU kernel makes tensors that only an active mode sees."""
    if func.namespace == "bitsandbytes":
        return True
    # Elementwise CPU kernels cast operands of mixed dtypes, and their output, in temporaries.
    if len(args) < 2 or torch.Tag.pointwise not in func.tags:
        return False
    return len({a.dtype for a in args if isinstance(a, torch.Tensor) and a.dim()}) > 1


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def tag_model(tracker: MemoryTracker, model: torch.nn.Module) -> None:
    """File a model's parameters, buffers and bitsandbytes' quantization state."""
    for buffer in model.buffers():
        tracker.tag(buffer, "weights")
    for parameter in model.parameters():
        tracker.tag(parameter, "adapters" if parameter.requires_grad else "weights")
        state = getattr(parameter, "quant_state", None)  # 4-bit
        for holder in filter(None, (state, getattr(state, "state2", None))):
            for name in ("absmax", "code", "offset"):
                if isinstance(tensor := getattr(holder, name), torch.Tensor):
                    tracker.tag(tensor, "quantization_state")
        if isinstance(scale := getattr(parameter, "SCB", None), torch.Tensor):  # int8
            tracker.tag(scale, "quantization_state")
    for module in model.modules():
        scale = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(scale, torch.Tensor):  # int8, once a forward pass has moved it here
            tracker.tag(scale, "quantization_state")


def tag_optimizer(tracker: MemoryTracker, optimizer: torch.optim.Optimizer) -> None:
    """File the tensors of an optimizer's state."""
    for state in optimizer.state.values():
        for value in state.values():
            paged = getattr(value, "is_paged", False)  # managed memory, not the allocator's
            if isinstance(value, torch.Tensor) and not paged:
                tracker.tag(value, "optimizer_state")


@contextlib.contextmanager
def tagged_gradients(tracker: MemoryTracker, model: torch.nn.Module) -> Iterator[None]:
    """While active, each gradient is filed as such once it has been accumulated."""

    def file(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            tracker.tag(parameter.grad, "gradients")

    trainable = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(file) for p in trainable]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reset_peak_rss() -> None:
    """Start the process's peak resident size anew; outside Linux it stays that since the start."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as control:
        control.write("5")


def peak_rss_bytes() -> int:
    """The process's peak resident size: everything, shared libraries and interpreter included."""
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def file_pages_bytes() -> int:
    """What of the resident memory are pages of files: the libraries' code and data, shared by all
    processes. How many the kernel maps depends on what its page cache holds. 0 if it does not say.
    """
    return _status_bytes("RssFile") or 0


def private_data_bytes() -> int:
    """Private writable memory that the process has mapped: what RLIMIT_DATA bounds."""
    return _status_bytes("VmData") or 0


def nvml_process_bytes(index: int) -> int | None:
    """This process's memory on a GPU as NVML reports it, context included; None without NVML.

    NVML counts processes by their id outside a container, so inside one it may not know this one.
    """
    try:
        import pynvml

        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(nvml_handle(index)):
            if process.pid == os.getpid():
                return int(process.usedGpuMemory) if process.usedGpuMemory is not None else None
    except Exception:  # optional, and it fails in as many ways as there are drivers
        return None
    return None


def nvml_handle(index: int) -> Any | None:
    """NVML's handle of torch's GPU number `index`; None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(index).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # optional, and it fails in as many ways as there are drivers
        return None


def _status_bytes(key: str) -> int | None:
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None
