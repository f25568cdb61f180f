"""How each kind of device runs a step: what the dispatcher, and so a trace, never sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.predict import cpu_kernels, cuda_kernels
from bench.predict.allocator import CachingAllocator, ExactAllocator
from bench.predict.attention import Attention, cpu_attention, cuda_attention

CUBLAS_WORKSPACE = 8 * 1024 * 1024 + 8 * 16 * 1024
"""Bytes per cuBLAS handle before Hopper (":4096:2:16:8"), `ATen/cuda/CublasHandlePool.cpp`; there
is one handle for the thread of the forward pass and one for that of the backward pass."""
CUBLAS_WORKSPACE_HOPPER = 32 * 1024 * 1024
CUBLASLT_WORKSPACE = 1024 * 1024
"""Bytes that products with a bias keep, where cublasLt does not use cuBLAS' workspace: in torch
2.11 (`ATen/cuda/CUDABlas.cpp`; seen on an H200), and no longer in 2.13, where `torch.backends.cuda`
says so."""


@dataclass(frozen=True)
class Device:
    """How one kind of device runs a step.

    `substitutes` replaces operations, by name, by what the device does for them; `plain` names
    those of other libraries whose outputs are all that they allocate; `workspace` gives the bytes
    that a kernel needs while it runs, from its name, function and arguments, and `temporaries`
    those that it takes only after its results; `functions` replaces those of
    `torch.nn.functional`; `handles` is the bytes that each cuBLAS handle keeps, `lt_workspace`
    those of cublasLt; `capability` is CUDA's compute capability. `followed` names
    the torch devices whose tensors count: on the CPU what stays there, such as an optimizer's step
    counts, is part of the same memory. `masks_by_position`: whether `masked_select` looks up the
    positions of its mask, eight bytes for each element and dimension (`masked_select_cuda` in
    ATen/native/cuda/IndexKernel.cpp).
    """

    name: str
    attention: Attention
    substitutes: Mapping[str, Callable[..., Any]]
    plain: frozenset[str]
    workspace: Callable[[str, Any, tuple[Any, ...]], int]
    temporaries: Callable[[str, tuple[Any, ...]], int]
    functions: Mapping[str, Callable[..., Any]]
    allocator: Callable[[], CachingAllocator | ExactAllocator]
    followed: tuple[str, ...]
    fused_dropout: bool
    foreach_optimizer: bool
    handles: int = 0
    lt_workspace: int = 0
    capability: float = 0.0
    masks_by_position: bool = True


def cuda(attention: str | None = None, capability: float = 8.0) -> Device:
    """An NVIDIA GPU of this compute capability; `attention` forces one attention kernel."""
    return Device(
        name="cuda",
        attention=cuda_attention(attention, capability),
        substitutes=cuda_kernels.SUBSTITUTES,
        plain=cuda_kernels.RESULTS_ALONE,
        workspace=cuda_kernels.workspace,
        temporaries=cuda_kernels.temporaries,
        functions={"softmax": cuda_kernels.softmax, "log_softmax": cuda_kernels.log_softmax},
        allocator=CachingAllocator,
        followed=("meta",),
        fused_dropout=True,
        foreach_optimizer=True,
        handles=CUBLAS_WORKSPACE_HOPPER if capability >= 9 else CUBLAS_WORKSPACE,
        lt_workspace=0
        if hasattr(torch.backends.cuda, "cublaslt_workspace_size")
        else CUBLASLT_WORKSPACE,
        capability=capability,
    )


def this_gpu(attention: str | None = None) -> Device:
    """The GPU that torch uses here."""
    major, minor = torch.cuda.get_device_capability()
    return cuda(attention, major + minor / 10)


def cpu() -> Device:
    """The CPU: what a prediction can be checked against without a GPU."""
    return Device(
        name="cpu",
        attention=cpu_attention,
        substitutes=cpu_kernels.SUBSTITUTES,
        plain=cuda_kernels.RESULTS_ALONE,
        workspace=cpu_kernels.workspace,
        temporaries=lambda name, args: 0,
        functions={},
        allocator=ExactAllocator,
        followed=("meta", "cpu"),
        fused_dropout=False,
        foreach_optimizer=False,
        masks_by_position=False,
    )
