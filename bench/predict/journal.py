"""The journal of a step on meta: every storage that begins and ends, in order, and its cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from bench.compat import private
from bench.errors import BenchError
from bench.predict.cuda_kernels import LAST_FIRST, PRODUCTS, has_epilogue
from bench.predict.dependent import DEPENDENT
from bench.predict.shapes import KnownShapes
from bench.predict.values import KnownValues, tensors_in
from bench.training.cost import name_of
from bench.training.memory import Observer
from bench.training.storages import CATEGORIES, StorageLedger, spread_over_ranks
from bench.training.summing import as_autograd_sums, sole_holders

if TYPE_CHECKING:
    from bench.predict.kernels import Device
    from bench.training.options import StepOptions

LOGITS, WORKSPACE = "logits_and_loss", "kernel_workspace"
BREAKDOWN = (*CATEGORIES, LOGITS, WORKSPACE)
"""What bytes are for, in a prediction: the tracker's categories and two that split activations."""
COMMUNICATION = "communication"
"""... and over several GPUs: gathered parameters, buckets of gradients, what is sent."""


def breakdown_of(step: StepOptions) -> tuple[str, ...]:
    """What the bytes of a step are for, on one GPU or on one of several."""
    return (*BREAKDOWN, COMMUNICATION) if step.parallel else BREAKDOWN


_NAMESPACES = ("aten", "prim", "prims", "profiler")
_MUL, _ADD = torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor
_DispatchMode = private("dispatch mode")
_AUTOGRAD_NODE = private("node of autograd")
_SHAPES = KnownShapes()
"""One for all traces: no result on meta depends on more than its arguments."""
_EMPTY_LIKE = torch.ops.aten.empty_like.default
_READ = torch.ops.aten._local_scalar_dense.default


MOST_OPERATIONS = 4_000_000
"""Of one trace: five minutes of it, and 3 GiB for what it writes down."""


class Untraceable(BenchError):
    """The step holds an operation that cannot be accounted for without running it, or more of them
    than there is time and memory for."""


class Journal(_DispatchMode):  # type: ignore[misc, valid-type]  # torch is seen untyped
    """Follows meta storages, and writes down when each begins and ends.

    `events` holds +n when storage n begins and -n when it ends; `sizes`, `categories` and `makers`
    describe storage n at index n. What the device's kernels allocate beside their results is
    counted too. Raises Untraceable for an operation that no part of the device accounts for.
    """

    def __init__(self, device: Device) -> None:
        super().__init__()
        sole_holders()  # asked once, before a step
        self.storages = StorageLedger("meta", (*BREAKDOWN, COMMUNICATION), history=self)
        self.observer: Observer | None = None
        self.events: list[int] = []
        self.sizes: list[int] = [0]
        self.categories: list[str] = [""]
        self.makers: list[str] = [""]
        self.marks: list[tuple[int, str]] = []
        self.values = KnownValues()
        self.logging = False
        """Whether what is read of floating-point values is only shown: nothing depends on it."""
        self._numbers: dict[int, int] = {}
        self._device = device
        self._within = 0
        self._dispatched = 0
        self._operation = ""
        self._kept: set[str] = set()
        """Whose memory of cuBLAS is there by now: the main thread's, the backward pass's, and
        cublasLt's ("lt")."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's own: else it would switch the compiler off and on around every operation, a
        fifteenth of a trace's time. Nothing is compiled here."""
        return False

    def mark(self, name: str) -> None:
        """Write down that a phase begins here."""
        self.marks.append((len(self.events), name))

    def begin_here(self) -> None:
        """Forget what has ended, and when: until now it was not on this device."""
        self.events[:] = sorted(self._numbers.values())
        self._kept.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if types and spread_over_ranks(types):
            return NotImplemented
        kwargs = kwargs or {}
        func = as_autograd_sums(func, args, kwargs)
        if func is _READ and args[0].device.type == "meta":
            return self._read(args[0])
        name = name_of(func)
        self._dispatched += 1
        if self._dispatched > MOST_OPERATIONS:
            raise Untraceable(
                f"it has more than {MOST_OPERATIONS:,} operations, as of a model that goes through "
                "a sequence token by token: take a shorter one (--seq-len)"
            )
        nested = self._within > 0
        if not nested and func.namespace != "profiler":  # marks a place in a profile, and is none
            self._operation = name
        size = self._device.workspace(name, func, args)
        workspace = self._write(size, WORKSPACE) if size else 0
        out = self._run(name, func, args, kwargs)
        results = tensors_in(out)
        for tensor in reversed(results) if name in LAST_FIRST else results:
            if tensor.is_meta or tensor.device.type in self._device.followed:
                self.storages.meet(tensor)
        size = self._device.temporaries(name, args)
        temporary = self._write(size, WORKSPACE) if size else 0
        for number in filter(None, (temporary, workspace)):
            self.events.append(-number)
        if self._device.handles and name in PRODUCTS:
            self._keep_cublas(name, args)
        self.values.follow(func, args, kwargs, out)
        if self.observer is not None:
            self.observer(func, args, kwargs, out, nested)
        return out

    def keep_handle(self, thread: str) -> None:
        """Count the cuBLAS handle of a thread, once."""
        if self._device.handles and thread not in self._kept:
            self._kept.add(thread)
            self._write(self._device.handles, WORKSPACE)

    def _keep_cublas(self, name: str, args: tuple[Any, ...]) -> None:
        """What a product makes cuBLAS keep, after the product's result: its thread's handle, and
        (where the two are not one) cublasLt's workspace."""
        self.keep_handle("main" if _AUTOGRAD_NODE() is None else "backward")
        if self._device.lt_workspace and "lt" not in self._kept and has_epilogue(name, args):
            self._kept.add("lt")
            self._write(self._device.lt_workspace, WORKSPACE)

    def _run(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (substitute := self._device.substitutes.get(name)) is not None:
            return self._emulated(lambda: substitute(*args, **kwargs))
        if func.namespace not in _NAMESPACES and name not in self._device.plain:
            raise Untraceable(f"{name}: what this operation allocates is not known")
        if (out := _alike(func, args, kwargs)) is not None:
            return out
        if (known := DEPENDENT.get(name)) is not None:
            run = known(self.values, self._device.masks_by_position, func, args)
            if run is not None:
                return self._emulated(run)
        try:
            return _SHAPES.run(func, args, kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if (out := self.values.shaped(func, args, kwargs)) is not None:
                return out
            if not isinstance(error, NotImplementedError):
                raise
            raise Untraceable(
                f"{name}: its result depends on data, or has no shape without it "
                f"({str(error).splitlines()[0][:200]})"
            ) from None

    def _emulated(self, run: Callable[[], Any]) -> Any:
        """What a device does for one operation: temporaries are its workspace, results are not."""
        category = self.storages.category
        self._within += 1
        try:
            with self.storages.under(WORKSPACE), self:
                out = run()
        finally:
            self._within -= 1
        for tensor in tensors_in(out):
            number = self._numbers.get(tensor.untyped_storage()._cdata)
            if number is not None and self.categories[number] == WORKSPACE:
                self.storages.tag(tensor, category)
        return out

    def _read(self, tensor: torch.Tensor) -> Any:
        value = self.values.of(tensor)
        if value is None and self.logging and tensor.is_floating_point():
            return 0.0
        if value is None:
            raise Untraceable(
                f"the step reads a value of a tensor of {tuple(tensor.shape)} "
                f"{str(tensor.dtype).removeprefix('torch.')}, made by "
                f"{self._maker(tensor)}: control flow that depends on data cannot be traced"
            )
        return value.item()

    def _maker(self, tensor: torch.Tensor) -> str:
        number = self._numbers.get(tensor.untyped_storage()._cdata)
        return self.makers[number] if number is not None else "an operation before the step"

    # The ledger of storages tells these.

    def begun(self, key: int, size: int, category: str) -> None:
        """A storage begins."""
        self._numbers[key] = self._write(size, category)

    def resized(self, key: int, size: int) -> None:
        """A storage is another by its size: the new one begins before the old one ends."""
        old = self._numbers[key]
        self._numbers[key] = self._write(size, self.categories[old])
        self.events.append(-old)

    def filed(self, key: int, category: str) -> None:
        """A storage is for something else, and was from its beginning."""
        self.categories[self._numbers[key]] = category

    def ended(self, key: int) -> None:
        """A storage ends."""
        self.values.forget(key)
        self.events.append(-self._numbers.pop(key))

    def _write(self, size: int, category: str) -> int:
        number = len(self.sizes)
        self.sizes.append(size)
        self.categories.append(category)
        self.makers.append(self._operation)
        self.events.append(number)
        return number


def _alike(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """A sum or product whose result is like one of its operands, or None where it may not be.

    A third of all operations are; meta's own functions take ten times as long for them.
    """
    if (func is not _MUL and func is not _ADD) or kwargs or len(args) != 2:
        return None
    a, b = args
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return None
    whole, other = (a, b) if a.dim() >= b.dim() else (b, a)
    if not whole.is_meta or not (whole.is_contiguous() and other.is_contiguous()):
        return None
    scalar = other.dim() == 0 < whole.dim() and whole.is_floating_point() and not other.is_complex()
    if not scalar:
        if whole.dtype != other.dtype:
            return None
        aligned = zip(reversed(whole.shape), reversed(other.shape), strict=False)
        if any(theirs not in (mine, 1) for mine, theirs in aligned):
            return None
    return _SHAPES.run(_EMPTY_LIKE, (whole,), {})
