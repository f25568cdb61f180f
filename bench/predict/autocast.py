"""`torch.autocast` on meta: the casts that it makes on a device, the weights that it keeps cast.

torch chooses autocast's kernels by the device of the tensors, and meta has none. Here kernels in
Python stand in for them while a step is traced, under a dispatch key that nothing else uses: above
autograd, so that a cast is recorded and its result saved as it would be, and within operations that
C++ composes of others too. What is cast is torch's own list (`ATen/autocast_mode.h` and `.cpp`, the
same that the documentation of `torch.amp` gives): which operations a device has kernels for is
asked of the dispatcher, what a kernel does is said below.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.compat import patched, private
from bench.predict.attention import Attention
from bench.predict.values import tensors_in

_KEY = private("unused autocast key")
_KEYS = private("dispatch key")(_KEY)
_DISPATCH_KEYS = {"cuda": "AutocastCUDA", "cpu": "AutocastCPU"}

# By device, operations that compute in the lower precision; all that are in no list in float32.
_CONVOLUTIONS = (
    "_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip
_PRODUCTS = (
    "addmm", "addbmm", "baddbmm", "bmm", "linalg_vecdot", "linear", "matmul", "mm", "prelu",
    "scaled_dot_product_attention",
)  # fmt: skip
LOWER: Mapping[str, frozenset[str]] = {
    "cuda": frozenset((
        *_CONVOLUTIONS, *_PRODUCTS, "convolution", "addmv", "addr", "einsum", "mv", "chain_matmul",
        "linalg_multi_dot", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell",
        "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "_scaled_dot_product_flash_attention",
        "cudnn_convolution", "cudnn_convolution_transpose",
    )),
    "cpu": frozenset((
        *_CONVOLUTIONS, *_PRODUCTS, "mkldnn_rnn_layer", "_addmm_activation",
        "_native_multi_head_attention",
    )),
}  # fmt: skip
WIDEST: Mapping[str, frozenset[str]] = {
    "cuda": frozenset((
        "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler",
        "index_put", "tensordot", "scatter_add",
    )),
    "cpu": frozenset(("stack", "cat", "index_copy")),
}  # fmt: skip
"""In the widest precision among their operands."""
RESULT: Mapping[str, frozenset[str]] = {
    "cuda": frozenset((
        "prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm",
        "linalg_matrix_norm", "sum", "norm",
    )),
    "cpu": frozenset(),
}  # fmt: skip
"""With float32 as the result's dtype, unless one is asked for: the operand is not cast."""


@dataclass
class _State:
    """Autocast's state on the traced device, as torch keeps it for a thread."""

    device: str
    dtype: torch.dtype
    enabled: bool = False
    cached: bool = True
    depth: int = 0
    casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    libraries: list[Any] = field(default_factory=list)

    def is_ours(self, device: Any) -> bool:
        """Whether a device named by the step is the traced one."""
        return str(device).partition(":")[0] in ("meta", self.device)

    def switch(self, enabled: bool) -> None:
        """Make operations go through the kernels, or past them."""
        self.enabled = enabled
        if enabled and not self.libraries:
            self.libraries = _register(self)
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, enabled)
        torch._C._dispatch_tls_set_dispatch_key_excluded(_KEY, not enabled)

    def cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`cached_cast`: a trainable float32 leaf keeps its cast until autocast is left."""
        if not _eligible(tensor) or tensor.dtype == dtype:
            return tensor
        keeps = (
            self.cached
            and dtype == self.dtype
            and tensor.dtype == torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
        )
        if not keeps:
            return tensor.to(dtype)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = (tensor, tensor.to(dtype))
        return self.casts[id(tensor)][1]

    def cast_all(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return self.cast(value, dtype)
        if isinstance(value, (tuple, list)):  # the last first, as compilers evaluate arguments
            return type(value)([self.cast_all(item, dtype) for item in reversed(value)][::-1])
        return value

    def attention(self, kernel: Attention) -> Attention:
        """A stand-in for `scaled_dot_product_attention`, with autocast's kernel before it."""

        def run(*args: Any, **kwargs: Any) -> torch.Tensor:
            if not self.enabled:
                return kernel(*args, **kwargs)
            with torch._C._ExcludeDispatchKeyGuard(_KEYS):
                cast = {key: self.cast_all(value, self.dtype) for key, value in kwargs.items()}
                return kernel(*self.cast_all(args, self.dtype), **cast)

        return run


def _eligible(tensor: torch.Tensor) -> bool:
    floating = tensor.is_floating_point() and tensor.dtype != torch.float64
    return bool(floating and tensor.device.type == "meta")


def _register(state: _State) -> list[Any]:
    """Kernels for every operation that autocast has one for on the device."""
    through = torch.library.Library("_", "IMPL", _KEY.name)
    through.fallback(torch.library.fallthrough_kernel)
    kernels = torch.library.Library("aten", "IMPL", _KEY.name)
    for op in autocast_operations(state.device):
        qualified = op._schema.name + (f".{op._overloadname}" if op._schema.overload_name else "")
        kernels.impl(qualified.removeprefix("aten::"), _kernel(state, op))
    return [through, kernels]


@functools.cache
def autocast_operations(device: str) -> tuple[Any, ...]:
    """The operations that torch's autocast has kernels for on "cuda" or "cpu"."""
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(
            name, _DISPATCH_KEYS[device]
        ):
            packet, _, overload = name.removeprefix("aten::").partition(".")
            found.append(getattr(getattr(torch.ops.aten, packet), overload or "default"))
    return tuple(found)


def _kernel(state: _State, op: Any) -> Callable[..., Any]:
    name = op._schema.name.removeprefix("aten::")
    arguments = [argument.name for argument in op._schema.arguments]
    place = arguments.index("dtype") if "dtype" in arguments else None

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32
        if name in LOWER[state.device]:
            dtype = state.dtype
        elif name in WIDEST[state.device]:
            found = {t.dtype for t in tensors_in((args, kwargs)) if _eligible(t)}
            dtype = torch.float32 if torch.float32 in found else state.dtype
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            if name in RESULT[state.device] and place is not None:
                asked = kwargs.get("dtype") is not None or args[place:] not in ((), (None,))
                if not asked and _eligible(args[0]):
                    args, kwargs = args[:place], {**kwargs, "dtype": dtype}
                return op(*args, **kwargs)
            cast = state.cast_all(args, dtype)
            return op(*cast, **{key: state.cast_all(v, dtype) for key, v in kwargs.items()})

    return run


def _autocast(state: _State) -> type:
    """A class that stands in for `torch.autocast`: a context, or a decorator."""

    class Autocast(contextlib.ContextDecorator):
        def __init__(
            self,
            device_type: str,
            dtype: torch.dtype | None = None,
            enabled: bool = True,
            cache_enabled: bool | None = None,
        ) -> None:
            self.ours = state.is_ours(device_type)
            self.dtype = state.dtype if dtype is None else dtype
            self.enabled = enabled
            self.cached = state.cached if cache_enabled is None else cache_enabled

        def _recreate_cm(self) -> Autocast:
            return self

        def __enter__(self) -> Autocast:
            if self.ours:
                self.before = (state.dtype, state.cached, state.enabled)
                state.dtype, state.cached = self.dtype, self.cached
                state.depth += 1
                state.switch(self.enabled)
            return self

        def __exit__(self, *error: object) -> None:
            if self.ours:
                state.dtype, state.cached, enabled = self.before
                state.switch(enabled)
                state.depth -= 1
                if not state.depth:
                    state.casts.clear()

    return Autocast


@contextlib.contextmanager
def followed_autocast(device: str, attention: Attention) -> Iterator[None]:
    """While active, autocast works on meta as it does on `device`, "cuda" or "cpu";
    `scaled_dot_product_attention` is `attention`."""
    state = _State(device, torch.float16 if device == "cuda" else torch.bfloat16)
    stand_in = _autocast(state)
    asked, dtype_of = torch.is_autocast_enabled, torch.get_autocast_dtype
    available, kept = torch.amp.is_autocast_available, torch.is_autocast_cache_enabled

    def is_enabled(device_type: str | None = None) -> bool:
        # Without a device this asks for CUDA's.
        if state.is_ours(device_type or "cuda"):
            return state.enabled
        return bool(asked(device_type) if device_type else asked())

    def dtype(device_type: str) -> torch.dtype:
        found: torch.dtype = state.dtype if state.is_ours(device_type) else dtype_of(device_type)
        return found

    def is_available(device_type: str) -> bool:
        return state.is_ours(device_type) or bool(available(device_type))

    def is_kept() -> bool:
        return state.cached if state.depth else bool(kept())

    def maybe_autocast(
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> Any:
        """transformers' own, which leaves meta alone."""
        if is_enabled(device_type) or enabled:
            return stand_in(device_type, dtype, enabled, cache_enabled)
        return contextlib.nullcontext()

    modes = importlib.import_module("torch.amp.autocast_mode")
    replacements: list[tuple[Any, str, Any]] = [
        (torch.nn.functional, "scaled_dot_product_attention", state.attention(attention)),
        (torch, "autocast", stand_in),
        (torch.amp, "autocast", stand_in),
        (modes, "autocast", stand_in),
        (torch, "is_autocast_enabled", is_enabled),
        (torch, "get_autocast_dtype", dtype),
        (torch, "is_autocast_cache_enabled", is_kept),
        (torch.amp, "is_autocast_available", is_available),
    ]
    original = private("autocast, perhaps")
    for module in list(sys.modules.values()):
        # vars, not getattr: a lazy module would import what is asked of it
        if getattr(module, "__dict__", {}).get("maybe_autocast") is original:
            replacements.append((module, "maybe_autocast", maybe_autocast))
    try:
        with patched(*replacements):
            yield
    finally:
        if state.libraries:
            state.switch(False)
            for library in state.libraries:
                library._destroy()
