"""Which attention kernel a device takes, and the call that traces as that kernel.

`scaled_dot_product_attention` chooses by the device, and on meta it always chooses the path of
plain products, which stores every score. The rules here are those of PyTorch's
`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` (and `sdp_utils_cpp.cpp` for the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from bench.compat import private
from bench.errors import BenchError, UnknownName
from bench.predict.gpus import AMPERE, HOPPER, check_attention
from bench.training.options import CUDNN, EFFICIENT, FLASH, MATH, PINNED

Attention = Callable[..., torch.Tensor]

_HALF = (torch.float16, torch.bfloat16)
_WIDEST_FLASH_HEAD = 256
_BIAS_ALIGNMENT = 8  # elements: the memory-efficient kernel's, pad_bias in attention.cpp

_aten = torch.ops.aten
_math: Attention = torch.nn.functional.scaled_dot_product_attention


def prefers_cudnn(capability: float) -> bool:
    """Whether torch asks cuDNN first on such a GPU, for attention in halves.

    `check_prefer_cudnn_attention`: Hopper (9.0) and Blackwell (10.0), with cuDNN above 9.15,
    unless TORCH_CUDNN_SDPA_DEPRIORITIZED is set. What that kernel allocates is known on Hopper
    (`cuda_kernels`): elsewhere PyTorch's own is predicted in its place.
    """
    return capability in (HOPPER, 10.0)


def cuda_attention(forced: str | None = None, capability: float = AMPERE) -> Attention:
    """A `scaled_dot_product_attention` that traces as CUDA's on a GPU of this compute capability;
    `forced` names one kernel.

    Raises UnknownName for a kernel that there is not, and BenchError for one that this GPU has
    not; the result raises BenchError where the forced kernel does not take the step's attention.
    """
    if forced is not None and forced not in PINNED:
        raise UnknownName("attention kernel", forced, PINNED)
    check_attention(forced, capability)

    def attention(  # noqa: PLR0917  # torch's signature
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        refusals = {
            CUDNN: _against_cudnn(query, key, value, capability),
            FLASH: _against_flash(query, key, value, attn_mask, is_causal, capability),
            EFFICIENT: _against_efficient(query, key, value, capability),
            MATH: "",
        }
        kernel = forced or next(name for name in PINNED if not refusals[name])
        if refusals[kernel]:
            raise BenchError(f"--attention {kernel}: the kernel takes {refusals[kernel]}")
        given: Any = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        if kernel == CUDNN:
            return _cudnn(query, key, value, mask=attn_mask, **given)
        if kernel == FLASH:
            return _flash(query, key, value, **given)
        if kernel == EFFICIENT:
            return _efficient(query, key, value, mask=attn_mask, **given)
        given["enable_gqa"] = enable_gqa
        if dropout_p:
            return _math_with_dropout(query, key, value, mask=attn_mask, **given)
        return _math(query, key, value, attn_mask, **given)

    return attention


def cpu_attention(  # noqa: PLR0917  # torch's signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """A `scaled_dot_product_attention` that traces as the CPU's."""
    unlike_heads = not query.shape[1] == key.shape[1] == value.shape[1] and not enable_gqa
    if dropout_p or unlike_heads or (attn_mask is not None and attn_mask.requires_grad):
        return _math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    attn_mask = _additive(attn_mask, query.dtype)
    kernel = private("attention on the cpu")
    out: torch.Tensor = kernel(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return out


def _against_cudnn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, capability: float
) -> str:
    """... the cuDNN kernel, as far as it was measured: heads of one width."""
    if capability != HOPPER:
        return f"GPUs of compute capability {HOPPER}, as far as its memory is known"
    if query.dtype not in _HALF:
        return "float16 and bfloat16 only"
    width = query.shape[-1]
    if not width == key.shape[-1] == value.shape[-1] <= _WIDEST_FLASH_HEAD or width % 8:
        return f"heads of one width, a multiple of 8, up to {_WIDEST_FLASH_HEAD}"
    if 1 in (query.shape[-2], key.shape[-2]):
        return "more than one query and one key"
    return ""


def _against_flash(  # noqa: PLR0917  # what its rules look at
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    capability: float,
) -> str:
    """What the flash kernel would take in place of this attention; "" if it takes it."""
    if capability < AMPERE:
        return f"GPUs of compute capability {AMPERE} or later"
    if query.dtype not in _HALF:
        return "float16 and bfloat16 only"
    if mask is not None:
        return "no mask beside the causal one (a padded batch or a sliding window needs one)"
    if not query.shape[-1] == key.shape[-1] == value.shape[-1] <= _WIDEST_FLASH_HEAD:
        return f"heads of one width, up to {_WIDEST_FLASH_HEAD}"
    if is_causal and query.shape[-2] != key.shape[-2]:
        return "as many queries as keys under a causal mask"
    return ""


def _against_efficient(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, capability: float
) -> str:
    if query.dtype not in (*_HALF, torch.float32):
        return "float16, bfloat16 and float32 only"
    if query.dtype == torch.bfloat16 and capability < AMPERE:
        return (
            f"bfloat16 on GPUs of compute capability {AMPERE} or later alone "
            f"(this one has {capability})"
        )
    if not query.shape[1] == key.shape[1] == value.shape[1]:
        return "as many key and value heads as query heads"
    multiple = 8 if query.dtype in _HALF else 4
    if query.shape[-1] % multiple or value.shape[-1] % multiple:
        return f"heads whose width is a multiple of {multiple}"
    return ""


def _cudnn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    mask, graph = _additive(mask, query.dtype), _followed(query, key, value)
    kernel = private("attention, cudnn")
    out: torch.Tensor = kernel(
        query, key, value, mask, graph, dropout_p, is_causal, False, scale=scale
    )[0]
    return out


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    width = query.shape[-1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    if missing := -width % 8:
        query, key, value = (
            torch.nn.functional.pad(tensor, (0, missing)) for tensor in (query, key, value)
        )
    kernel = private("attention, flash")
    out: torch.Tensor = kernel(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    return out[..., :width] if missing else out


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    mask = _additive(mask, query.dtype)
    if mask is not None:
        if extra := -mask.shape[-1] % _BIAS_ALIGNMENT:
            mask = torch.nn.functional.pad(mask, (0, extra))[..., : mask.shape[-1]]
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
    graph = _followed(query, key, value)
    kernel = private("attention, efficient")
    out: torch.Tensor = kernel(
        query, key, value, mask, graph, dropout_p, is_causal, scale=scale
    )[0]  # fmt: skip
    return out


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask as what is added to the scores: of a boolean one, its values in `dtype`."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.tensor(-math.inf, dtype=dtype, device=mask.device))


def _followed(*tensors: torch.Tensor) -> bool:
    """Whether autograd follows an operation on these: its kernel keeps the sums of the scores."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _math_with_dropout(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """The path of plain products as CUDA runs it, with its fused dropout."""
    dtype = query.dtype
    if dtype in _HALF:
        query, key, value = query.float(), key.float(), value.float()
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    factor = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        mask = ones.tril()
    scores = (query * factor) @ (key * factor).transpose(-2, -1)
    if mask is not None:
        scores = scores + _additive(mask, query.dtype)
    weights = torch.native_dropout(_aten._safe_softmax(scores, -1), dropout_p, True)[0]
    return (weights @ value).to(dtype)
