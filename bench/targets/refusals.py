"""What PEFT refuses to adapt: a kind of layer, a variant or an initialisation that a layer lacks.

Source: peft 0.21 `tuners/lora/layer.py` and `tuners/lora/variants.py`; the suites hold every
answer against a real injection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
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
from bench.targets.ledger import Adapted
from bench.targets.tying import token_layers

_MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_ANY_LINEAR = (LINEAR, CONV1D)
_FROM_THE_WEIGHT = ("olora", "pissa", "orthogonal", "lora_ga")
_TWICE = (
    "{} is adapted through target_modules already; with target_modules=[] PEFT adapts parameters "
    "only"
)
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
    owners = {owner_of(item) for item in adapted} if len(modules) < len(adapted) else set()
    transposed = len(modules) < len(adapted) and _weights_lie_transposed(adapter, modules)
    for item in adapted:
        if plain and item.module is not None and item.module.kind in _ANY_LINEAR:
            continue  # nothing here concerns it: the common case, kept fast
        if item.module is not None:
            reasons = _module(adapter, item)
        elif owner_of(item) in modules and owner_of(item) not in later:
            reasons = iter([_TWICE.format(owner_of(item))])
        elif inside := next((o for o in around(owner_of(item)) if o in owners), ""):
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


def around(name: str) -> Iterator[str]:
    """The modules that hold the module called `name`, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def owner_of(item: Adapted) -> str:
    """The module that PEFT wraps: the adapted one, or the one that holds the parameter."""
    return item.name if item.module is not None else item.name.rpartition(".")[0]


def _module(adapter: AdapterConfig, item: Adapted) -> Iterator[str]:
    module = item.module
    assert module is not None
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
    on_a, on_b = block_diagonal(adapter, module.name)
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


def block_diagonal(adapter: AdapterConfig, name: str) -> tuple[bool, bool]:
    """Whether BD-LoRA makes A, and B, of the module called `name` block-diagonal."""
    config = adapter.use_bdlora or {}
    on_a, on_b = (
        any(pattern in name for pattern in config.get(f"target_modules_bd_{side}") or ())
        for side in "ab"
    )
    return on_a, on_b


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


def quantized_copies(table: ModuleTable, saved: tuple[str, ...]) -> list[str]:
    """The quantized layers in what is to be trained whole: their integer weights cannot train."""
    inside = tuple(f"{name}." for name in saved)
    return (
        [m.name for m in table.modules if m.quantized and f"{m.name}.".startswith(inside)]
        if saved
        else []
    )


def token_refusals(table: ModuleTable, adapter: AdapterConfig, adapted: set[str]) -> list[str]:
    """The reasons for which PEFT refuses `trainable_token_indices` beside the adapted modules."""
    try:
        layers = token_layers(table, adapter)
    except BenchError as error:
        return [str(error)]
    # One that only follows the embedding may be adapted, unless the configuration names it.
    given = adapter.trainable_token_indices
    named = tuple(given) if isinstance(given, Mapping) else ()
    both = [
        x.name for x in layers if x.name in adapted and (not x.follows or x.name.endswith(named))
    ]
    both += [name for name in sorted(adapted) if named and name.endswith(named)][: not both]
    return [f"{name} is adapted and has trainable tokens: PEFT takes one of them" for name in both]
