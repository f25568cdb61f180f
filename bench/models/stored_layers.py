"""The layers of a base that is quantized already, by what their products allocate.

- AWQ (gptqmodel 7.7, `nn_modules/qlinear/gemm_awq.py`, which transformers 5.23 trains): up to 1,024
  rows are multiplied as they are stored, more expand the weight; the backward pass expands it.
- GPTQ (gptqmodel 7.7, `nn_modules/qlinear/torch.py`, which the Triton kernel trains by, too): the
  expanded weight is an operand of a plain product, so that autograd keeps it until the backward
  pass has used it: without checkpointing every layer's. What expands it is some six bytes a weight.
- HQQ (hqq 0.2.8, `core/quantize.py`, `HQQMatmulNoCacheMul`): the input is kept for the backward
  pass; both passes expand the weight, with two more of its size meanwhile.
- compressed-tensors (0.20, `ModelCompressor.add_decompress_hook`): the first forward pass
  decompresses every layer, whatever its format, and leaves it so.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.models.quantization import mark_quantized
from bench.models.stored import AWQ, COMPRESSED, GPTQ, HQQ

if TYPE_CHECKING:
    import torch

    from bench.models.stored import Stored

AWQ_ROWS = 1024
"""Rows up to which AWQ's kernel multiplies without expanding."""


def store_linear_layers(model: Any, stored: Stored, dtype: torch.dtype) -> None:
    """Replace the linear layers of a model on meta by layers that hold what is stored and expand
    as their library does, to `dtype`; heads and skipped modules stay."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert

    skipped = stored.skipped or tuple(get_keys_to_not_convert(model))
    layer = _layers()[stored.method]
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or _skips(name, skipped):
            continue
        model.set_submodule(name, layer(module, stored, dtype))
    mark_quantized(model)


def _skips(name: str, skipped: tuple[str, ...]) -> bool:
    return any(
        re.match(entry[3:], name) if entry.startswith("re:")
        else name == entry or name.endswith(f".{entry}") or f"{entry}." in f"{name}."
        for entry in skipped
    )  # fmt: skip


@cache
def _layers() -> dict[str, Any]:
    """By method; made when torch is there."""
    import torch

    class Expanded(torch.autograd.Function):  # type: ignore[misc]
        """Input times the transpose of a weight that exists only meanwhile."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
            ctx.layer = layer
            if layer.keeps_input:
                ctx.save_for_backward(x)
            if x.numel() // x.shape[-1] <= layer.unexpanded_rows:
                return x.new_empty(*x.shape[:-1], layer.out_features)
            return torch.nn.functional.linear(x, layer.expanded(x))

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
            return gradient @ ctx.layer.expanded(gradient), None

    class StoredLinear(torch.nn.Linear):  # type: ignore[misc]
        """A linear layer whose weight is kept as its checkpoint stores it."""

        keeps_input = False
        unexpanded_rows = 0

        def __init__(self, base: torch.nn.Linear, stored: Stored, dtype: torch.dtype) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = base.in_features, base.out_features
            size = stored.layer_bytes(base.out_features, base.in_features)
            packed = torch.empty(size, dtype=torch.uint8, device="meta")
            self.weight = torch.nn.Parameter(packed, requires_grad=False)
            self.bias = base.bias
            self._dtype = dtype
            self._codes = torch.int16 if stored.bits == 8 else torch.int8

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = x.dtype
            out = self.product(x.to(self._dtype))
            out = out if self.bias is None else out + self.bias
            return out.to(wide)

        def product(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = Expanded.apply(x, self)
            return out

        def expanded(self, like: torch.Tensor) -> torch.Tensor:
            return like.new_empty(self.out_features, self.in_features)

    class AwqLinear(StoredLinear):
        unexpanded_rows = AWQ_ROWS

    class GptqLinear(StoredLinear):
        def product(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.expanded(x)

        def expanded(self, like: torch.Tensor) -> torch.Tensor:
            """`dequantize_weight`: a word for each weight, its code, scale and zero point."""
            shape = self.in_features, self.out_features
            codes = like.new_empty(shape, dtype=torch.int32).to(self._codes) & 15
            scales = like.new_empty(shape)
            return scales * (codes - like.new_empty(shape, dtype=self._codes))

    class HqqLinear(StoredLinear):
        keeps_input = True

        def expanded(self, like: torch.Tensor) -> torch.Tensor:
            """`Quantizer.dequantize`: unpacked, less the zero points, times the scales."""
            unpacked = like.new_empty(self.out_features, self.in_features)
            return (unpacked - 1) * 2

    class DenseLinear(torch.nn.Linear):  # type: ignore[misc]
        """A layer after its first forward pass; its scales stay."""

        def __init__(self, base: torch.nn.Linear, stored: Stored, dtype: torch.dtype) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = base.in_features, base.out_features
            shape = base.out_features, base.in_features
            dense = torch.empty(shape, dtype=dtype, device="meta")
            self.weight = torch.nn.Parameter(dense, requires_grad=False)
            self.bias = base.bias
            groups = -(-base.in_features // stored.group) if stored.group else 1
            scales = torch.empty(base.out_features, groups, dtype=dtype, device="meta")
            self.weight_scale = torch.nn.Parameter(scales, requires_grad=False)

    return {AWQ: AwqLinear, GPTQ: GptqLinear, HQQ: HqqLinear, COMPRESSED: DenseLinear}
