"""What to write instead of an entry that reaches nothing, and why it reaches nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches

from bench.modules import OTHER, ModuleTable
from bench.roles import UNKNOWN, role_of, serves
from bench.targets.ledger import RoleOf


def suggest(table: ModuleTable, entry: str, role: RoleOf = role_of) -> str:
    """What to write instead of a dead entry: the modules here that do its work; "" if none do."""
    wanted = role_of(entry)
    if wanted == UNKNOWN:
        return ""
    modules = [m for m in table.modules if m.kind != OTHER and serves(role(m.name), wanted)]
    if modules:
        offers = Counter((m.leaf, role(m.name)) for m in modules)
        return ", ".join(
            f"{leaf} ({does.replace('_', '-')}, {n} modules)" for (leaf, does), n in offers.items()
        )
    experts = Counter(
        ".".join(p.name.split(".")[-3:])
        for p in table.expert_parameters
        if serves(role(p.name), wanted)
    )
    return ", ".join(f'target_parameters=["{name}"] ({n} layers)' for name, n in experts.items())


def nearest(written: str, names: Iterable[str]) -> str:
    """The one of `names` that `written` is most likely a slip of; "" if none is near."""
    by_lower = {name.lower(): name for name in names}
    found = get_close_matches(written.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else ""
