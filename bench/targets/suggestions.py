"""What to write instead of an entry that the model has nothing for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from bench.models.modules import OTHER, ModuleTable
from bench.models.roles import FUSED, UNKNOWN, role_of, serves
from bench.targets.experts import new_name
from bench.targets.filters import ends_in
from bench.targets.ledger import RoleOf
from bench.targets.names import endings_of

_NEAR = 0.8


def suggest(table: ModuleTable, entry: str, role: RoleOf = role_of) -> str:
    """What to write instead of a dead entry: the modules here that do its work, whole or in parts;
    for a name that tells no work the nearest one. "" if there is none."""
    wanted = role_of(entry)
    if wanted == UNKNOWN:
        return _nearest_leaf(table, entry)
    for roles in ((wanted,), FUSED.get(wanted, ())):
        if offers := [*_modules(table, roles, role)] or [*_parameters(table, roles, role)]:
            return ", ".join(dict.fromkeys(offers))
    return ""


def suggest_parameters(table: ModuleTable, entry: str) -> str:
    """What to write instead of a dead entry of target_parameters: parameters that do its work, the
    nearest, or the modules that target_modules reaches; "" if there is none."""
    wanted = role_of(entry)
    if wanted != UNKNOWN:
        offers = [*_parameters(table, (wanted, *FUSED.get(wanted, ())), role_of)]
        if not offers and (modules := [*_modules(table, (wanted,), role_of)]):
            return f"in target_modules: {', '.join(dict.fromkeys(modules))}"
        if offers:
            return ", ".join(dict.fromkeys(offers))
    return _nearest_parameter(table, entry)


def nearest(written: str, names: Iterable[str]) -> str:
    """The one of `names` that `written` is most likely a slip of; "" if none is near."""
    by_lower = {name.lower(): name for name in names}
    found = get_close_matches(written.lower(), by_lower, n=1, cutoff=_NEAR)
    return by_lower[found[0]] if found else ""


def _nearest_leaf(table: ModuleTable, entry: str) -> str:
    """The nearest module by name, or the nearest experts' weight where that is nearer."""
    leaves = Counter(m.leaf for m in table.modules)
    usable = {m.leaf for m in table.modules if m.kind != OTHER}
    bare = {p.name.rpartition(".")[2] for p in table.expert_parameters}
    leaf = nearest(entry.rpartition(".")[2], usable | bare)
    if leaf in usable:
        return f"{leaf} ({leaves[leaf]} modules)"
    return _nearest_parameter(table, entry) if leaf else ""


def _nearest_parameter(table: ModuleTable, entry: str) -> str:
    every = [p.name for p in table.parameters]
    names: dict[str, list[str]] = {}
    for p in table.expert_parameters:
        names.setdefault(p.name.rpartition(".")[2], []).append(p.name)
    leaf = nearest(entry.rpartition(".")[2], names)
    found = endings_of(names[leaf], every, 3) if leaf else {}
    return ", ".join(_as_parameter(ending, n) for ending, n in found.items())


def _as_parameter(ending: str, layers: int) -> str:
    return f'target_parameters=["{ending}"] ({layers} layers)'


def _modules(table: ModuleTable, roles: Iterable[str], role: RoleOf) -> Iterator[str]:
    every = [m.name for m in table.modules]
    for wanted in roles:
        groups: dict[tuple[str, str], list[str]] = {}
        for m in table.modules:
            if m.kind != OTHER and serves(role(m.name), wanted):
                groups.setdefault((m.leaf, role(m.name)), []).append(m.name)
        for (leaf, does), names in groups.items():
            work = does.replace("_", "-")
            if new_name(table, leaf):
                continue  # PEFT would take it for the experts' old name
            exact = endings_of(names, every)
            for ending, n in exact.items():
                yield f"{ending} ({work}, {n} modules)"
            if not exact:
                reached = sum(ends_in(name, leaf) for name in every)
                yield f"{leaf} ({work} in {len(names)} of the {reached} modules that it reaches)"


def _parameters(table: ModuleTable, roles: Iterable[str], role: RoleOf) -> Iterator[str]:
    every = [p.name for p in table.parameters]
    for wanted in roles:
        names = [p.name for p in table.expert_parameters if serves(role(p.name), wanted)]
        for ending, n in endings_of(names, every, 3).items():
            yield _as_parameter(ending, n)
