"""Exact cost: what a step dispatches, computes and allocates, the same on every repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

FlopFormula = Callable[..., int]

_ATTENTION_ON_CUDA = ("flash_attention", "efficient_attention", "cudnn_attention")
"""torch 2.11's own formulas of these refuse fewer heads of keys than of queries."""


_named: dict[int, tuple[Any, str]] = {}


def name_of(func: Any) -> str:
    """An operation's name, such as "aten.mm.default": torch puts it together anew at every asking,
    and asks Python for an operation's hash. The operation is kept: no other has its id."""
    known = _named.get(id(func))
    if known is None:
        known = _named[id(func)] = func, str(func)
    return known[1]


class CostCounter:
    """Counts operations by kind and FLOPs; give it to a MemoryTracker as its observer.

    `operations` maps an operation's name ("aten.mm.default") to how often it was dispatched, those
    that a bitsandbytes kernel runs inside included. `flops` counts matrix products, convolutions
    and attention, two for a multiply-add, as `torch.utils.flop_counter` does.
    """

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.flops = 0
        self._formulas = _formulas()

    def __call__(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, nested: bool
    ) -> None:
        self.operations[name_of(func)] += 1
        # A kernel's inner products are already in the formula of the operation around them.
        if not nested and (formula := self._formulas.get(func._overloadpacket)) is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))


def _formulas() -> dict[Any, FlopFormula]:
    """torch's formulas, and those for operations that it does not know."""
    formulas: dict[Any, FlopFormula] = dict(flop_registry)
    aten = torch.ops.aten
    for kernel in ("flash_attention_for_cpu", *_ATTENTION_ON_CUDA):
        formulas[getattr(aten, f"_scaled_dot_product_{kernel}")] = _attention
        formulas[getattr(aten, f"_scaled_dot_product_{kernel}_backward")] = _attention_backward
    formulas[aten._int_mm] = _product
    formulas[aten._grouped_mm] = _grouped_product
    for name, formula in _BITSANDBYTES.items():
        try:
            formulas[getattr(torch.ops.bitsandbytes, name)] = formula
        except AttributeError:  # not imported, or another version's operation
            continue
    return formulas


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores and their product with the values, for each head of the queries."""
    return int(_pairs(query, key) * (query.shape[-1] + value.shape[-1]))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The scores again; gradients of query and key from those of the scores; of scores and values
    from the result's."""
    return int(_pairs(query, key) * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _pairs(query: Any, key: Any) -> int:
    """Two operations for each query and key: (batch, heads, length, width) both."""
    return int(2 * prod(query.shape[:-1]) * key.shape[-2])


def _product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """(m, k) times (k, n)."""
    return int(2 * a.shape[0] * a.shape[1] * b.shape[1])


def _grouped_product(a: Any, b: Any, *_: Any, out_val: Any, **__: Any) -> int:
    """Rows in groups, each times its own matrix: the contracted size is a's last."""
    groups = b.shape[0] if a.dim() == 2 and b.dim() == 2 else 1  # ragged inner size: an upper bound
    return int(2 * out_val.numel() * a.shape[-1] // max(1, groups))


def _product_transposed(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """(..., k) times the transpose of (n, k)."""
    return int(2 * a.numel() * b.shape[0])


def _product_4bit(a: Any, b: Any, shape: Any, *_: Any, **__: Any) -> int:
    """(..., k) times the transpose of a packed matrix whose logical shape is (n, k)."""
    return int(2 * prod(a.shape) * shape[0])


def _product_mixed(a: Any, quantized: Any, b: Any, *_: Any, **__: Any) -> int:
    return _product_transposed(a, b)


_BITSANDBYTES: dict[str, FlopFormula] = {
    "gemm_4bit": _product_4bit,
    "gemv_4bit": _product_4bit,
    "int8_linear_matmul": _product_transposed,
    "int8_scaled_mm": _product_transposed,
    "int8_mixed_scaled_mm": _product_mixed,
}
