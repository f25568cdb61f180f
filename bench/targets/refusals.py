"""What a layer refuses: the reasons for which PEFT raises on one of the adapted modules.

Source: peft 0.21 `tuners/lora/layer.py`, `tuners/lora/bnb.py` and `tuners/lora/variants.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bench.adapters.config import AdapterConfig
from bench.models.modules import (
    CONV1D,
    CONVOLUTIONS,
    EMBEDDING,
    LINEAR,
    MULTIHEAD,
    OTHER,
    Module,
    ModuleTable,
)
from bench.targets.entries import around
from bench.targets.ledger import Adapted

_MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_ANY_LINEAR = (LINEAR, CONV1D)
_FROM_THE_WEIGHT = ("olora", "pissa", "orthogonal", "lora_ga")
_IN_FLOATS = ("pissa", "mica", "corda", "orthogonal")
_ALONE = "with target_modules=[] PEFT adapts parameters only"

# Kinds that have a variant; MultiheadAttention and bare parameters have none.
_VARIANT_KINDS = {
    "use_dora": (LINEAR, CONV1D, EMBEDDING, *CONVOLUTIONS),
    "kasa_config": (LINEAR,),
    "monteclora_config": _ANY_LINEAR,
    "use_bdlora": _ANY_LINEAR,
    "velora_config": _ANY_LINEAR,
    "alora_invocation_tokens": _ANY_LINEAR,
    "mica": (LINEAR, CONV1D, EMBEDDING),
}


def layer_refusals(
    adapter: AdapterConfig, adapted: tuple[Adapted, ...], later: tuple[str, ...] = ()
) -> list[str]:
    """The reasons for which PEFT raises on one of the adapted layers, the first of each layer.

    `later` are the modules that PEFT adapts after the parameters: tied ones.
    """
    plain = not (adapter.variants or adapter.lora_bias) and adapter.init_lora_weights is True
    found = []
    modules = {item.name: item.module for item in adapted if item.module is not None}
    owners = {item.owner for item in adapted} if len(modules) < len(adapted) else set()
    transposed = len(modules) < len(adapted) and _weights_lie_transposed(adapter, modules)
    for item in adapted:
        if plain and item.module is not None and item.module.kind in _ANY_LINEAR:
            continue  # nothing here concerns it: the common case, kept fast
        if item.module is not None:
            reasons = _module(adapter, item)
        elif not item.owner:
            reasons = iter(["a parameter of the model itself, around which PEFT puts no adapter"])
        elif item.owner in modules and item.owner not in later:
            reasons = iter([f"{item.owner} is adapted through target_modules already; {_ALONE}"])
        elif inside := next((o for o in around(item.owner) if o in owners), ""):
            reasons = iter([f"lies in {inside}, which is wrapped: PEFT finds it no more"])
        else:
            reasons = _parameter(adapter, item, transposed)
        found += [f"{item.name}: {reason}" for reason in reasons][:1]
    return found


def _parameter(adapter: AdapterConfig, item: Adapted, transposed: bool) -> Iterator[str]:
    if transposed:
        yield "fan_in_fan_out (which PEFT sets for a Conv1D) does not go with target_parameters"
    given = [n for n in ("lora_dropout", "lora_bias") if getattr(adapter, n)]
    for name in (*given, *adapter.variants):
        yield f"{name} does not go with target_parameters"
    init = adapter.init_lora_weights
    if init in (True, False, "gaussian", "eva"):
        return
    # The others ask the parameter's module for its `weight`; only a router has one.
    if not str(init).startswith(_FROM_THE_WEIGHT) or not item.name.endswith(".weight"):
        yield f"init_lora_weights={init!r} does not go with target_parameters"
    elif init == "orthogonal" and item.r % 2:
        yield f"orthogonal initialisation needs an even rank, not {item.r}"


def _weights_lie_transposed(adapter: AdapterConfig, modules: Mapping[str, Module]) -> bool:
    """`fan_in_fan_out` after the modules, which PEFT adapts first: each sets it to its own need."""
    needs = [
        module.kind == CONV1D
        for module in modules.values()
        if module.kind in _ANY_LINEAR and not module.quantized
    ]
    return needs[-1] if needs else adapter.fan_in_fan_out


def _module(adapter: AdapterConfig, item: Adapted) -> Iterator[str]:
    module = item.module
    assert module is not None
    adapter = adapter.on(module.quantized)
    kind, r, init = module.kind, item.r, adapter.init_lora_weights
    if kind in CONVOLUTIONS and r % module.groups:
        yield f"rank {r} is no multiple of the convolution's {module.groups} groups"
    if kind == EMBEDDING and adapter.lora_bias:
        yield "lora_bias does not go with an embedding"
    for variant in adapter.variants:
        if kind not in _VARIANT_KINDS[variant]:
            yield f"{variant} does not go with a {module.class_name or kind}"
    if adapter.lora_bias and init not in (True, False):
        yield f"lora_bias goes with the default initialisation only, not with {init!r}"
    if isinstance(init, str) and kind in CONVOLUTIONS and init not in ("gaussian", "lora_ga"):
        yield f"init_lora_weights={init!r} does not go with a convolution"
    if module.quantized and adapter.velora_config is not None:
        yield "velora_config needs weights in floats, and this one is quantized"
    if module.quantized and str(init).startswith(_IN_FLOATS):
        yield f"init_lora_weights={init!r} needs weights in floats, and this one is quantized"
    if kind == MULTIHEAD and str(init).startswith(_FROM_THE_WEIGHT):
        yield f"init_lora_weights={init!r} reads a weight that a {module.class_name} does not have"
    if init == "orthogonal" and r % 2 and kind in (*_ANY_LINEAR, MULTIHEAD):
        yield f"orthogonal initialisation needs an even rank, not {r}"
    most = min(module.in_features, module.out_features)
    if init == "mica" and r > most:
        yield f"MiCA takes at most rank {most}, not {r}"
    if adapter.kasa_config is not None and r >= most:
        yield f"KaSA takes at most rank {most - 1}, not {r}"
    square = module.in_features == module.out_features
    if init == "olora" and adapter.use_dora and kind == CONV1D and not square:
        yield f"DoRA after OLoRA does not go with a {module.class_name} that is not square"
    if adapter.use_bdlora is not None and kind in _ANY_LINEAR:
        yield from _blocks(adapter, module, r)


def _blocks(adapter: AdapterConfig, module: Module, r: int) -> Iterator[str]:
    on_a, on_b = adapter.block_diagonal(module.name)
    config = adapter.use_bdlora or {}
    blocks = config.get("nblocks", 1)
    if on_a and on_b:
        yield "matches both block-diagonal lists"
    elif not (on_a or on_b):
        if config.get("match_strict", True):
            yield "matches neither block-diagonal list, and match_strict is on"
    elif module.kind == CONV1D:
        yield f"block-diagonal matrices do not go with a {module.class_name}"
    elif r % blocks or (module.in_features if on_a else module.out_features) % blocks:
        yield f"its features and rank {r} do not divide into {blocks} blocks"


def unsupported(table: ModuleTable, modules: list[Module], owners: Iterable[str] = ()) -> list[str]:
    """The reason for which PEFT raises on a kind of module, or on Mamba's fused ones; the first.

    `owners` are the modules that hold an adapted parameter.
    """
    refusals = [
        f"{m.name} is a {m.class_name}, which LoRA cannot adapt" for m in modules if m.kind == OTHER
    ]
    if table.model_type in _MAMBA:
        refusals += [
            f"{name}: PEFT refuses out_proj and conv1d on {table.model_type}"
            for name in (*(m.name for m in modules), *owners)
            if name.rpartition(".")[2] in ("out_proj", "conv1d")
        ]
    return refusals[:1]
