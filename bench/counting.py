"""What PEFT really does: injects an adapter into a real model and counts what came of it.

Never imports the formulas, and the formulas never import this: their agreement is evidence.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.adapters import AdapterConfig
from bench.errors import BenchError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


@dataclass(frozen=True)
class Count:
    """What is in an injected model.

    Attributes:
        adapted: full names, in the base model, of the modules and parameters with an adapter.
        saved: full names of the modules with a trained copy.
        trainable, total: as `PeftModel.get_nb_trainable_parameters` gives them.
    """

    adapted: tuple[str, ...]
    saved: tuple[str, ...]
    trainable: int
    total: int


def inject(model: nn.Module, adapter: AdapterConfig) -> PeftModel:
    """`peft.get_peft_model` on the live model, which is changed in place.

    Raises BenchError with PEFT's own words where PEFT refuses the configuration.
    """
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the ledger says these things, with names
        try:
            # Adapter weights are created where the model is: on meta they cost nothing.
            return get_peft_model(
                model, LoraConfig(**adapter.to_dict()), low_cpu_mem_usage=_on_meta(model)
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BenchError(f"PEFT refuses the configuration: {error}") from error


def count(peft_model: PeftModel) -> Count:
    """What the injected model holds, read off its own wrappers."""
    from peft.tuners.lora import LoraLayer, ParamWrapper
    from peft.utils import ModulesToSaveWrapper

    adapted: list[str] = []
    saved: list[str] = []
    for name, module in peft_model.get_base_model().named_modules():
        if any(name.startswith(f"{wrapper}.") for wrapper in saved):
            continue
        if isinstance(module, ParamWrapper):
            # Two parameters of one module are wrapped inside each other.
            owner = name.replace(".base_layer", "")
            adapted.append(f"{owner}.{module.parameter_name}")
        elif isinstance(module, LoraLayer):
            adapted.append(name)
        elif isinstance(module, ModulesToSaveWrapper):
            saved.append(name)
            if isinstance(module.original_module, LoraLayer):
                adapted.append(name)
    trainable, total = peft_model.get_nb_trainable_parameters()
    return Count(tuple(adapted), tuple(saved), trainable, total)


def _on_meta(model: nn.Module) -> bool:
    return all(p.is_meta for p in model.parameters())
