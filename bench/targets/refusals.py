"""What PEFT refuses to adapt: a kind of layer, a variant or an initialisation that a layer lacks;
and what to write instead.

Source: peft 0.21 `tuners/lora/layer.py` and `tuners/lora/variants.py`; the suites hold every
answer against a real injection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from bench.adapters.config import ALL_LINEAR, AdapterConfig
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
from bench.models.roles import role_of
from bench.targets.ledger import Adapted, Ledger
from bench.targets.suggestions import endings_of, without

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

_DEFAULT_ROLES = ("query", "value", "query_key_value")


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
        elif item.owner in modules and item.owner not in later:
            reasons = iter([_TWICE.format(item.owner)])
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


def around(name: str) -> Iterator[str]:
    """The modules that hold the module called `name`, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


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


def ways_out(ledger: Ledger) -> tuple[str, ...]:
    """What to write where PEFT refuses the kind of module that entries reach, beginning with the
    entries at fault."""
    table = ledger.table
    found: list[str] = []
    if any("refuses out_proj and conv1d" in reason for reason in ledger.refusals):
        found += _without_leaves(ledger, ("out_proj", "conv1d"))
    if not ledger.entries:
        found.append(_without_a_default(table))
    faults: dict[str, list[str]] = {}
    for entry in ledger.entries:
        if entry.field == "target_modules":
            others = [n for n in entry.reached if n in table.by_name
                      and table.by_name[n].kind == OTHER]  # fmt: skip
            if others:
                faults[entry.entry] = others
    if not faults:
        return tuple(found)
    if isinstance(ledger.adapter.target_modules, str):
        return (*found, _narrowed(ledger))
    inner = {e: _inner(table, others) for e, others in faults.items()}
    wrapped = [e for e in faults if inner[e]]
    for rest in dict.fromkeys(inner[e] for e in wrapped):
        alike = [e for e in wrapped if inner[e] == rest]
        found += _around_wrappers(ledger, alike, faults, rest)
    whole = [e for e in faults if e not in wrapped]
    inside = [name for e in whole for name in _inside(table, faults[e])]
    if len(whole) == len(ledger.entries) and inside:
        apart = [endings_of(_inside(table, faults[e]), table.by_name) for e in whole]
        if not all(apart):
            return (*found, _as_pattern(table, whole, inside))
    found += [_whole_modules(ledger, e, faults[e]) for e in whole]
    return tuple(found)


def _without_a_default(table: ModuleTable) -> str:
    """What PEFT's defaults are on other models, in this one's names."""
    every = [m.name for m in table.modules]
    asked = [m.name for m in table.modules if m.kind != OTHER and role_of(m.name) in _DEFAULT_ROLES]
    names = json.dumps([*endings_of(asked, every)] if asked else ALL_LINEAR)
    return f"target_modules={names}" if asked else f"target_modules={names}, every linear layer"


def _without_leaves(ledger: Ledger, leaves: tuple[str, ...]) -> Iterator[str]:
    reached = {item.name.rpartition(".")[2] for item in ledger.adapted if item.module}
    there = [leaf for leaf in leaves if leaf in reached]
    if there and isinstance(ledger.adapter.target_modules, str):
        held, either = ledger.adapter.exclude_modules, "|".join(there)
        whole = rf"({held})|.*[.]({either})" if isinstance(held, str) else [*(held or ()), *there]
        yield f"exclude_modules={json.dumps(whole)}"
    elif there:
        yield f"leave out {', '.join(there)}"
    for entry in ledger.entries:  # an exclusion holds no parameter out
        owners = {name.rpartition(".")[0].rpartition(".")[2] for name in entry.reached}
        if entry.field == "target_parameters" and owners & {*leaves}:
            yield f"leave {entry.entry} out of target_parameters"


def _narrowed(ledger: Ledger) -> str:
    """The pattern, held to the linear layers among what it reaches."""
    pattern = str(ledger.adapter.target_modules)
    by_name = ledger.table.by_name
    good = [n for e in ledger.entries for n in e.reached
            if n in by_name and by_name[n].kind != OTHER]  # fmt: skip
    if len(good) == sum(m.kind != OTHER for m in ledger.table.modules):
        return f'{pattern} reaches whole modules too: write the string "{ALL_LINEAR}"'
    if not good:
        return f"{pattern} reaches modules without a weight of their own alone"
    # A projection and a module around others may share a name; their endings tell them apart.
    told = endings_of(good, [n for e in ledger.entries for n in e.reached])
    ends = "|".join(map(re.escape, told or dict.fromkeys(n.rpartition(".")[2] for n in good)))
    return rf"{pattern} reaches whole modules too: write (?=(.*\.)?({ends})$){pattern}"


def _inner(table: ModuleTable, containers: list[str]) -> str:
    """The one projection that each of these modules wraps, by its name in them; "" if there is no
    such."""
    rests: set[str] = set()
    for name in containers:
        inside = [m.name for m in table.modules
                  if m.name.startswith(f"{name}.") and m.kind != OTHER]  # fmt: skip
        if len(inside) != 1:
            return ""
        rests.add(inside[0].removeprefix(f"{name}."))
    return rests.pop() if len(rests) == 1 else ""


def _around_wrappers(
    ledger: Ledger, entries: list[str], faults: dict[str, list[str]], rest: str
) -> Iterator[str]:
    """Entries that name a module which wraps the projection: leave its tower out, or reach in."""
    table = ledger.table
    wrappers = [name for e in entries for name in faults[e]]
    kind = table.by_name[wrappers[0]].class_name
    stacks = list(dict.fromkeys(table.stack_of(name) for name in wrappers))
    names = "|".join(dict.fromkeys(e.rpartition(".")[2] for e in entries))
    some = "1 is" if len(wrappers) == 1 else f"{len(wrappers)} are"
    at_fault = f"{', '.join(entries)}: {some} a {kind}, which holds its projection in "
    at_fault += f"{wrappers[0].rpartition('.')[2]}.{rest}"
    named = {n for others in faults.values() for n in others}
    outside = [n for e in ledger.entries for n in e.reached if n not in named]
    if outside and not any(table.stack_of(n) in table.main_stacks for n in wrappers):
        held_out = json.dumps(without(ledger, stacks))
        yield f"{at_fault}; to leave {' and '.join(s.label for s in stacks)} out: " \
              f"exclude_modules={held_out}"  # fmt: skip
        towers = "|".join(re.escape(s.prefix) for s in stacks)
        plain = "|".join(dict.fromkeys(n.rpartition(".")[2] for n in outside))
        mains = "|".join(re.escape(s.prefix) for s in table.main_stacks if s.layers)
        both = rf"({mains})\..*\.({plain})|({towers})\..*\.({names})\.{re.escape(rest)}"
        yield f"to adapt both: target_modules={json.dumps(both)}"
    else:
        yield f"{at_fault}; write {', '.join(f'{e}.{rest}' for e in entries)}"


def _whole_modules(ledger: Ledger, entry: str, others: list[str]) -> str:
    """An entry that names modules which hold no weight of their own, beside projections or not."""
    table = ledger.table
    classes = ", ".join(dict.fromkeys(table.by_name[n].class_name for n in others))
    reached = next(e for e in ledger.entries if e.entry == entry).reached
    good = [n for n in reached if n not in others]
    at_fault = f"{entry}: it also names {others[0]}" if good else f"{entry}: it names {others[0]}"
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    every = [m.name for m in table.modules]
    if good:
        written = endings_of(good, every, least=3 if entry.isdigit() else 1)
    else:
        written = endings_of(_inside(table, others), every)
    way = f"write {', '.join(written)}" if written else "leave it out"
    if experts := _experts_in(table, others):
        way = f"{way}; {experts}"
    return f"{at_fault}{more} ({classes}); {way}"


def _inside(table: ModuleTable, containers: Iterable[str]) -> list[str]:
    """The projections within modules."""
    held = tuple(f"{name}." for name in containers)
    return [m.name for m in table.modules if m.kind in (LINEAR, CONV1D) and m.name.startswith(held)]


def _as_pattern(table: ModuleTable, entries: list[str], inside: list[str]) -> str:
    """For entries that name whole layers, or a whole tower, and are all that is written."""
    within = re.compile(rf"(.*\.)?({'|'.join(map(re.escape, entries))})\..*")
    beside = {m.leaf for m in table.modules if within.fullmatch(m.name) and m.name not in inside}
    # A patch embedding's `proj` is no projection: what shares its name is told by two words.
    ends = [name.rsplit(".", 1 + (name.rpartition(".")[2] in beside)) for name in inside]
    leaves = "|".join(dict.fromkeys(re.escape(".".join(end[1:])) for end in ends))
    pattern = rf"{within.pattern.removesuffix('.*')}(.*\.)?({leaves})"
    return f"{', '.join(entries)}: whole modules; write the string {json.dumps(pattern)}"


def _experts_in(table: ModuleTable, containers: list[str]) -> str:
    held = tuple(f"{name}." for name in containers)
    names = [p.name for p in table.expert_parameters if p.name.startswith(held)]
    written = endings_of(names, [p.name for p in table.parameters], 3) if names else {}
    return f"for its experts target_parameters={json.dumps([*written])}" if written else ""
