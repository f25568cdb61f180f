"""The precisions a base model is loaded in: what its linear weights are stored and computed as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bench.errors import lookup


@dataclass(frozen=True)
class Precision:
    """How a base model's linear weights are held.

    `bits` counts the stored weight alone; block scales come on top (`quantization state`).
    `compute` names the torch dtype of everything that is not quantized (norms, embeddings, heads,
    activations) and that quantized weights are expanded to. Adapters are float32 in every
    precision: PEFT casts half-precision adapters up (`autocast_adapter_dtype`).
    """

    name: str
    bits: int
    compute: str
    description: str
    quantized: bool = False
    quant_type: str | None = None
    """bitsandbytes' name of the 4-bit code, "nf4" or "fp4"; None for the others."""
    double_quant: bool = False
    stored: bool = False
    """Whether it is the format of a checkpoint, which its config.json describes."""


# int8 and 4-bit compute in bfloat16, as QLoRA does: no loss scaling, and the same dtype for all
# quantized precisions, so that they differ in the weights alone.
_ALL = (
    Precision("fp32", 32, "float32", "32-bit floating point"),
    Precision("bf16", 16, "bfloat16", "bfloat16 weights and activations"),
    Precision("fp16", 16, "float16", "float16 weights and activations, with loss scaling"),
    Precision("int8", 8, "bfloat16", "bitsandbytes LLM.int8, threshold 6", quantized=True),
    *(
        Precision(
            name=quant_type + ("-dq" if double_quant else ""),
            bits=4,
            compute="bfloat16",
            description=f"bitsandbytes 4-bit {quant_type}, blocks of 64"
            + (", double quantization" if double_quant else ""),
            quantized=True,
            quant_type=quant_type,
            double_quant=double_quant,
        )
        for double_quant in (False, True)
        for quant_type in ("nf4", "fp4")
    ),
)

PRECISIONS: Mapping[str, Precision] = MappingProxyType({each.name: each for each in _ALL})
STORED: Mapping[str, Precision] = MappingProxyType(
    {
        name: Precision(name, 4, "float16", f"as a {name} checkpoint stores it", stored=True)
        for name in ("awq", "gptq", "hqq", "compressed-tensors")
    }
)
"""The formats of checkpoints that are quantized already: a model's config.json says so."""


def precision(name: str) -> Precision:
    """The precision called `name`; raises UnknownName with the nearest known names."""
    if name in STORED:
        return STORED[name]
    return lookup("precision", name, PRECISIONS)
