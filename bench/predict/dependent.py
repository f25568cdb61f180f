"""Operations whose result's shape depends on values, where the values are known: masks, lengths.

Each function gives what a device's kernel does for one operation, in operations that have shapes
without values; None where a value that it needs is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.predict.values import KnownValues

Emulation = Callable[[], Any]
Dependent = Callable[[KnownValues, bool, Any, tuple[Any, ...]], Emulation | None]


def _boolean(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def _indexed(values: KnownValues, _: bool, func: Any, args: tuple[Any, ...]) -> Emulation | None:
    """Reading or writing at boolean masks: kernels look up the positions first, int64 each."""
    masks = [index for index in args[1] if _boolean(index)]
    if not masks or any(values.of(mask) is None for mask in masks):
        return None

    def run() -> Any:
        indices: list[torch.Tensor | None] = []
        for index in args[1]:
            indices += _positions(values, index) if _boolean(index) else [index]
        return func(args[0], indices, *args[2:])

    return run


def _selected(
    values: KnownValues, by_position: bool, _: Any, args: tuple[Any, ...]
) -> Emulation | None:
    """`masked_select`: on CUDA the positions of the mask, expanded to the tensor's shape, are
    looked up, eight bytes for each element and dimension; the CPU counts as it writes."""
    tensor, mask = torch.broadcast_tensors(args[0], args[1])
    known = values.of(mask)
    if known is None:
        return None
    if by_position:
        return lambda: tensor[_positions(values, mask)]
    return lambda: tensor.new_empty(int(known.sum()))


def _positions(values: KnownValues, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One index for each dimension of a mask, as `nonzero` gives them: views of one tensor."""
    known = values.of(mask)
    assert known is not None
    return tuple(values.on_meta(known.nonzero()).unbind(1))


def _spoken(values: KnownValues, _: bool, func: Any, args: tuple[Any, ...]) -> Emulation | None:
    """CTC's loss, whose lattice is as wide as the longest transcript (`native/LossCTC.cpp`)."""
    inputs, targets = values.of(args[2]), values.of(args[3])
    if inputs is None or targets is None:
        return None
    lengths = inputs.tolist(), targets.tolist()
    return lambda: torch.ops.aten._ctc_loss.default(*args[:2], *lengths, *args[4:])


def _spoken_backward(
    values: KnownValues, _: bool, func: Any, args: tuple[Any, ...]
) -> Emulation | None:
    """Its backward pass: a second lattice, and the gradient."""

    def run() -> Any:
        beta = torch.empty_like(args[6])
        gradient = torch.empty_like(args[1])
        del beta  # alive until here
        return gradient

    return run


DEPENDENT: Mapping[str, Dependent] = {
    "aten.index.Tensor": _indexed,
    "aten.index_put.default": _indexed,
    "aten.index_put_.default": _indexed,
    "aten._index_put_impl_.default": _indexed,
    "aten.masked_select.default": _selected,
    "aten._ctc_loss.Tensor": _spoken,
    "aten._ctc_loss_backward.Tensor": _spoken_backward,
}
