"""Which attention kernel a device takes, and the call that traces as that kernel.

`scaled_dot_product_attention` chooses by the device, and on meta it always chooses the path of
plain products, which stores every score. The rules here are those of PyTorch's
`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` (and `sdp_utils_cpp.cpp` for the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Asked:
    """What `scaled_dot_product_attention` is asked for, under the names of its own arguments."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_mask: torch.Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def qkv(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.key, self.value

    @property
    def width(self) -> int:
        return int(self.query.shape[-1])

    @property
    def one_width(self) -> bool:
        """Whether all heads are as wide, and no wider than the flash kernels take."""
        return len({t.shape[-1] for t in self.qkv}) == 1 and self.width <= _WIDEST_FLASH_HEAD

    @property
    def as_many_heads(self) -> bool:
        return len({t.shape[1] for t in self.qkv}) == 1

    @property
    def factor(self) -> float:
        """Of the scores."""
        return 1 / math.sqrt(self.width) if self.scale is None else self.scale

    @property
    def followed(self) -> bool:
        """Whether autograd follows it: the kernel then keeps the sums of the scores."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.qkv)

    def mask(self) -> torch.Tensor | None:
        """The mask as what is added to the scores."""
        return _additive(self.attn_mask, self.query.dtype)


def cuda_attention(forced: str | None = None, capability: float = AMPERE) -> Attention:
    """A `scaled_dot_product_attention` that traces as CUDA's on a GPU of this compute capability;
    `forced` names one kernel.

    Raises UnknownName for a kernel that there is not, and BenchError for one that this GPU has
    not; the result raises BenchError where the forced kernel does not take the step's attention.
    """
    if forced is not None and forced not in PINNED:
        raise UnknownName("attention kernel", forced, PINNED)
    check_attention(forced, capability)

    def attention(*args: object, **kwargs: object) -> torch.Tensor:
        asked = Asked(*args, **kwargs)  # type: ignore[arg-type]  # torch's signature
        refusals = {name: refusal(asked, capability) for name, (refusal, _) in _KERNELS.items()}
        kernel = forced or next(name for name in PINNED if not refusals[name])
        if refusals[kernel]:
            raise BenchError(f"--attention {kernel}: the kernel takes {refusals[kernel]}")
        return _KERNELS[kernel][1](asked)

    return attention


def cpu_attention(*args: object, **kwargs: object) -> torch.Tensor:
    """A `scaled_dot_product_attention` that traces as the CPU's."""
    asked = Asked(*args, **kwargs)  # type: ignore[arg-type]  # torch's signature
    mask = asked.attn_mask
    unlike_heads = not asked.as_many_heads and not asked.enable_gqa
    if asked.dropout_p or unlike_heads or (mask is not None and mask.requires_grad):
        return _math(**vars(asked))
    kernel = private("attention on the cpu")
    out: torch.Tensor = kernel(
        *asked.qkv, asked.dropout_p, asked.is_causal, attn_mask=asked.mask(), scale=asked.scale
    )[0]
    return out


def _against_cudnn(asked: Asked, capability: float) -> str:
    """What the cuDNN kernel would take in place of this attention, as far as it was measured; "" if
    it takes it, as below."""
    if capability != HOPPER:
        return f"GPUs of compute capability {HOPPER}, as far as its memory is known"
    if asked.query.dtype not in _HALF:
        return "float16 and bfloat16 only"
    if not asked.one_width or asked.width % 8:
        return f"heads of one width, a multiple of 8, up to {_WIDEST_FLASH_HEAD}"
    if 1 in (asked.query.shape[-2], asked.key.shape[-2]):
        return "more than one query and one key"
    return ""


def _against_flash(asked: Asked, capability: float) -> str:
    if capability < AMPERE:
        return f"GPUs of compute capability {AMPERE} or later"
    if asked.query.dtype not in _HALF:
        return "float16 and bfloat16 only"
    if asked.attn_mask is not None:
        return "no mask beside the causal one (a padded batch or a sliding window needs one)"
    if not asked.one_width:
        return f"heads of one width, up to {_WIDEST_FLASH_HEAD}"
    if asked.is_causal and asked.query.shape[-2] != asked.key.shape[-2]:
        return "as many queries as keys under a causal mask"
    return ""


def _against_efficient(asked: Asked, capability: float) -> str:
    dtype = asked.query.dtype
    if dtype not in (*_HALF, torch.float32):
        return "float16, bfloat16 and float32 only"
    if dtype == torch.bfloat16 and capability < AMPERE:
        return (
            f"bfloat16 on GPUs of compute capability {AMPERE} or later alone "
            f"(this one has {capability})"
        )
    if not asked.as_many_heads:
        return "as many key and value heads as query heads"
    multiple = 8 if dtype in _HALF else 4
    if asked.width % multiple or asked.value.shape[-1] % multiple:
        return f"heads whose width is a multiple of {multiple}"
    return ""


def _cudnn(asked: Asked) -> torch.Tensor:
    kernel = private("attention, cudnn")
    out: torch.Tensor = kernel(
        *asked.qkv, asked.mask(), asked.followed, asked.dropout_p, asked.is_causal, False,
        scale=asked.scale,
    )[0]  # fmt: skip
    return out


def _flash(asked: Asked) -> torch.Tensor:
    qkv, width = asked.qkv, asked.width
    if missing := -width % 8:
        qkv = tuple(torch.nn.functional.pad(tensor, (0, missing)) for tensor in qkv)
    kernel = private("attention, flash")
    out: torch.Tensor = kernel(
        *qkv, asked.dropout_p, asked.is_causal, False, scale=asked.factor
    )[0]  # fmt: skip
    return out[..., :width] if missing else out


def _efficient(asked: Asked) -> torch.Tensor:
    mask = asked.mask()
    if mask is not None:
        if extra := -mask.shape[-1] % _BIAS_ALIGNMENT:
            mask = torch.nn.functional.pad(mask, (0, extra))[..., : mask.shape[-1]]
        mask = mask.expand(*asked.query.shape[:-1], asked.key.shape[-2])
    kernel = private("attention, efficient")
    out: torch.Tensor = kernel(
        *asked.qkv, mask, asked.followed, asked.dropout_p, asked.is_causal, scale=asked.scale
    )[0]
    return out


def _products(asked: Asked) -> torch.Tensor:
    """The path of plain products as CUDA runs it, with its fused dropout."""
    if not asked.dropout_p:
        return _math(**vars(asked))
    query, key, value = asked.qkv
    dtype = query.dtype
    if dtype in _HALF:
        query, key, value = query.float(), key.float(), value.float()
    if asked.enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    factor = math.sqrt(asked.factor)
    mask = asked.attn_mask
    if asked.is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        mask = ones.tril()
    scores = (query * factor) @ (key * factor).transpose(-2, -1)
    if mask is not None:
        scores = scores + _additive(mask, query.dtype)
    weights = torch.native_dropout(_aten._safe_softmax(scores, -1), asked.dropout_p, True)[0]
    return (weights @ value).to(dtype)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Of a boolean mask, its values in `dtype`."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.tensor(-math.inf, dtype=dtype, device=mask.device))


_KERNELS: dict[str, tuple[Callable[[Asked, float], str], Callable[[Asked], torch.Tensor]]] = {
    CUDNN: (_against_cudnn, _cudnn),
    FLASH: (_against_flash, _flash),
    EFFICIENT: (_against_efficient, _efficient),
    MATH: (lambda *_: "", _products),
}
"""By name: what is said against a kernel ("" where it takes the attention), and the kernel."""
