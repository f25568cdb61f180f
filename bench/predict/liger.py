"""What Liger's kernels allocate, without Triton: each function as its Python part has it.

A Triton kernel writes to what it is given and allocates nothing, so that what is left of each
function are the tensors made around its kernels. Read in liger_kernel 0.8.5, `ops/rms_norm.py`,
`ops/rope.py`, `ops/swiglu.py`, `ops/geglu.py`, `ops/fused_linear_cross_entropy.py`, and, for what
is patched, `transformers/monkey_patch.py` and `transformers/model/`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from bench.predict.journal import LOGITS
from bench.training.liger import ROPE, Patch, Patches
from bench.training.step import IGNORED_LABEL

if TYPE_CHECKING:
    from bench.predict.journal import Journal
    from bench.predict.kernels import Device

_KEPT_GRADIENTS = ("gemma2", "gemma3_text")
"""Types whose norms do not write their gradient over the one that they are given."""
_PROCESSORS = 108
"""Of a GPU, each of which sums a norm's weight gradient for itself (an A100's; a row each)."""


def kernels_on(device: Device, journal: Journal) -> Patch:
    """What puts Liger's kernels into a model on meta as they are on `device`."""

    def put(model: Any, loss: bool) -> Patches:
        base = model.get_base_model()
        kind = base.config.model_type
        for module in base.modules():
            name = type(module).__name__
            if name.endswith("RMSNorm"):
                module.forward = _norm(module, kind not in _KEPT_GRADIENTS)
            elif name.endswith("MLP"):
                module.forward = _mlp(module)
        if loss:
            base.forward = _forward(base, device, journal)
        return ((sys.modules[type(base).__module__], ROPE, _rope),)

    return put


def _norm(module: Any, in_place: bool) -> Callable[..., torch.Tensor]:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Norm.apply(hidden, module.weight, in_place)
        return out

    return forward


def _mlp(module: Any) -> Callable[..., torch.Tensor]:
    def fused(x: torch.Tensor) -> torch.Tensor:
        up = module.gate_up_proj(x)
        gate, up = up.chunk(2, dim=-1)
        out: torch.Tensor = module.down_proj(_Gated.apply(gate, up))
        return out

    def forward(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x)))
        return out

    return fused if hasattr(module, "gate_up_proj") else forward


def _rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
) -> Any:
    return _Rope.apply(q, k, cos, sin)


class _Norm(torch.autograd.Function):  # type: ignore[misc]  # torch is seen untyped
    """`LigerRMSNormFunction`: a float32 a row is kept beside the input. The gradient is written
    over the one that is given, where that is allowed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, in_place: bool) -> torch.Tensor:
        x = x.contiguous()
        rows = x.view(-1, x.shape[-1])
        out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        scales = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
        ctx.in_place = in_place
        ctx.save_for_backward(rows, weight, scales)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        rows, weight, _ = ctx.saved_tensors
        gradient = gradient.contiguous()
        sums = None
        if ctx.needs_input_grad[1]:
            sums = torch.empty(_PROCESSORS, rows.shape[1], dtype=torch.float32, device=rows.device)
        flat = gradient.view(rows.shape)
        out = flat if ctx.in_place else torch.zeros_like(flat)
        of_weight = None if sums is None else sums.sum(dim=0).to(weight.dtype)
        return out.view(gradient.shape), of_weight, None


class _Gated(torch.autograd.Function):  # type: ignore[misc]
    """`LigerSiLUMulFunction` and `LigerGELUMulFunction`: both inputs are kept, and in the backward
    pass overwritten with their gradients."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        gradient = gradient.contiguous()
        gate, up = ctx.saved_tensors
        return gate.view(gate.shape), up.view(up.shape)


class _Rope(torch.autograd.Function):  # type: ignore[misc]
    """`LigerRopeFunction`: query and key are turned where they are; the tables are kept."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> Any:
        q, k = q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous()
        ctx.save_for_backward(cos.contiguous(), sin.contiguous())
        return q.transpose(1, 2), k.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> Any:
        dq, dk = dq.transpose(1, 2).contiguous(), dk.transpose(1, 2).contiguous()
        return dq.transpose(1, 2), dk.transpose(1, 2), None, None


def _forward(base: Any, device: Device, journal: Journal) -> Callable[..., Any]:
    """`lce_forward`: the head's weight is read, the head itself, and what adapts it, never runs."""
    pad = torch.nn.functional.pad

    def forward(labels: torch.Tensor, num_items_in_batch: Any = None, **batch: Any) -> Any:
        output = base.model(**batch)
        hidden = output[0][:, slice(0, None), :]
        with journal.storages.under(LOGITS):
            labels = pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:].contiguous().view(-1)
            loss = _HeadAndLoss.apply(
                hidden.view(-1, hidden.shape[-1]), base.lm_head.weight, labels, device
            )
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        return _Output(loss=loss)

    return forward


class _Output(SimpleNamespace):
    """A model's output without logits."""

    logits = None

    def __getitem__(self, key: Any) -> Any:
        return self.loss


class _HeadAndLoss(torch.autograd.Function):  # type: ignore[misc]
    """`LigerFusedLinearCrossEntropyFunction`: some rows at a time are projected to the vocabulary,
    as many as keep the logits to about the size of the input; their gradient, of the input and of a
    trained head, is made at once and kept, and the backward pass has only to scale it.

    On CUDA one buffer holds each chunk's logits, and gradients are written in place (`out=`) where
    autocast would cast nothing; elsewhere each chunk allocates anew.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, device: Device
    ) -> torch.Tensor:
        rows, width = hidden.shape
        words = weight.shape[0]
        size = min(_power_of_two(_parts(rows, _parts(words, width))), rows)
        gradient = torch.zeros_like(hidden)
        trained = hidden.requires_grad and weight.requires_grad
        of_weight = torch.zeros_like(weight) if trained else None
        losses = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
        counted = labels != IGNORED_LABEL
        counted.sum()
        in_place = device.name == "cuda" and _uncast(hidden, weight)
        logits = hidden.new_empty(size, words) if in_place else None
        for start in range(0, rows, size):
            part = hidden[start : start + size]
            if logits is not None:
                tile = logits[: part.shape[0]]
                torch.mm(part, weight.t(), out=tile)
            else:
                tile = part @ weight.t()
            written = gradient[start : start + size]
            if logits is not None:
                torch.mm(tile, weight, out=written)
            else:
                gradient[start : start + size] = tile @ weight
            if of_weight is not None:
                _add_weight_gradient(of_weight, tile.t(), part, device)
            del tile, part, written
        del logits, counted
        ctx.save_for_backward(gradient, of_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden, of_weight, None, None


def _add_weight_gradient(
    held: torch.Tensor, tile: torch.Tensor, part: torch.Tensor, device: Device
) -> None:
    """Summed in place by one product from compute capability 8.0 on, for halves; else a float32
    product as large as the weight."""
    halves = tile.dtype in {torch.float16, torch.bfloat16}
    if device.capability >= 8 and halves and held.dtype in {torch.float32, tile.dtype}:
        if part.dtype != tile.dtype:
            part = part.to(tile.dtype)
        if held.dtype == tile.dtype:
            torch.addmm(held, tile, part, out=held)
        else:
            held.add_(1)  # `out_dtype=float32`, which meta does not have: the same storage written
    else:
        held += torch.mm(tile, part).float()


def _uncast(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """`_can_use_mm_out`."""
    if hidden.dtype != weight.dtype:
        return False
    kind = hidden.device.type
    return not torch.is_autocast_enabled(kind) or hidden.dtype == torch.get_autocast_dtype(kind)


def _parts(whole: int, size: int) -> int:
    return -(-whole // size)


def _power_of_two(number: int) -> int:
    """The next power of two, at least `number`."""
    return 1 << (number - 1).bit_length()
