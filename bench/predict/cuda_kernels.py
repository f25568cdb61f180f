"""What CUDA's kernels allocate beside their results, each with the source that it is after.

PyTorch's `aten/src/ATen` (some files as they were before 2.13) and bitsandbytes 0.50.2. Kernels
that only copy an argument are in `cuda_copies`, and there those that were read and allocate nothing
(`READ_AND_FREE`). Convolutions are in no list: cuDNN chooses an algorithm, and its workspace, on
the device. A kernel in no list and in no table counts as taking nothing too, and nobody has looked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from bench.predict.allocator import rounded
from bench.predict.cuda_copies import AFTER, BEFORE

OUTLIER_COLUMNS = 0
"""Columns that LLM.int8 finds outliers in: depends on the data, and is small in training."""
_FLOAT = 4
_CUDNN = 256
_TOKENS_WITHOUT_SORTING = 3072
_SORTED_IN_PLACE = 4096


# bitsandbytes on CUDA, after bitsandbytes/backends/cuda/ops.py and backends/default/ops.py.

RESULTS_ALONE = frozenset(
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


SUBSTITUTES: dict[str, Callable[..., Any]] = {
    "aten._grouped_mm.default": _grouped_mm,
    "bitsandbytes.gemm_4bit.default": _gemm_4bit,
    "bitsandbytes.int8_vectorwise_dequant.default": _int8_vectorwise_dequant,
    "bitsandbytes.int8_vectorwise_quant.default": _int8_vectorwise_quant,
    "bitsandbytes.int8_mm_dequant.default": _int8_mm_dequant,
    "bitsandbytes.int8_scaled_mm.default": _int8_scaled_mm,
    "bitsandbytes.int8_mixed_scaled_mm.default": _int8_mixed_scaled_mm,
}


# Kernels of torch on CUDA.

LAST_FIRST = frozenset({"aten.native_dropout.default", "bitsandbytes.quantize_4bit.default"})
"""Operations whose second result is made before the first: dropout's mask (`dropout_cuda` in
Dropout.cu), the scales of 4-bit values (`quantize_4bit` in bitsandbytes/backends/cuda/ops.py)."""
PRODUCTS = frozenset(
    f"aten.{name}.default"
    for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "matmul")
)
"""Operations that ask for the thread's cuBLAS handle."""


def has_epilogue(name: str, args: tuple[Any, ...]) -> bool:
    """Whether cublasLt takes a product together with its bias: `addmm_out_cuda_impl` in
    native/cuda/Blas.cpp, for a bias of one dimension."""
    if name == "aten.linear.default":  # inside a kernel of bitsandbytes
        return len(args) > 2 and args[2] is not None
    return name == "aten.addmm.default" and args[0].dim() == 1


def _cudnn_backward(args: tuple[Any, ...]) -> int:
    """cuDNN's plan on Hopper: the query's gradient summed in float32, one float a row, and (where
    heads are grouped) gradients of key and value for every query head. cuDNN is closed: a closed
    form of what it took on an H200 (cuDNN 9.19), fixtures/measured/attention_h200.csv."""
    query, key = args[1], args[2]
    batch, heads, rows, width = query.shape
    size = _FLOAT * batch * heads * rows * (width + 1) + _CUDNN
    if key.shape[1] != heads:
        size += 2 * query.element_size() * batch * heads * key.shape[2] * width
    return rounded(size)


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
    summed in float32 in square blocks, each with a header of 16 bytes (`GradQTempStorage`); for
    float32 the product that one float a row is summed from."""
    query = args[1]
    batch, heads, rows, width = query.shape
    delta = rounded(_FLOAT * batch * heads * rows)
    if query.dtype == torch.float32:
        return delta + rounded(_FLOAT * query.numel())
    side = 128 if width > 64 else 64
    blocks = batch * heads * -(-rows // side) * -(-width // side)
    return delta + rounded(blocks * (16 + _FLOAT * side**2))


def _softmax_backward(args: tuple[Any, ...]) -> int:
    """`softmax_backward_cuda_out` in SoftMax.cu: the product of gradient and output."""
    grad, output = args[0], args[1]
    return rounded(grad.numel() * max(grad.itemsize, output.itemsize))


def _embedding_backward(args: tuple[Any, ...]) -> int:
    """`embedding_dense_backward_cuda` in Embedding.cu: nothing for up to 3072 tokens; for more the
    sorted ids with where they were, four int64 a token in EmbeddingBackwardKernel.cu, and a
    float32 row for every token. (cub's own buffers are left out.)"""
    grad, indices = args[0], args[1]
    tokens = indices.numel()
    if tokens <= _TOKENS_WITHOUT_SORTING:
        return 0
    return 6 * rounded(8 * tokens) + rounded(_FLOAT * grad.numel())


def _index_put(args: tuple[Any, ...]) -> int:
    """`index_put_with_sort_kernel` in Indexing.cu, which sums into repeated places: the flat
    index, the same sorted, and where each was, in int64."""
    indices = [t for t in args[1] if t is not None]
    if not (len(args) > 3 and args[3]) or not indices:  # no sum: written in place
        return 0
    return 3 * rounded(8 * math.prod(torch.broadcast_shapes(*(t.shape for t in indices))))


def _sort(args: tuple[Any, ...]) -> int:
    """`launch_stable_sort_kernel` in SortStable.cu, for more than 4096 to a row: every place in
    int64, and cub's second buffer for values and places. Shorter rows are sorted where they are."""
    values = args[0]
    dim = args[-1] if isinstance(args[-1], int) and not isinstance(args[-1], bool) else -1
    if not values.dim() or values.shape[dim] <= _SORTED_IN_PLACE:
        return 0
    return rounded(8 * values.numel()) + rounded((8 + values.itemsize) * values.numel())


WORKSPACES: dict[str, Callable[[tuple[Any, ...]], int]] = {
    **BEFORE,
    "aten._scaled_dot_product_cudnn_attention_backward.default": _cudnn_backward,
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
}
"""Counted before the results are there."""
TEMPORARIES: dict[str, Callable[[tuple[Any, ...]], int]] = {
    **AFTER,
    "aten._softmax_backward_data.default": _softmax_backward,
    "aten.embedding_dense_backward.default": _embedding_backward,
    "aten.index_put.default": _index_put,
    "aten.index_put_.default": _index_put,
    "aten._unsafe_index_put.default": _index_put,
    "aten._index_put_impl_.default": _index_put,
    "aten.sort.default": _sort,
    "aten.sort.stable": _sort,
}
"""Counted when the results are there, which these kernels make first."""


def workspace(name: str, func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that the kernel `name` takes before its results, and holds until it ends."""
    found = WORKSPACES.get(name)
    return 0 if found is None else found(args)


def temporaries(name: str, args: tuple[Any, ...]) -> int:
    """Bytes that the kernel `name` takes once its results are there, and holds until it ends."""
    found = TEMPORARIES.get(name)
    return 0 if found is None else found(args)


# Functions that CUDA runs as one operation where the dispatcher elsewhere sees several.


def softmax(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`softmax` in ATen/native/SoftMax.cpp: from float16 to float32 it is one kernel, without a
    float32 copy of its input. bfloat16 is copied first."""
    assert dim is not None
    if input.dtype == torch.float16 and dtype == torch.float32:
        return torch._softmax(input, dim, True)
    return torch.softmax(input, dim, dtype=dtype)


def log_softmax(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`log_softmax`, likewise."""
    assert dim is not None
    if input.dtype == torch.float16 and dtype == torch.float32:
        return torch._log_softmax(input, dim, True)
    return torch.log_softmax(input, dim, dtype=dtype)
