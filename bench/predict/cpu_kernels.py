"""What the CPU's kernels allocate: what a prediction can be checked against without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.predict.cuda_kernels import SUBSTITUTES as CUDA
from bench.predict.values import tensors_in

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _cpu_kernel(name: str) -> Callable[..., Any]:
    """bitsandbytes' own CPU kernel, where it is written in torch's operations."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return getattr(torch.ops.bitsandbytes, name).default.redispatch(_CPU, *args, **kwargs)

    return run


def _cpu_int8_vectorwise_quant(
    a: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """backends/default/ops.py where there are no outliers."""
    columns = None
    if threshold > 0:
        outliers = a.abs() >= threshold
        outliers.any()
        columns = a.new_empty(0, dtype=torch.int64)
    row_stats = torch.max(a.abs(), dim=1).values.float()
    out = torch.round(a * (127.0 / row_stats.unsqueeze(-1))).to(torch.int8)
    if a.shape[0] > 1 and columns is not None:
        out[:, columns] = 0
    return out, row_stats, columns


def _cpu_layer_norm(
    input: torch.Tensor,
    shape: list[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """On the CPU mean and deviation have the input's dtype where the weights have it too."""
    out = torch.empty_like(input, memory_format=torch.contiguous_format)
    same = weight is None or weight.dtype == input.dtype
    rows = (*input.shape[: input.dim() - len(shape)], *(1 for _ in shape))
    statistics = [
        input.new_empty(rows, dtype=input.dtype if same else torch.float32) for _ in range(2)
    ]
    return out, statistics[0], statistics[1]


SUBSTITUTES: dict[str, Callable[..., Any]] = (
    {
        f"bitsandbytes.{name}.default": _cpu_kernel(name)
        for name in (
            "quantize_4bit",
            "gemm_4bit",
            "int8_linear_matmul",
            "int8_mm_dequant",
            "int8_scaled_mm",
            "int8_mixed_scaled_mm",
            "optimizer_update_32bit",
            "optimizer_update_8bit_blockwise",
        )
    }
    | {
        name: CUDA[name]
        for name in ("aten._grouped_mm.default", "bitsandbytes.int8_vectorwise_dequant.default")
    }
    | {
        "bitsandbytes.int8_vectorwise_quant.default": _cpu_int8_vectorwise_quant,
        "aten.native_layer_norm.default": _cpu_layer_norm,
    }
)


def workspace(name: str, func: Any, args: tuple[Any, ...]) -> int:
    """Elementwise kernels cast operands of mixed dtypes, and their output, in temporaries."""
    if len(args) < 2 or torch.Tag.pointwise not in func.tags:
        return 0
    operands = [t for t in tensors_in(args) if t.dtype != torch.bool]
    if len({t.dtype for t in operands if t.dim()}) < 2:
        return 0
    common = operands[0].dtype
    for operand in operands[1:]:
        common = torch.promote_types(common, operand.dtype)
    written = [args[0]] if func._schema.is_mutable else []
    return sum(t.numel() * common.itemsize for t in (*operands, *written) if t.dtype != common)
