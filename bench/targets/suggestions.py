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


def nearest(written: str, names: Iterable[str]) -> str:
    """The one of `names` that `written` is most likely a slip of; "" if none is near."""
    by_lower = {name.lower(): name for name in names}
    found = get_close_matches(written.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else ""


def _nearest_leaf(table: ModuleTable, entry: str) -> str:
    leaves = Counter(m.leaf for m in table.modules)
    usable = {m.leaf for m in table.modules if m.kind != OTHER}
    leaf = nearest(entry.rpartition(".")[2], usable)
    return f"{leaf} ({leaves[leaf]} modules)" if leaf else ""


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
            exact = _exact(names, every, 1)
            for ending, n in exact.items():
                yield f"{ending} ({work}, {n} modules)"
            if not exact:
                reached = sum(ends_in(name, leaf) for name in every)
                yield f"{leaf} ({work} in {len(names)} of the {reached} modules that it reaches)"


def _parameters(table: ModuleTable, roles: Iterable[str], role: RoleOf) -> Iterator[str]:
    every = [p.name for p in table.parameters]
    for wanted in roles:
        names = [p.name for p in table.expert_parameters if serves(role(p.name), wanted)]
        for ending, n in _exact(names, every, 3).items():
            yield f'target_parameters=["{ending}"] ({n} layers)'


def _exact(names: list[str], every: list[str], least: int) -> dict[str, int]:
    """The shortest endings, of `least` segments or more, that reach all of `names` and no other of
    `every`, each with how many it reaches; empty where only layer numbers tell them apart."""
    for size in range(least, 7):
        endings = Counter(_ending(name, size) for name in names)
        if all(sum(ends_in(name, e) for name in every) == n for e, n in endings.items()):
            return dict(endings)
    return {}


def _ending(name: str, size: int) -> str:
    """The last `size` segments of a name, without a layer's number and what stands before it."""
    segments = name.split(".")[-size:]
    numbers = [at for at, segment in enumerate(segments[:-1]) if segment.isdigit()]
    return ".".join(segments[numbers[-1] + 1 if numbers else 0 :])
