"""Why an entry reaches nothing although the model has what it names."""

from __future__ import annotations

import json
import re
from collections import Counter

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.models.modules import OTHER, ModuleTable
from bench.targets.filters import Filter, ends_in

_WHOLE = "a string is a regular expression that must match the whole name"


def find_cause(
    table: ModuleTable, adapter: AdapterConfig, entry: str, field: str
) -> tuple[str, str]:
    """(why `entry` of a field is dead, what to write instead); empty where the model has nothing
    that it names."""
    if field == "target_parameters":
        return _of_a_module(table, entry)
    listed = not isinstance(adapter.target_modules, str)
    if listed and entry.lower() == ALL_LINEAR:
        return "in a list it is a module's name", f'the string "{ALL_LINEAR}"'
    if listed:
        named = [m.name for m in table.modules if ends_in(m.name, entry)]
    else:
        named = [m.name for m in table.modules if re.fullmatch(entry, m.name)]
    if named:
        return _held_back(adapter, named), ""
    if not listed:
        return _unanchored(table, entry)
    return "", ""


def _of_a_module(table: ModuleTable, entry: str) -> tuple[str, str]:
    """The matrices of the module that an entry of target_parameters names."""
    inside = [p.name.rpartition(".") for p in table.parameters if len(p.shape) in (2, 3)]
    leaves = dict.fromkeys(leaf for owner, _, leaf in inside if ends_in(owner, entry))
    if not leaves:
        return "", ""
    return "it names a module, not a parameter", ", ".join(f"{entry}.{leaf}" for leaf in leaves)


def _unanchored(table: ModuleTable, pattern: str) -> tuple[str, str]:
    """A pattern of bare names, which would fit the ends of names."""
    body = pattern.removeprefix(r"\.").removeprefix("^")
    wrapped = f"({body})" if "|" in body and not body.startswith("(") else body
    fits = re.compile(rf"(?:.*\.)?(?:{body})").fullmatch
    if not any(m.kind != OTHER and fits(m.name) for m in table.modules):
        return "", ""
    as_list = f"the list {json.dumps([pattern])}, or " if re.fullmatch(r"[\w.]+", pattern) else ""
    return _WHOLE, rf"{as_list}.*\.{wrapped}"


def _held_back(adapter: AdapterConfig, named: list[str]) -> str:
    """What keeps an adapter from each of the modules that the entry names."""
    inside = Filter(adapter)
    reasons: Counter[str] = Counter()
    for name in named:
        if inside.excluded(name):
            reasons["held out by exclude_modules"] += 1
        elif inside.guarded(name):
            whole = next(m for m, g in zip(adapter.guarded_modules, inside.guards, strict=True)
                         if g.match(name))  # fmt: skip
            where = "named by modules_to_save" if whole in adapter.modules_to_save else "its head"
            reasons[f"trained whole: in {whole}, {where}"] += 1
        elif not inside.in_layers(name):
            reasons["in a layer that layers_to_transform does not name"] += 1
    return ", ".join(f"{n} modules {reason}" for reason, n in reasons.items())
