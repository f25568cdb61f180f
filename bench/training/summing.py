"""How autograd sums gradients when nothing watches it.

Where two gradients of one tensor meet and nothing else holds the first, autograd adds the second to
it in place. Under any dispatch mode it makes a third tensor, so that a tracker would see memory
that a real step does not take. (torch `autograd/input_buffer.cpp`, `can_accumulate_inplace`.)
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from bench.compat import private
from bench.errors import BenchError

_ADD, _ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
_ENGINE = "_engine_run_backward"
_AROUND_MODES = ("_fn", "inner")  # what torch wraps a mode's method in
_DispatchMode = private("dispatch mode")


def as_autograd_sums(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation that a step without a mode would run: the sum in place where `func` is
    autograd's own sum of two gradients, of which it alone holds the first; else `func`.

    To be asked from a mode's `__torch_dispatch__` itself.
    """
    if func is not _ADD or kwargs or len(args) != 2 or torch.is_grad_enabled():
        return func
    if not (_alike(args) and _asked_by_autograd()):
        return func
    if (alone := sole_holders()) is None or _holders(args) != alone:
        return func
    return _ADD_IN_PLACE if private("dense tensors")(args[0]) else func


def _alike(args: tuple[Any, ...]) -> bool:
    first, second = args
    both = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return both and first.shape == second.shape and first.dtype == second.dtype


def _asked_by_autograd() -> bool:
    """Whether the mode was called from the backward pass itself, not from a function of it that is
    written in Python."""
    caller = sys._getframe(3)  # this function, the one that asks and the mode left out
    while caller is not None and caller.f_code.co_name in _AROUND_MODES:
        caller = caller.f_back  # type: ignore[assignment]
    return caller is not None and caller.f_code.co_name == _ENGINE


def _holders(args: tuple[Any, ...]) -> tuple[int, int, int]:
    """How many hold the first of a mode's arguments: in C++, its storage, and in Python."""
    first = args[0]
    storages = private("holders of a storage")(first.untyped_storage()._cdata)
    return private("holders of a tensor")(first), storages, sys.getrefcount(first)


@functools.cache
def sole_holders() -> tuple[int, int, int] | None:
    """What a mode sees as the holders of a gradient that autograd alone holds; None where the
    installed torch does not tell."""
    seen: list[tuple[int, int, int]] = []

    class Watch(_DispatchMode):  # type: ignore[misc, valid-type]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func is _ADD:
                seen.append(_holders(args))
            return func(*args, **(kwargs or {}))

    try:
        with torch.enable_grad():
            leaf = torch.ones(2, requires_grad=True)
            total = leaf.mul(2)
            total = total.sin() + total.cos()
        with Watch():
            torch.autograd.grad(total, leaf, torch.ones(2))
    except BenchError:
        return None
    return seen[0] if seen else None
