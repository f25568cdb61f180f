"""Results on meta by what they were made from: an operation is asked once for each set of shapes.

On meta an operation's result is its shape, strides and dtype, and those follow from the shapes,
strides and dtypes that it is given and from its other arguments. torch works them out anew each
time, most of them in Python; a step asks the same a thousand times.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.predict.values import tensors_in

_Result = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format, str, type(None))
MOST_KNOWN = 1 << 16
"""Sets of arguments that are remembered; a model has some hundreds."""
_FRESH, _IN_PLACE, _OTHER = "fresh", "in place", "other"
_TENSORS = ("Tensor", "List[Tensor]")
_UNTOLD = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)


class KnownShapes:
    """What operations gave, by their arguments. Fresh results are kept, and that an operation in
    place leaves what it writes to as large as it was; whatever gives a view is run each time."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._kinds: dict[int, tuple[Any, str]] = {}  # by id; what is kept keeps its own

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`func(*args, **kwargs)`, or what has the same shapes."""
        asked = self._kinds.get(id(func))
        if asked is None:
            asked = self._kinds[id(func)] = func, _kind(func)
        kind = asked[1]
        if kind is _OTHER:
            return func(*args, **kwargs)
        try:
            key = (
                id(func),
                _key(args),
                torch.get_default_dtype(),
                *((name, _key(v)) for name, v in kwargs.items()),
            )
        except _Unknown:
            return func(*args, **kwargs)
        known = self._known.get(key)
        if known is not None:
            return known(args)
        out = func(*args, **kwargs)
        if key not in self._known and len(self._known) < MOST_KNOWN:
            self._known[key] = (
                _again(out, (args, kwargs)) if kind is _FRESH else _nothing(func, out, key, args)
            )
        return out


class _Unknown(Exception):
    """An argument that says nothing by its shape."""


def _kind(func: Any) -> str:
    """Whether an operation makes its results, writes in place, or neither."""
    schema = func._schema
    if any(tag in func.tags for tag in _UNTOLD):
        return _OTHER
    if schema.is_mutable:
        name = schema.name.rpartition("::")[2]
        return _IN_PLACE if name.endswith("_") and not name.endswith("__") else _OTHER
    told = [r.alias_info is None and str(r.type) in _TENSORS for r in schema.returns]
    return _FRESH if told and all(told) else _OTHER


def _key(value: Any) -> Any:
    """What of an argument decides a result's shape. Numbers go with their type: 1, 1.0 and True
    are equal and give other dtypes."""
    if isinstance(value, torch.Tensor):
        dtype = value.dtype
        if not value.is_meta or value.layout is not torch.strided or dtype.is_complex:
            raise _Unknown
        return value.shape, value.stride(), dtype
    kind = type(value)
    if kind in (int, float, bool):
        return kind, value
    if isinstance(value, (tuple, list)):
        return tuple([_key(item) for item in value])
    if isinstance(value, _PLAIN):
        return value
    raise _Unknown


def _again(out: Any, given: Any) -> Any:
    """What makes the same results once more; None where one of them is more than a fresh tensor of
    its shape."""
    if isinstance(out, (tuple, list)):
        told = [_described(tensor, given) for tensor in out]
        parts = [part for part in told if part is not None]
        storages = {t.untyped_storage()._cdata for t in tensors_in(out)}
        if len(parts) < len(told) or len(storages) < len(parts):
            return None
        kind = type(out)  # the results themselves must end
        return lambda _: kind(map(_made, parts))
    one = _described(out, given)
    return None if one is None else lambda _: _made(one)


def _made(result: _Result) -> torch.Tensor:
    shape, strides, dtype = result
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _described(tensor: Any, given: Any) -> _Result | None:
    if not isinstance(tensor, torch.Tensor) or tensor.device.type != "meta":
        return None
    if type(tensor) is not torch.Tensor or tensor.storage_offset() or tensor.is_complex():
        return None
    result = tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype
    storage = tensor.untyped_storage()
    if storage.nbytes() != _made(result).untyped_storage().nbytes():
        return None
    held = {t.untyped_storage()._cdata for t in tensors_in(given)}
    return None if storage._cdata in held else result


def _nothing(func: Any, out: Any, key: Any, args: tuple[Any, ...]) -> Any:
    """What an operation in place gives once more, having left everything as it was: its first
    argument, or nothing. None where it did something else."""
    if _key(args) != key[1]:
        return None
    if not func._schema.returns:
        return lambda _: None
    return (lambda given: given[0]) if out is args[0] else None
