"""The storages of one device: what each holds bytes for, from the first operation to its end.

Exact and repeatable on every device. Two modes feed it: `memory.MemoryTracker`, while a step runs,
and `predict.journal.Journal`, while one is traced.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench.compat import patched, private

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


@dataclass(slots=True)
class _Storage:
    bytes: int
    category: str
    watch: Any  # the weak reference whose callback tells of the storage's end


class History(Protocol):
    """Told of each storage, by a key that is its own until it ends. Sizes are bytes."""

    def begun(self, key: int, size: int, category: str) -> None: ...
    def resized(self, key: int, size: int) -> None: ...
    def filed(self, key: int, category: str) -> None: ...
    def ended(self, key: int) -> None: ...


class StorageLedger:
    """The bytes of the storages that are alive, by what they are for, and the most there were.

    A storage counts its bytes (`nbytes`, no rounding) from when it is met until it is freed. It is
    filed under `category`; `tag` files a tensor elsewhere.
    """

    def __init__(
        self,
        device: str = "cpu",
        categories: Sequence[str] = CATEGORIES,
        history: History | None = None,
    ) -> None:
        self.device = device
        self.category = "activations"
        self.live_bytes = 0
        self.peak_bytes = 0
        self.made_bytes = 0
        """Bytes of every storage made so far, freed or not."""
        self.by_category = dict.fromkeys(categories, 0)
        self.peak_by_category = dict.fromkeys(categories, 0)
        self._storages: dict[int, _Storage] = {}
        self._history = history

    def reset_peak(self) -> None:
        """Start a new phase: the peak is what is alive now."""
        self.peak_bytes = self.live_bytes
        self.peak_by_category = dict(self.by_category)

    @contextlib.contextmanager
    def under(self, category: str) -> Iterator[None]:
        """While active, what is made is filed under `category`."""
        before, self.category = self.category, category
        try:
            yield
        finally:
            self.category = before

    def tag(self, tensor: torch.Tensor, category: str) -> None:
        """File the tensor's storage under `category`; a storage not seen yet counts from now on."""
        tensor = local(tensor)
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
            if self._history:
                self._history.filed(storage._cdata, category)

    def meet(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count the tensor's storage, as large as it is by now; returns the tensor."""
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            self._begin(storage, self.category)
        else:
            self._measure(storage, known)
        return tensor

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage may have another size now, without an operation."""
        known = self._storages.get(storage._cdata)
        if known is not None:
            self._measure(storage, known)

    def _measure(self, storage: torch.UntypedStorage, known: _Storage) -> None:
        if known.bytes != storage.nbytes():
            self._add(known.category, storage.nbytes() - known.bytes)
            known.bytes = storage.nbytes()
            if self._history:
                self._history.resized(storage._cdata, known.bytes)

    def _begin(self, storage: torch.UntypedStorage, category: str) -> None:
        key = storage._cdata
        watch = weakref.ref(storage, lambda _: self._end(key))
        self._storages[key] = _Storage(storage.nbytes(), category, watch)
        self._add(category, storage.nbytes())
        if self._history:
            self._history.begun(key, storage.nbytes(), category)

    def _end(self, key: int) -> None:
        gone = self._storages.pop(key)
        self.live_bytes -= gone.bytes
        self.by_category[gone.category] -= gone.bytes
        if self._history:
            self._history.ended(key)

    def _add(self, category: str, size: int) -> None:
        self.by_category[category] += size
        self.live_bytes += size
        self.made_bytes += max(0, size)
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self.peak_by_category = dict(self.by_category)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that is spread over several; any other tensor itself."""
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def spread_over_ranks(types: Any) -> bool:
    """Whether an operation's operands are spread over ranks: a mode that gives it back is asked
    again for the operations on this rank's parts."""
    return any(each.__name__ == "DTensor" for each in types)


@contextlib.contextmanager
def followed_shards(storages: StorageLedger) -> Iterator[None]:
    """While active, the ledger is told of storages that are resized, which no operation does: FSDP
    frees and allocates gathered parameters so, and keeps the tensors. What DTensor only asks the
    shape of is not counted."""
    resize, propagator = torch.UntypedStorage.resize_, private("shapes of shards")
    asked = propagator._propagate_tensor_meta_non_cached

    def noted(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        found = resize(storage, size)
        storages.resized(storage)
        return found

    def unseen(self: Any, schema: Any) -> Any:
        with private("no modes")():
            return asked(self, schema)

    with patched(
        (torch.UntypedStorage, "resize_", noted),
        (propagator, "_propagate_tensor_meta_non_cached", unseen),
    ):
        yield


def tag_model(storages: StorageLedger, model: torch.nn.Module) -> None:
    """File a model's parameters, buffers and bitsandbytes' quantization state."""
    for buffer in model.buffers():
        storages.tag(buffer, "weights")
    states = [getattr(module, "quant_state", None) for module in model.modules()]  # 4-bit, sharded
    for parameter in model.parameters():
        storages.tag(parameter, "adapters" if parameter.requires_grad else "weights")
        states.append(getattr(parameter, "quant_state", None))  # 4-bit
        if isinstance(scale := getattr(parameter, "SCB", None), torch.Tensor):  # int8
            storages.tag(scale, "quantization_state")
    for state in states:
        for holder in filter(None, (state, getattr(state, "state2", None))):
            for name in ("absmax", "code", "offset"):
                if isinstance(tensor := getattr(holder, name), torch.Tensor):
                    storages.tag(tensor, "quantization_state")
    for module in model.modules():
        scale = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(scale, torch.Tensor):  # int8, once a forward pass has moved it here
            storages.tag(scale, "quantization_state")


def tag_optimizer(storages: StorageLedger, optimizer: torch.optim.Optimizer) -> None:
    """File the tensors of an optimizer's state."""
    for state in optimizer.state.values():
        for value in state.values():
            paged = getattr(value, "is_paged", False)  # managed memory, not the allocator's
            if isinstance(value, torch.Tensor) and not paged:
                storages.tag(value, "optimizer_state")


@contextlib.contextmanager
def tagged_gradients(storages: StorageLedger, model: torch.nn.Module) -> Iterator[None]:
    """While active, each gradient is filed as such once it has been accumulated."""

    def file(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            storages.tag(parameter.grad, "gradients")

    trainable = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(file) for p in trainable]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
