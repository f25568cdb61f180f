"""What CUDA's kernels copy before they read it, by hand, from their source."""

from __future__ import annotations

from typing import Any

import pytest


def meta(*shape: int, dtype: str = "float16") -> Any:
    import torch

    return torch.empty(*shape, dtype=getattr(torch, dtype), device="meta")


def test_a_factor_is_copied_where_blas_cannot_step_over_it() -> None:
    from bench.predict import cuda_kernels

    a, b = meta(64, 32), meta(32, 16)
    taken = cuda_kernels.temporaries
    assert taken("aten.mm.default", (a, b)) == 0
    assert taken("aten.mm.default", (a, meta(16, 32).t())) == 0
    assert taken("aten.mm.default", (a[:, ::2], meta(16, 16))) == 64 * 16 * 2  # every other column
    assert taken("aten.mm.default", (meta(1, 1).expand(64, 32), b)) == 64 * 32 * 2
    assert taken("aten.addmm.default", (meta(16), a, b)) == 0
    scores = meta(8, 64, 64)
    assert taken("aten.bmm.default", (scores, meta(8, 64, 16))) == 0
    assert taken("aten.bmm.default", (scores, meta(8, 16, 64).transpose(1, 2))) == 0
    across = meta(64, 16, 8).permute(2, 0, 1)  # the batch lies innermost
    assert taken("aten.bmm.default", (scores, across)) == 8 * 64 * 16 * 2


def test_norms_and_sums_take_rows_that_lie_together() -> None:
    from bench.predict import cuda_kernels

    x, weight = meta(32, 64), meta(64)
    aside = meta(64, 32).t()
    before = cuda_kernels.workspace
    assert before("aten.native_layer_norm.default", None, (x, [64], weight, weight, 1e-5)) == 0
    assert before("aten.native_layer_norm.default", None, (aside, [64])) == 64 * 32 * 2
    backward = "aten.native_layer_norm_backward.default"
    assert before(backward, None, (aside, aside)) == 2 * 64 * 32 * 2
    assert cuda_kernels.temporaries("aten.cumsum.default", (aside, 1)) == 64 * 32 * 2


def test_where_casts_the_other_operand() -> None:
    from bench.predict import cuda_kernels

    mask, x = meta(64, 64, dtype="bool"), meta(64, 64)
    before = cuda_kernels.workspace
    assert before("aten.where.self", None, (mask, x, x)) == 0
    wide = meta(64, 64, dtype="float32")
    assert before("aten.where.self", None, (mask, x, wide)) == 64 * 64 * 4


def test_several_indices_are_laid_alike() -> None:
    from bench.predict import cuda_kernels

    table = meta(100, 100)
    rows, columns = meta(64, 1, dtype="int64"), meta(1, 32, dtype="int64")
    before = cuda_kernels.workspace
    assert before("aten.index.Tensor", None, (table, [rows])) == 0
    assert before("aten.index.Tensor", None, (table, [rows, rows])) == 0
    assert before("aten.index.Tensor", None, (table, [rows, columns])) == 2 * 64 * 32 * 8


def test_a_router_of_many_experts_counts_by_blocks() -> None:
    """`should_use_multiblock`: from 400 columns on for more than 4000 rows; 256 counters of two
    bytes a block, 256 of four bytes a row, and a few words."""
    from bench.predict import cuda_kernels

    taken = cuda_kernels.temporaries
    assert taken("aten.topk.default", (meta(8192, 128), 8)) == 0
    assert taken("aten.topk.default", (meta(2048, 512), 8)) == 0
    found = taken("aten.topk.default", (meta(8192, 512), 8))
    assert found == pytest.approx(8192 * (512 + 8 + 1024 + 14), abs=4 * 512)
    long = meta(1, 200_000)
    assert taken("aten.topk.default", (long, 8)) == pytest.approx(200_000 * 10, abs=2 * 512)


def test_no_kernel_is_in_two_lists() -> None:
    from bench.predict import cuda_copies, cuda_kernels

    named = {*cuda_kernels.WORKSPACES, *cuda_kernels.TEMPORARIES, *cuda_kernels.SUBSTITUTES}
    assert not named & set(cuda_copies.READ_AND_FREE)
    assert all(".c" in where for where in cuda_copies.READ_AND_FREE.values())
