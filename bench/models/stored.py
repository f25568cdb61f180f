"""Bases whose checkpoint is quantized already: what their layers hold, and expand on the way.

Where config.json has a `quantization_config`, the weights are what it says. bitsandbytes' are the
precisions of that name; those here are other libraries' formats, and how many bytes a layer
stores; what its product takes is in `stored_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError

AWQ, GPTQ, HQQ, COMPRESSED = "awq", "gptq", "hqq", "compressed-tensors"
STORED_METHODS = (AWQ, GPTQ, HQQ, COMPRESSED)
_UNTRAINABLE = {
    "mxfp4": "transformers does not train MXFP4; loaded with Mxfp4Config(dequantize=True) it is "
             "--precision bf16",
    "fp8": "what a step on FP8 weights takes is not predicted; dequantized it is --precision bf16",
    "fbgemm_fp8": "transformers does not train FBGEMM's FP8; dequantized it is --precision bf16",
}  # fmt: skip
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Stored:
    """How a layer's weight is stored: `bits` an element, and for each group of `group` inputs a
    scale of `scale_bits` and a zero point of `zero_bits`; `index_bits` an input, where the groups
    are not in order. `skipped` modules are not converted (None: the output embedding)."""

    method: str
    bits: int
    group: int | None
    scale_bits: int
    zero_bits: int
    index_bits: int = 0
    skipped: tuple[str, ...] | None = None

    def layer_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of one layer of this shape, its bias left out."""
        groups = -(-in_features // self.group) if self.group else 1
        bits = out_features * (
            in_features * self.bits + groups * (self.scale_bits + self.zero_bits)
        )
        return (bits + in_features * self.index_bits + 7) // 8


def stored_precision(settings: object, where: str) -> tuple[str, str | None] | None:
    """The precision that a config.json's `quantization_config` says, and the short name of the
    dtype that it computes in, where it says one; None where there is no such config.

    Raises BenchError, with what can be done instead, for a method that is not predicted.
    """
    if not isinstance(settings, Mapping) or not settings:
        return None
    if not any(name in settings for name in ("quant_method", "load_in_4bit", "load_in_8bit")):
        raise BenchError(
            f"{where}: config.json has a quantization_config without a quant_method: how its "
            "weights are stored is not known; --precision says what to take them for"
        )
    method = str(settings.get("quant_method") or "bitsandbytes").lower()
    if method == "bitsandbytes":
        return _bitsandbytes(settings, where)
    if method in STORED_METHODS:
        read_stored(settings, where)
        return method, None
    why = _UNTRAINABLE.get(method, "what a step on such weights takes is not predicted")
    raise BenchError(
        f"{where}: config.json says that the weights are quantized with {method}: {why}"
    )


def _bitsandbytes(settings: Mapping[str, Any], where: str) -> tuple[str, str | None] | None:
    if settings.get("load_in_8bit"):
        return "int8", None
    if not settings.get("load_in_4bit"):
        return None
    kind = str(settings.get("bnb_4bit_quant_type", "fp4"))
    if kind not in ("nf4", "fp4"):
        raise BenchError(f"{where}: quantization_config: bnb_4bit_quant_type {kind!r}: nf4 or fp4")
    name = kind + ("-dq" if settings.get("bnb_4bit_use_double_quant") else "")
    compute = str(settings.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch.")
    return name, _DTYPES.get(compute)


def read_stored(settings: Mapping[str, Any], where: str) -> Stored:
    """The format that a `quantization_config` of `STORED_METHODS` describes. Raises BenchError."""
    method = str(settings["quant_method"]).lower()
    if method == HQQ:
        return _hqq(settings, where)
    if method == COMPRESSED:
        return _compressed(settings, where)
    bits = _number(settings, "bits", where, 4)
    group = _number(settings, "group_size", where, 128)
    skipped = settings.get("modules_to_not_convert")
    return Stored(
        method, bits, None if group < 1 else group, scale_bits=16, zero_bits=bits,
        index_bits=32 if method == GPTQ else 0,  # g_idx
        skipped=tuple(skipped) if skipped else None,
    )  # fmt: skip


def _hqq(settings: Mapping[str, Any], where: str) -> Stored:
    inner = settings.get("quant_config") or settings
    weights = inner.get("weight_quant_params") or inner
    bits = _number(weights, "nbits", where, 4)
    return Stored(HQQ, bits, _number(weights, "group_size", where, 64), 16, 16)


def _compressed(settings: Mapping[str, Any], where: str) -> Stored:
    groups = list((settings.get("config_groups") or {}).values())
    weights = groups[0].get("weights") if groups and isinstance(groups[0], Mapping) else None
    if not isinstance(weights, Mapping) or len(groups) != 1:
        raise BenchError(
            f"{where}: quantization_config: of compressed-tensors one group of weights is "
            f"predicted, not {len(groups)}"
        )
    if settings.get("use_optimized_inference"):
        raise BenchError(
            f"{where}: quantization_config: use_optimized_inference: transformers does not train "
            "on those kernels; without it the weights are dense from the first forward pass on"
        )
    bits = _number(weights, "num_bits", where, 4)
    group = weights.get("group_size")
    return Stored(
        COMPRESSED, bits, group if isinstance(group, int) and group > 0 else None, 16,
        0 if weights.get("symmetric", True) else bits,
        skipped=tuple(settings.get("ignore") or ()) or None,
    )  # fmt: skip


def _number(settings: Mapping[str, Any], name: str, where: str, usual: int) -> int:
    value = settings.get(name, usual)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BenchError(f"{where}: quantization_config: {name}: a whole number, not {value!r}")
    return value
