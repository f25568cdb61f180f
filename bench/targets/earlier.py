"""What earlier releases of transformers called a module: saved names, traced through the atlas."""

from __future__ import annotations

import re
from functools import cache

from bench.files import FIXTURES, read_json
from bench.models.modules import OTHER, ModuleTable
from bench.targets.filters import ends_in
from bench.targets.suggestions import suggest


def trace(table: ModuleTable, entry: str) -> tuple[str, str]:
    """(what an entry was, what to write now) for a name that a stored atlas of an earlier
    transformers has for this model type; empty where none has it."""
    written = ".".join("*" if part.isdigit() else part for part in entry.split("."))
    for version, old, new in _renames(table.model_type):
        if not ends_in(old, written):
            continue
        here = [_numbered(name, old, entry) for name in new]
        modules = [n for n in here if any(ends_in(m, n) for m in table.by_name)]
        bare = [n for n in here if any(ends_in(p.name, n) for p in table.parameters)]
        if modules and not re.search(r"\d", entry):
            return f"transformers {version} called it so", suggest(table, entry) or modules[0]
        if modules:
            return f"transformers {version} called it so", ", ".join(modules)
        if bare:
            names = ", ".join(f'"{name}"' for name in bare)
            return f"transformers {version} called it so", f"target_parameters=[{names}]"
    return "", ""


def trace_pattern(table: ModuleTable, pattern: str) -> tuple[str, str]:
    """The same for a regular expression that fits names of an earlier transformers."""
    try:
        fits = re.compile(pattern).fullmatch
    except re.error:
        return "", ""
    there = {module.leaf for module in table.modules if module.kind != OTHER}
    leaves: dict[str, list[str]] = {}
    for version, old, new in _renames(table.model_type):
        if fits(old.replace("*", "0")):
            leaves.setdefault(version, []).extend(name.rpartition(".")[2] for name in new)
    for version, found in leaves.items():
        if known := [leaf for leaf in dict.fromkeys(found) if leaf in there]:
            return f"transformers {version} had such names", rf".*\.({'|'.join(known)})"
    return "", ""


@cache
def _renames(model_type: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(version, old pattern, new patterns) of a type, the latest version first."""
    stored = read_json(FIXTURES / "atlas" / "renames.json").get(model_type, {})
    return tuple(
        (version, old, tuple(new)) for version, names in stored.items() for old, new in names
    )


def _numbered(new: str, old: str, entry: str) -> str:
    """A new pattern as an entry: with the entry's own numbers where it has them all, else the part
    behind the last number."""
    numbers = [part for part in entry.split(".") if part.isdigit()]
    if numbers and old.count("*") == new.count("*") == len(numbers):
        for number in numbers:
            new = new.replace("*", number, 1)
        return new
    if numbers and "*" in new:  # the layer's number comes first; an expert's is gone
        head, _, tail = new.partition("*")
        return f"{head}{numbers[0]}{tail.replace('.*', '')}"
    return new.rpartition("*.")[2]
