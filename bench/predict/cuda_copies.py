"""What CUDA kernels of torch take that meta never shows: copies of arguments that a kernel cannot
read as they lie, and counters. Each after its source in `aten/src/ATen/native`.

Counted for an argument list as the dispatcher has it; bytes, rounded as the allocator rounds.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from bench.predict.allocator import rounded

_INDEX = 8
_MOST_SORTED_ROWS, _LEAST_SORTED = 10, 100_000
_DIGITS, _BLOCK = 256, 4 * 256
_BLOCKS_FROM = ((20, 20_000), (40, 10_000), (80, 8_000), (199, 5_000), (799, 3_000), (4000, 800))
"""(rows, columns): up to so many rows, several blocks share one of so many columns or more."""
_BLOCKS_FROM_ANY = 400


def _copy(tensor: torch.Tensor, itemsize: int | None = None) -> int:
    return rounded(tensor.numel() * (itemsize or tensor.itemsize))


def _unless_contiguous(*tensors: torch.Tensor) -> int:
    return sum(_copy(tensor) for tensor in tensors if not tensor.is_contiguous())


def layer_norm(args: tuple[Any, ...]) -> int:
    """cuda/layer_norm_kernel.cu, `layer_norm_cuda`: the input, where it is not contiguous."""
    return _unless_contiguous(args[0])


def layer_norm_backward(args: tuple[Any, ...]) -> int:
    """cuda/layer_norm_kernel.cu, `layer_norm_backward_cuda`: gradient and input, where they are not
    contiguous. (Sums of a trained weight's gradient by blocks, for tall and narrow inputs, are left
    out: at most some MiB.)"""
    return _unless_contiguous(args[0], args[1])


def matrices(*places: int) -> Any:
    """cuda/Blas.cpp, `prepare_matrix_for_cublas` and `prepare_batch_matrix_for_cublas`: a factor is
    copied where neither of its last two strides is 1, or the other is shorter than a row."""

    def copies(args: tuple[Any, ...]) -> int:
        return sum(_copy(args[place]) for place in places if not _readable(args[place]))

    return copies


def _readable(matrix: torch.Tensor) -> bool:
    (rows, columns), (down, across) = matrix.shape[-2:], matrix.stride()[-2:]
    dense: bool = (
        matrix.is_contiguous()
        or (across == 1 and down >= max(1, columns))
        or (down == 1 and across >= max(1, rows))
    )
    return dense


def indexed(args: tuple[Any, ...]) -> int:
    """TensorAdvancedIndexing.cpp, `AdvancedIndex`: on CUDA several index tensors whose strides
    differ once they are broadcast are made contiguous."""
    given = [t for t in args[1] if t is not None and t.dtype not in {torch.bool, torch.uint8}]
    if len(given) < 2:
        return 0
    spread = torch.broadcast_tensors(*given)
    if len({t.stride() for t in spread}) == 1:
        return 0
    return sum(_copy(t, _INDEX) for t in spread if not t.is_contiguous())


def where(args: tuple[Any, ...]) -> int:
    """TensorCompare.cpp, `where_self_out`: an operand of another dtype than the result is cast."""
    result = torch.result_type(args[1], args[2])
    return sum(_copy(t, result.itemsize) for t in args[1:3] if t.dtype != result)


def cumsum(args: tuple[Any, ...]) -> int:
    """cuda/ScanUtils.cuh, `scan_dim`: the input, where it is not contiguous. (One long row takes
    cub's own buffer, kilobytes.)"""
    return _unless_contiguous(args[0])


def topk(args: tuple[Any, ...]) -> int:
    """cuda/TensorTopK.cpp and .cu: the input, where it is not contiguous; for few very long rows
    the whole sorted; where several blocks share a row, their counters, as many as the smallest
    blocks need (how many items a thread has is chosen by the GPU)."""
    values = args[0]
    dim = args[2] if len(args) > 2 else -1
    if not values.dim():
        return 0
    columns = values.shape[dim]
    rows = values.numel() // max(1, columns)
    if rows <= _MOST_SORTED_ROWS and columns >= _LEAST_SORTED:
        return _copy(values) + _copy(values, _INDEX)
    size = _unless_contiguous(values)
    if columns >= next((least for most, least in _BLOCKS_FROM if rows <= most), _BLOCKS_FROM_ANY):
        blocks = rows * math.ceil(columns / _BLOCK)
        size += rounded(2 * _DIGITS * blocks) + 2 * rounded(4 * blocks)
        size += rounded(4 * _DIGITS * rows) + rounded((8 + 3 * values.itemsize) * rows)
    return size


BEFORE = {
    "aten.native_layer_norm.default": layer_norm,
    "aten.native_layer_norm_backward.default": layer_norm_backward,
    "aten.index.Tensor": indexed,
    "aten.where.self": where,
}
"""Counted before the results are there."""
AFTER = {
    "aten.mm.default": matrices(0, 1),
    "aten.addmm.default": matrices(1, 2),
    "aten.bmm.default": matrices(0, 1),
    "aten.baddbmm.default": matrices(1, 2),
    "aten.cumsum.default": cumsum,
    "aten.topk.default": topk,
}
"""Counted when the results are there."""
READ_AND_FREE = {
    "aten._softmax.default": "cuda/SoftMax.cu",
    "aten._log_softmax.default": "cuda/SoftMax.cu",
    "aten._log_softmax_backward_data.default": "cuda/SoftMax.cu",
    "aten.nll_loss_forward.default": "cuda/Loss.cu",
    "aten.nll_loss_backward.default": "cuda/Loss.cu",
    "aten.native_dropout.default": "cuda/Dropout.cu",
    "aten.native_dropout_backward.default": "cuda/Dropout.cu",
    "aten.embedding.default": "Embedding.cpp, and index_select in cuda/Indexing.cu",
    "aten.gather.default": "cuda/ScatterGatherKernel.cu",
    "aten.scatter.src": "TensorAdvancedIndexing.cpp, cuda/ScatterGatherKernel.cu",
    "aten.scatter_add.default": "TensorAdvancedIndexing.cpp, cuda/ScatterGatherKernel.cu",
    "aten.index_add.default": "cuda/Indexing.cu",
    "aten.gelu.default": "cuda/ActivationGeluKernel.cu",
    "aten.gelu_backward.default": "cuda/ActivationGeluKernel.cu",
    "aten.silu.default": "cuda/ActivationSiluKernel.cu",
    "aten.silu_backward.default": "cuda/ActivationSiluKernel.cu",
    "aten.masked_fill.Scalar": "TensorAdvancedIndexing.cpp: its copy of the input is its result",
    "aten.tril.default": "cuda/TriangularOps.cu",
    "aten.triu.default": "cuda/TriangularOps.cu",
}
"""Kernels that were read and take nothing beyond their results, and where; with torch's algorithms
as they are by default (`use_deterministic_algorithms` takes other ways through some)."""
