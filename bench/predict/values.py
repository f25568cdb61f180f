"""The values of small tensors on meta that follow from the batch: masks, lengths, positions.

A model may read a value and branch on it ("is anything padded?"). On meta there are no values;
but those that follow from the batch's integers are computed beside, for real, on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.training.options import MOST_TOKENS

LARGEST_FOLLOWED = MOST_TOKENS + 1
"""Elements of the largest tensor of integers whose values are followed: where a packed row's
sequences begin is asked of its positions and one more."""
LARGEST_FLOATS = 1 << 12
"""... and of floats: BART makes its mask as ones before it asks whether anything is padded."""
_DTYPES = {torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
_CHECK_OF_GRADIENTS = torch.ops.aten._amp_foreach_non_finite_check_and_unscale_.default

_COPY = torch.ops.aten.copy_.default
_FILLS = {
    id(torch.ops.aten.ones_like.default): 1,
    id(torch.ops.aten.zeros_like.default): 0,
    id(torch.ops.aten.new_ones.default): 1,
    id(torch.ops.aten.new_zeros.default): 0,
}
"""What these give does not depend on the values that they are given."""


class KnownValues:
    """Real storages beside meta ones: views and writes in place are then right by themselves."""

    def __init__(self) -> None:
        self._real: dict[int, torch.UntypedStorage] = {}  # by the meta storage's address

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The values of a meta tensor, on the CPU; None where they are not known."""
        storage = self._real.get(tensor.untyped_storage()._cdata)
        if storage is None:
            return None
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def forget(self, key: int) -> None:
        """The meta storage at `key` has ended."""
        self._real.pop(key, None)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Compute the values of `out` beside, where those of every input are known.

        An operation that writes to known values from unknown ones ends that knowledge; but for the
        check of gradients under loss scaling, which finds nothing wrong here.
        """
        fill = _FILLS.get(id(func))
        if fill is not None and _followed(out):
            self._know(out, torch.full(out.shape, fill, dtype=out.dtype))
            return
        if func is _COPY and out.is_meta and _whole(out) and _followed(out) and self._has(args[1]):
            self._know(out, self._values(args[1]))  # whatever was there before
            return
        real = self._real
        for first in args:  # most operations read what is not known, and only that
            if isinstance(first, torch.Tensor) and first.is_meta:
                if first.untyped_storage()._cdata not in real and not func._schema.is_mutable:
                    return
                break
        given = tensors_in(args)
        if kwargs:
            given += tensors_in(kwargs)
        unknown = any(t.untyped_storage()._cdata not in real for t in given if t.is_meta)
        if unknown and not func._schema.is_mutable:
            return
        if func is _CHECK_OF_GRADIENTS:
            return
        if unknown:
            for tensor in given:
                self.forget(tensor.untyped_storage()._cdata)
            return
        made = [t for t in tensors_in(out) if t.device.type == "meta"]
        if not made or not all(map(_followed, (*made, *given))):
            return
        if torch.Tag.nondeterministic_seeded in func.tags or "empty" in func._schema.name:
            return
        if not func._schema.is_mutable and all(map(self._has, made)):  # views
            return
        try:
            with torch.no_grad():
                values = func(*self._values(args), **self._values(kwargs))
        except RuntimeError:  # the CPU has no kernel for it
            for tensor in made:
                self.forget(tensor.untyped_storage()._cdata)
            return
        for tensor, value in zip(made, tensors_in(values), strict=True):
            if not self._has(tensor):
                self._know(tensor, value)

    def shaped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation gives whose result depends on values, all of which are known: for meta
        its results' shapes, for a copy to the CPU the values. None where a value is not known."""
        given = [*tensors_in(args), *tensors_in(kwargs)]
        if not all(self._has(t) for t in given if t.device.type == "meta"):
            return None
        if func is torch.ops.aten._to_copy.default:  # `tolist`, and `to("cpu")`
            return self._values(args[0]).clone()
        with torch.no_grad():
            real = func(*self._values(args), **self._values(kwargs))
        return _on_meta(real)

    def on_meta(self, value: torch.Tensor) -> torch.Tensor:
        """A meta tensor that has a real one's values."""
        made = torch.empty_like(value, device="meta")
        if _followed(made):
            self._know(made, value)
        return made

    def _has(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._real

    def _know(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._real[storage._cdata] = torch.UntypedStorage(storage.nbytes())
        view = self.of(tensor)
        assert view is not None
        view.copy_(value)

    def _values(self, value: Any) -> Any:
        """The same arguments, with values for meta tensors and the CPU for the meta device."""
        if isinstance(value, torch.Tensor):
            return self.of(value) if value.device.type == "meta" else value
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "meta" else value
        if isinstance(value, (tuple, list)):
            return type(value)(self._values(item) for item in value)
        if isinstance(value, dict):
            return {key: self._values(item) for key, item in value.items()}
        return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested lists, tuples and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    found: list[torch.Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            if isinstance(item, torch.Tensor):
                found.append(item)
            elif isinstance(item, (tuple, list, dict)):
                _gather(item, found)
    elif isinstance(value, dict) and value:
        _gather(list(value.values()), found)


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value, device="meta")
    return type(value)(_on_meta(item) for item in value)


def _whole(tensor: torch.Tensor) -> bool:
    return bool(tensor.nbytes == tensor.untyped_storage().nbytes())


def _followed(tensor: torch.Tensor) -> bool:
    if tensor.requires_grad or tensor.numel() > LARGEST_FOLLOWED:
        return False
    return tensor.dtype in _DTYPES or tensor.numel() <= LARGEST_FLOATS
