"""What PEFT really does: injects an adapter into a real model and counts what came of it.

Never imports the formulas, and the formulas never import this: their agreement is evidence.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.adapters.config import AdapterConfig
from bench.adapters.patterns import check_patterns
from bench.compat import unreset
from bench.errors import BenchError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
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


@dataclass(frozen=True)
class Totals:
    """Three ways to count a model's parameters, which differ on quantized and on tied models.

    Attributes:
        logical: elements under every name; a 4-bit weight unpacked, a shared one at each name.
        packed: elements as stored, `numel()` of each tensor once; a 4-bit weight is half as many.
        unique: logical elements, each tensor once: what PEFT and the formulas call the total.
    """

    logical: int
    packed: int
    unique: int


def totals(model: nn.Module) -> Totals:
    """The three totals of a live model, quantized by bitsandbytes or not."""
    logical = packed = unique = 0
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        elements = parameter.numel()
        if getattr(parameter, "bnb_quantized", False) and elements:
            layer: Any = model.get_submodule(name.rpartition(".")[0])
            elements = layer.in_features * layer.out_features
        logical += elements
        if id(parameter) not in seen:
            seen.add(id(parameter))
            packed, unique = packed + parameter.numel(), unique + elements
    return Totals(logical, packed, unique)


def inject(model: nn.Module, adapter: AdapterConfig) -> PeftModel:
    """`peft.get_peft_model` on the live model, which is changed in place.

    Raises BenchError with PEFT's own words where PEFT refuses the configuration.
    """
    from peft import LoraConfig

    check_patterns(adapter.expressions(), (name for name, _ in model.named_modules()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = LoraConfig(**adapter.to_dict())
        except (ValueError, TypeError) as error:
            raise BenchError(f"PEFT refuses the configuration: {error}") from error
    if adapter.layer_replication:
        _own_config(model)
    made = _get_peft_model(model, config)
    if adapter.monteclora_config is not None:
        _make_samplers(made)
    return made


def _make_samplers(peft_model: PeftModel) -> None:
    """Give layers on meta the parameters of MonteCLoRA, which PEFT makes at their first pass, with
    a buffer of one sample in the place of 150.

    Source: peft 0.21 `tuners/lora/variants.py` (`MontecloraLinearVariant`).
    """
    from peft.tuners.lora.monteclora import MontecloraSampler

    ((adapter, config),) = peft_model.peft_config.items()
    asked = config.monteclora_config
    for layer in peft_model.modules():
        held: Any = layer
        samplers = getattr(held, "lora_monteclora_sampler", None)
        if samplers is not None and adapter not in samplers:
            samplers[adapter] = MontecloraSampler(
                held.in_features, held.lora_A[adapter].out_features, asked.num_samples,
                buffer_size=1, device="cpu",
            )  # fmt: skip


def inject_instead(peft_model: PeftModel, adapter: AdapterConfig) -> None:
    """Give the injected adapter the rank of `adapter`, which differs from it in nothing else: every
    layer makes its matrices anew, as PEFT does where an adapter of that name is injected again.
    This costs a quarter of an injection. Ranks of single layers (`rank_pattern`), tied adapters and
    MonteCLoRA's samplers have to be injected."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    (name,) = peft_model.peft_config
    config = LoraConfig(**adapter.to_dict())
    with _quietly_on(peft_model):
        for path, module in peft_model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                module.update_layer(
                    name, adapter.r, lora_alpha=adapter.lora_alpha, config=config, target_name=path
                )
    peft_model.peft_config[name] = config


def _own_config(model: nn.Module) -> None:
    # PEFT writes the new number of layers into the configuration, which other models may share.
    shared = getattr(model, "config", None)
    own = copy.deepcopy(shared)
    for module in model.modules():
        if shared is not None and getattr(module, "config", None) is shared:
            module.config = own


def _get_peft_model(model: nn.Module, config: PeftConfig) -> PeftModel:
    from peft import get_peft_model

    with _quietly_on(model):
        try:
            return get_peft_model(model, config)
        except (ValueError, TypeError, KeyError, AttributeError, LookupError, RuntimeError,
                NotImplementedError, re.error) as error:  # fmt: skip
            raise BenchError(f"PEFT refuses the configuration: {error}") from error


@contextmanager
def _quietly_on(model: nn.Module) -> Iterator[None]:
    """While active, adapters are made where the model is, and on meta cost nothing: no memory, and
    nothing is drawn for them. (PEFT's own low_cpu_mem_usage would replace every shared weight by a
    new one.) PEFT's warnings are left out: the ledger says these things, with names."""
    import peft  # noqa: F401  # nothing of it is to be imported meanwhile: see `unreset`
    import torch

    from bench.training.loading import undrawn

    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        if _on_meta(model):
            stack.enter_context(torch.device("meta"))
            stack.enter_context(unreset())
            stack.enter_context(undrawn())
        yield


def count_method(model: nn.Module, peft_class: str, fields: Mapping[str, Any]) -> Count:
    """The count of another method: `peft_class` names PEFT's configuration class.

    The live model is changed in place. Raises BenchError with PEFT's own words where it refuses.
    """
    import peft

    config = getattr(peft, peft_class)(**fields)
    trainable, total = _get_peft_model(model, config).get_nb_trainable_parameters()
    return Count((), (), trainable, total)


def count_lora_fa(model: nn.Module, fields: Mapping[str, Any]) -> Count:
    """The count of LoRA-FA: LoRA, of which PEFT's optimizer freezes every A."""
    from peft import LoraConfig
    from peft.optimizers import create_lorafa_optimizer

    peft_model = _get_peft_model(model, LoraConfig(**fields))
    create_lorafa_optimizer(peft_model, r=8, lora_alpha=8, lr=1e-3)
    return Count((), (), *peft_model.get_nb_trainable_parameters())


def count(peft_model: PeftModel) -> Count:
    """What the injected model holds, read off its own wrappers."""
    from peft.tuners.lora import LoraLayer, ParamWrapper
    from peft.utils import ModulesToSaveWrapper

    adapted: list[str] = []
    saved: list[str] = []
    for path, module in peft_model.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            at = re.sub(r"(^|\.)(modules_to_save\.default|original_module)(?=\.|$)", "", path)
            saved.append(re.sub(r"\.base_layer(?=\.)", "", at).removeprefix("."))
            continue
        if not isinstance(module, LoraLayer):
            continue
        if ".modules_to_save." in f".{path}" or ".base_layer.out_proj" in path:
            continue  # the trained copy; MultiheadAttention's second adapter
        # Two parameters of one module are wrapped inside each other.
        name = re.sub(r"(^|\.)(base_layer|original_module)(?=\.|$)", "", path).removeprefix(".")
        if isinstance(module, ParamWrapper):
            adapted.append(f"{name}.{module.parameter_name}")
        else:
            adapted.append(name)
    trainable, total = peft_model.get_nb_trainable_parameters()
    # A module inside a saved one is saved once in the copy, and with a task head in the original.
    return Count(tuple(adapted), tuple(filter(None, dict.fromkeys(saved))), trainable, total)


def _on_meta(model: nn.Module) -> bool:
    return all(p.is_meta for p in model.parameters())
