"""Fewer layers where all are alike: what a step does to one of the middle it does to each."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.adapters.config import AdapterConfig
    from bench.models.architectures import Model
    from bench.models.modules import ModuleTable

LAYERS = 4
"""The first, two of the middle that have to agree, and the last."""
_LEAST = 8
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NUMBERED = re.compile(r"^(.*?\.)(\d+)(\..*)$")

Kind = frozenset[tuple[Any, ...]]


def shallower(model: Model, adapter: AdapterConfig) -> Model | None:
    """The model with LAYERS layers, where it has one stack of many that are all alike, and the
    configuration names no layer; else None."""
    depths = [key for key in _DEPTHS if isinstance(model.config.get(key), int)]
    table = model.table
    if len(depths) != 1 or len(table.stacks) != 1 or names_layers(adapter):
        return None
    depth = model.config[depths[0]]
    kinds, outside = _layers(table)
    if depth < _LEAST or len(kinds) != depth or len(set(kinds.values())) != 1:
        return None
    config = {
        key: value[:LAYERS] if isinstance(value, list) and len(value) == depth else value
        for key, value in model.config.items()
    }
    shallow = replace(model, config={**config, depths[0]: LAYERS})
    try:
        fewer, around = _layers(shallow.table)
    except BenchError:
        return None
    alike = len(fewer) == LAYERS and {*fewer.values()} == {*kinds.values()} and around == outside
    return shallow if alike else None


def deeper_names(names: tuple[str, ...], model: Model) -> list[str] | None:
    """Module names of the shallow model as those of the deep one: the first and last layer by
    themselves, the middle ones as the two that were there. None where these two differ."""
    by_layer: dict[int, list[tuple[str, str]]] = defaultdict(list)
    found = []
    for name in names:
        if numbered := _NUMBERED.match(name):
            by_layer[int(numbered[2])].append((numbered[1], numbered[3]))
        else:
            found.append(name)
    if sorted(by_layer[1]) != sorted(by_layer[2]):
        return None
    depth = len(model.table.layers)
    for layer in range(depth):
        like = 0 if layer == 0 else LAYERS - 1 if layer == depth - 1 else 1
        found += [f"{before}{layer}{after}" for before, after in by_layer[like]]
    return found


def _layers(table: ModuleTable) -> tuple[dict[str, Kind], Kind]:
    """(number of a layer -> the modules in it by the rest of their names and their shapes, the
    modules outside)."""
    kinds: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    outside = set()
    for module in table.modules:
        what = (module.kind, module.in_features, module.out_features, module.class_name)
        if numbered := _NUMBERED.match(module.name):
            kinds[numbered[2]].add((numbered[1], numbered[3], *what))
        elif not module.name.rpartition(".")[2].isdigit():
            outside.add((module.name, *what))
    return {layer: frozenset(held) for layer, held in kinds.items()}, frozenset(outside)


def names_layers(adapter: AdapterConfig) -> bool:
    """Whether the configuration tells layers apart, by their numbers or by a pattern."""
    if adapter.layers_to_transform is not None or adapter.layer_replication:
        return True
    named = (adapter.target_modules, adapter.exclude_modules, adapter.target_parameters,
             adapter.modules_to_save, tuple(adapter.rank_pattern))  # fmt: skip
    for value in named:
        if isinstance(value, str) and re.search(r"[0-9]|\\d", value.replace(r"\.\d+\.", "")):
            return True  # a regular expression: but for `\.\d+\.` any digit may be a layer's
        if any(part.isdigit() for entry in value or () for part in entry.split(".")):
            return True
    return False
