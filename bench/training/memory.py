"""Memory, seen three ways: tracked storages, the CUDA allocator, and the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.compat import patched, private
from bench.training.storages import StorageLedger, spread_over_ranks
from bench.training.summing import as_autograd_sums, sole_holders

_CPU = private("dispatch key")(torch._C.DispatchKey.CPU)
_DispatchMode = private("dispatch mode")

Observer = Callable[[Any, tuple[Any, ...], dict[str, Any], Any, bool], None]
"""Told of each operation: function, args, kwargs, output, and whether another operation ran it."""


class MemoryTracker(_DispatchMode):  # type: ignore[misc, valid-type]  # torch is seen untyped
    """Follows the storages of one device type that are made while the mode is active; those alive
    when it is left count on until they are freed.

    On the CPU, bitsandbytes' kernels and the temporaries of type promotion are followed inside, and
    the generator's states that checkpointing keeps are met as they are made; what other compiled
    kernels allocate for themselves is not seen.
    """

    def __init__(self, device: str = "cpu", observer: Observer | None = None) -> None:
        super().__init__()
        sole_holders()  # asked once, before a step
        self.storages = StorageLedger(device)
        self.observer = observer
        self._inside: Any = None
        self._temporaries: list[Any] | None = None

    def __enter__(self) -> MemoryTracker:
        if self._outermost():
            self._get_rng_state = torch.get_rng_state
            self._patch = patched((torch, "get_rng_state", self._generator_state))
            self._patch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._outermost():
            self._patch.__exit__(*error)

    def _outermost(self) -> bool:
        """Whether this is not the mode entered again, to see what a kernel calls."""
        return self.storages.device == "cpu" and self._inside is None

    def _generator_state(self) -> torch.Tensor:
        """`torch.get_rng_state`, whose tensor is made in C++ without the dispatcher."""
        return self.storages.meet(self._get_rng_state())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if types and spread_over_ranks(types):
            return NotImplemented
        kwargs = kwargs or {}
        func = as_autograd_sums(func, args, kwargs)
        nested = self._inside is not None
        follow = self.storages.device == "cpu" and _allocates_inside(func, args)
        outer = self._temporaries
        if follow:  # an elementwise kernel's temporaries live until its result is there
            self._temporaries = None if func.namespace == "bitsandbytes" else []
        out = self._follow(func, args, kwargs) if follow else func(*args, **kwargs)
        for tensor in _tensors(out):
            if tensor.device.type == self.storages.device:
                self.storages.meet(tensor)
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
