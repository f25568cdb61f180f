"""How other tools find "every linear layer": by class name, as the last segment of each name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bench.models.modules import LINEAR, Module, ModuleTable


def linear_modules(table: ModuleTable) -> Iterator[Module]:
    """Linear layers and whatever else has a class of that name, bitsandbytes' among them."""
    return (m for m in table.modules if m.kind == LINEAR or "Linear" in m.class_name)


def last_segments(names: Iterable[str]) -> tuple[str, ...]:
    """The last segments of the names, each once, in order."""
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def holding(parts: Iterable[str]) -> str:
    """A regular expression for whole names that hold one of `parts` anywhere."""
    return rf".*(?:{'|'.join(re.escape(part) for part in parts)}).*"


def ends_in_any(name: str, entries: Iterable[str]) -> bool:
    """Whether PEFT would reach the module by one of the entries of a list."""
    return f".{name}".endswith(tuple(f".{entry}" for entry in entries))
