"""What kernels allocate beside their results: what the dispatcher, and so a trace, never sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.predict.allocator import CachingAllocator, ExactAllocator, rounded
from bench.predict.attention import Attention, cpu_attention, cuda_attention
from bench.predict.values import tensors_in

OUTLIER_COLUMNS = 0
"""Columns that LLM.int8 finds outliers in: depends on the data, and is small in training."""
CUBLAS_WORKSPACE = 8 * 1024 * 1024 + 8 * 16 * 1024
"""Bytes per cuBLAS handle before Hopper (":4096:2:16:8"), `ATen/cuda/CublasHandlePool.cpp`; there
is one handle for the thread of the forward pass and one for that of the backward pass."""
CUBLAS_WORKSPACE_HOPPER = 32 * 1024 * 1024

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_FLOAT = 4


@dataclass(frozen=True)
class Device:
    """How one kind of device runs a step.

    `substitutes` replaces operations, by name, by what the device does for them; `plain` names
    those of other libraries whose outputs are all that they allocate; `workspace` gives the bytes
    that a kernel needs while it runs, from its name, function and arguments; `handles` the bytes
    that each cuBLAS handle keeps. `followed` names the torch devices whose tensors count: on the
    CPU what stays there, such as an optimizer's step counts, is part of the same memory.
    `masks_by_position`: whether `masked_select` looks up the positions of its mask, eight bytes for
    each element and dimension (`masked_select_cuda` in ATen/native/cuda/IndexKernel.cpp).
    """

    name: str
    attention: Attention
    substitutes: Mapping[str, Callable[..., Any]]
    plain: frozenset[str]
    workspace: Callable[[str, Any, tuple[Any, ...]], int]
    allocator: Callable[[], CachingAllocator | ExactAllocator]
    followed: tuple[str, ...]
    fused_dropout: bool
    foreach_optimizer: bool
    handles: int = 0
    masks_by_position: bool = True


def cuda(attention: str | None = None, capability: float = 8.0) -> Device:
    """An NVIDIA GPU of this compute capability; `attention` forces one attention kernel."""
    return Device(
        name="cuda",
        attention=cuda_attention(attention, capability),
        substitutes=_CUDA_SUBSTITUTES,
        plain=_PLAIN,
        workspace=_cuda_workspace,
        allocator=CachingAllocator,
        followed=("meta",),
        fused_dropout=True,
        foreach_optimizer=True,
        handles=CUBLAS_WORKSPACE_HOPPER if capability >= 9 else CUBLAS_WORKSPACE,
    )


def cpu() -> Device:
    """The CPU: what a prediction can be checked against without a GPU."""
    return Device(
        name="cpu",
        attention=cpu_attention,
        substitutes=_CPU_SUBSTITUTES,
        plain=_PLAIN,
        workspace=_promotion,
        allocator=ExactAllocator,
        followed=("meta", "cpu"),
        fused_dropout=False,
        foreach_optimizer=False,
        masks_by_position=False,
    )


# bitsandbytes on CUDA, after bitsandbytes/backends/cuda/ops.py and backends/default/ops.py.

_PLAIN = frozenset(
    f"bitsandbytes.{name}.default"
    for name in (
        "quantize_4bit",
        "dequantize_4bit",
        "quantize_blockwise",
        "dequantize_blockwise",
        "int8_linear_matmul",
        "optimizer_update_8bit_blockwise",
        "optimizer_update_32bit",
    )
)


def _gemm_4bit(  # noqa: PLR0917  # the operation's signature
    a: torch.Tensor,
    b: torch.Tensor,
    shape: list[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight is expanded for the product. For up to 1536 rows some GPUs have a kernel that
    does without; the backward pass expands the same weight in any case."""
    if absmax_8bit is not None:
        absmax = torch.empty_like(absmax_8bit, dtype=torch.float32) + absmax_offset
    weight = a.new_empty(shape)
    product = torch.nn.functional.linear(a, weight, bias)
    del absmax  # alive until here
    return product


def _int8_vectorwise_quant(
    a: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    row_stats = a.new_empty(a.numel() // a.shape[-1], dtype=torch.float32)
    out = torch.empty_like(a, dtype=torch.int8)
    if threshold <= 0:
        return out, row_stats, None
    outliers = a.abs() >= threshold
    outliers.any()
    columns = a.new_empty(OUTLIER_COLUMNS, dtype=torch.int64)
    return out, row_stats, columns


def _int8_vectorwise_dequant(a: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """The kernel of every device, in bitsandbytes/_ops.py: two float32 products."""
    return a * stats.view(-1, 1) * (1 / 127)


def _int8_mm_dequant(
    a: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(a, dtype=torch.float16)
    if bias is not None and bias.dtype != torch.float16:
        out.add_(bias)
    return out.to(dtype or torch.float16)


def _int8_scaled_mm(  # noqa: PLR0917  # the operation's signature
    a: torch.Tensor,
    b: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    product = torch.empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32, device=a.device)
    return _int8_mm_dequant(product, row_stats, col_stats, dtype, bias)


def _int8_mixed_scaled_mm(  # noqa: PLR0917  # the operation's signature
    a: torch.Tensor,
    ca: torch.Tensor,
    cb: torch.Tensor,
    sca: torch.Tensor,
    scb: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    columns = 0 if outlier_cols is None else outlier_cols.numel()
    if not columns:
        return _int8_scaled_mm(ca, cb, sca, scb, bias, a.dtype), a.new_empty(0)
    sub_a, sub_b = a.new_empty(a.shape[0], columns), a.new_empty(columns, cb.shape[0])
    output = _int8_scaled_mm(ca, cb, sca, scb, bias, a.dtype)
    return output.addmm(sub_a, sub_b), sub_a


def _grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Experts' products: rows (or the contracted size) in groups. Meta takes bfloat16 alone."""
    shape: tuple[int, ...] = (a.shape[-2], b.shape[-1])
    if a.dim() == b.dim():
        groups = a.shape[0] if offsets is None else offsets.shape[0]
        shape = (groups, *shape)
    return a.new_empty(shape, dtype=out_dtype or a.dtype)


_CUDA_SUBSTITUTES: dict[str, Callable[..., Any]] = {
    "aten._grouped_mm.default": _grouped_mm,
    "bitsandbytes.gemm_4bit.default": _gemm_4bit,
    "bitsandbytes.int8_vectorwise_dequant.default": _int8_vectorwise_dequant,
    "bitsandbytes.int8_vectorwise_quant.default": _int8_vectorwise_quant,
    "bitsandbytes.int8_mm_dequant.default": _int8_mm_dequant,
    "bitsandbytes.int8_scaled_mm.default": _int8_scaled_mm,
    "bitsandbytes.int8_mixed_scaled_mm.default": _int8_mixed_scaled_mm,
}


# Kernels of torch on CUDA.


def _flash_backward(args: tuple[Any, ...]) -> int:
    """`mha_bwd` in flash_attn/flash_api.cpp: the query's gradient summed in float32, one float a
    row, and gradients of key and value for every query head where heads are grouped."""
    query, key = args[1], args[2]
    batch, heads, rows, width = query.shape
    rows, wide = rounded(rows, 128), rounded(width, 32)
    size = rounded(_FLOAT * batch * heads * rows) + rounded(_FLOAT * batch * heads * rows * wide)
    if key.shape[1] != heads:
        size += 2 * rounded(query.element_size() * batch * heads * key.shape[2] * width)
    return size


def _efficient_backward(args: tuple[Any, ...]) -> int:
    """`_efficient_attention_backward` in attention_backward.cu: for halves the query's gradient
    summed in float32 in blocks; for float32 the product that one float a row is summed from."""
    query = args[1]
    batch, heads, rows, width = query.shape
    delta = rounded(_FLOAT * batch * heads * rows)
    if query.dtype == torch.float32:
        return delta + rounded(_FLOAT * query.numel())
    return delta + rounded(_FLOAT * batch * heads * rounded(rows, 64) * rounded(width, 64))


_CUDA_WORKSPACES: dict[str, Callable[[tuple[Any, ...]], int]] = {
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
}


def _cuda_workspace(name: str, func: Any, args: tuple[Any, ...]) -> int:
    workspace = _CUDA_WORKSPACES.get(name)
    return 0 if workspace is None else workspace(args)


# The CPU.


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


_CPU_SUBSTITUTES: dict[str, Callable[..., Any]] = {
    f"bitsandbytes.{name}.default": _cpu_kernel(name)
    for name in (
        "quantize_4bit",
        "gemm_4bit",
        "int8_linear_matmul",
        "int8_mm_dequant",
        "int8_scaled_mm",
        "int8_mixed_scaled_mm",
    )
} | {
    "bitsandbytes.int8_vectorwise_dequant.default": _int8_vectorwise_dequant,
    "bitsandbytes.int8_vectorwise_quant.default": _cpu_int8_vectorwise_quant,
    "aten._grouped_mm.default": _grouped_mm,
    "aten.native_layer_norm.default": _cpu_layer_norm,
}


def _promotion(name: str, func: Any, args: tuple[Any, ...]) -> int:
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
