"""bitsandbytes layers where `from_pretrained` puts them, on a model without weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.compat import private
from bench.errors import BenchError
from bench.models.precision import Precision

if TYPE_CHECKING:
    from torch import nn


ADAPTABLE = frozenset({"gptq", "awq", "aqlm", "eetq", "hqq", "torchao", "intel/inc"})
"""Quantization methods beside bitsandbytes' that PEFT 0.21 has layers for (`tuners/lora`)."""


def quiet_bitsandbytes() -> None:
    """Silence notices that are expected here, before it is imported: the offer of optional CPU
    kernels, and the report of each cast of int8 inputs."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)


def bitsandbytes_config(
    kind: Precision,
    skipped: Sequence[str] | None = None,
    compute: str | None = None,
    storage: str | None = None,
) -> Any:
    """The `BitsAndBytesConfig` of a quantized precision; `skipped` modules stay as they are, and
    4-bit weights expand to `compute` in the place of the precision's own dtype, and are packed into
    elements of `storage` in the place of bytes.

    With None, transformers chooses: it keeps the output embedding and the last parameter's module.
    """
    import torch
    from transformers import BitsAndBytesConfig

    # llm_int8_skip_modules holds for 4-bit too, whatever its name.
    skip = None if skipped is None else list(skipped)
    if kind.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skip,
        bnb_4bit_quant_type=kind.quant_type,
        bnb_4bit_use_double_quant=kind.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, compute or kind.compute),
        bnb_4bit_quant_storage=getattr(torch, storage or "uint8"),
    )


def given_config(settings: object, where: str) -> Any:
    """The `BitsAndBytesConfig` in a config.json's `quantization_config`; None for other methods.

    Raises BenchError where transformers refuses it.
    """
    if not isinstance(settings, Mapping):
        return None
    if settings.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return None
    if not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return None
    from transformers import BitsAndBytesConfig

    try:
        return BitsAndBytesConfig.from_dict(dict(settings))
    except (TypeError, ValueError, AttributeError) as error:
        raise BenchError(f"{where}: quantization_config: {error}") from None


def quantization_notes(settings: object) -> tuple[str, ...]:
    """What is not covered of a config.json's `quantization_config`: methods other than
    bitsandbytes' are counted on the unquantized model."""
    if not isinstance(settings, Mapping) or not settings:
        return ()
    loads = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    given = settings.get("quant_method") or ("bitsandbytes" if loads else "an unnamed method")
    method = str(getattr(given, "value", given))
    if method == "bitsandbytes":
        return ()
    note = (
        f"config.json says that the weights are quantized ({method}); names and parameters here "
        "are those of the unquantized model"
    )
    if method not in ADAPTABLE:
        note += f", and PEFT has no layer of its own for {method}"
    if method == "mxfp4":
        note += (
            ": it holds experts as packed blocks, which target_parameters cannot reach unless they "
            "are dequantized"
        )
    return (note,)


def quantize_on_meta(model: nn.Module, config: Any) -> None:
    """Replace linear layers by bitsandbytes' and quantize them: every shape, no memory."""
    import torch
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    swap_linear_layers(model, config)
    with without_cached_tables():
        # Double quantization computes this table from numbers, which the meta device has none of.
        with torch.device("cpu"):
            functional.name2qmap["dynamic"] = functional.create_dynamic_map().to("meta")
        for module in model.modules():
            if isinstance(module, Linear4bit | Linear8bitLt):
                module.weight = module.weight._quantize(torch.device("meta"))


@contextlib.contextmanager
def without_cached_tables() -> Iterator[None]:
    """Set aside the small tables that bitsandbytes keeps for the process: while this is active it
    makes its own, as in a fresh process, and none on meta is left where a real quantization would
    find it."""
    bounds = private("4-bit bounds")
    tables: list[dict[Any, Any]] = [private("codes by name"), private("4-bit codes")]
    before = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    bounds.cache_clear()
    try:
        yield
    finally:
        for table, values in zip(tables, before, strict=True):
            table.clear()
            table.update(values)
        bounds.cache_clear()


def swap_linear_layers(model: nn.Module, config: Any) -> None:
    """Replace linear layers by bitsandbytes' on the meta device, as transformers would.

    PEFT chooses its quantized layers by the attributes that are set here.
    """
    quiet_bitsandbytes()
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationMethod

    private("kept in float32")
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, config.llm_int8_skip_modules, model._keep_in_fp32_modules
    )
    replace_with_bnb_linear(model, skipped, config)
    for name, value in {
        "is_loaded_in_8bit": config.load_in_8bit,
        "is_loaded_in_4bit": config.load_in_4bit,
        "is_quantized": True,
        "quantization_method": QuantizationMethod.BITS_AND_BYTES,
    }.items():
        setattr(model, name, value)
    mark_quantized(model)


def mark_quantized(model: nn.Module) -> None:
    """Say in every part's configuration that it is quantized, as transformers does: Jamba and
    FalconMamba call a layer then of which they take the weight otherwise."""
    from transformers import PreTrainedModel

    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config._is_quantized = True
