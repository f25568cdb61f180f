"""Which modules one entry, one pattern or one parameter name fits, by PEFT's rules.

* an entry of a list matches a module whose full name it is, or ends in "." + entry;
* a string is a regular expression that must match the full name; "all-linear" is every linear
  layer but the output embedding (or, for SEQ_CLS, the classifier);
* a module that is excluded, or lies in a saved module, is never adapted;
* `layers_to_transform` filters what matched by its ending, not by its full name.

Source: peft 0.21 `tuners/tuners_utils.py` (`check_target_module_exists`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.errors import BenchError
from bench.models.modules import CONV1D, LINEAR, ModuleTable, Parameter
from bench.tasks import heads_of

_CONDENSED_FROM = 20


class Filter:
    """Which of the names that an entry fits are kept: exclusion, saved modules, layer indices.

    `targets` are the entries as PEFT has them at that point, the configuration's own if not given.
    """

    def __init__(
        self, adapter: AdapterConfig, targets: tuple[str, ...] | str | None = None
    ) -> None:
        self.adapter = adapter
        entries = adapter.target_modules if targets is None else targets
        self.entries = frozenset(() if isinstance(entries, str) else entries or ())
        self.guards = [re.compile(rf"(^|.*\.){m}($|\..*)") for m in adapter.guarded_modules]
        indices = adapter.layers_to_transform
        self.indices = None if indices is None or indices == () else (
            {indices} if isinstance(indices, int) else set(indices))  # fmt: skip
        patterns = adapter.layers_pattern or ()
        self.patterns = [
            re.compile(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.")
            for p in ((patterns,) if isinstance(patterns, str) else patterns)
        ] or [re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")]

    def excluded(self, name: str) -> bool:
        """Whether exclude_modules holds the module out."""
        excluded = self.adapter.exclude_modules or ()
        if isinstance(excluded, str):
            return re.fullmatch(excluded, name) is not None
        return any(ends_in(name, entry) for entry in excluded)

    def guarded(self, name: str) -> bool:
        """Whether the module is, or lies in, one that is trained whole."""
        return any(guard.match(name) for guard in self.guards)

    def keeps(self, name: str) -> bool:
        return not (self.excluded(name) or self.guarded(name))

    def layer_index(self, name: str) -> int | None:
        """The number that layers_to_transform is compared with."""
        found = next(filter(None, (p.match(name) for p in self.patterns)), None)
        return int(found["idx"]) if found else None

    def in_layers(self, name: str) -> bool:
        """Whether layers_to_transform keeps a module that an entry fits by its ending."""
        if self.indices is None or name in self.entries:
            return True
        return self.layer_index(name) in self.indices

    def reaches(self, name: str) -> bool:
        """Whether one of the entries of a list adapts the module called `name`."""
        fits = any(ending in self.entries for ending in endings(name))
        return fits and self.keeps(name) and self.in_layers(name)


def endings(name: str) -> Iterator[str]:
    """The name's last segment, its last two, … and the whole name."""
    at = len(name)
    while at >= 0:
        at = name.rfind(".", 0, at)
        yield name[at + 1 :]
        if at < 0:
            return


def ends_in(name: str, entry: str) -> bool:
    """Whether `entry` is the name or its last segments: how PEFT reads the names of a list."""
    return name == entry or name.endswith(f".{entry}")


def matching_pattern(table: ModuleTable, adapter: AdapterConfig, pattern: str) -> Iterable[str]:
    """The modules that a string of target_modules fits, before exclusion.

    Raises BenchError where it is no regular expression.
    """
    if pattern.lower() != ALL_LINEAR:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise BenchError(
                f"target_modules {pattern!r} is not a regular expression: {error}"
            ) from None
        return (m.name for m in table.modules if compiled.fullmatch(m.name))
    skipped = table.output_embedding if table.pretrained else ""
    if not skipped and table.pretrained and adapter.task_type == "SEQ_CLS":
        heads = reversed(heads_of("SEQ_CLS"))  # PEFT asks for `score` first
        skipped = next((name for name in heads if name in table.by_name), "")
    return (m.name for m in table.modules if m.kind in (LINEAR, CONV1D) and m.name != skipped)


def condense(table: ModuleTable, targets: tuple[str, ...]) -> tuple[str, ...]:
    """A list of twenty entries or more as PEFT shortens it: to the endings that tell what it
    reaches from the model's other modules. What was a full name is one no longer.

    Source: peft 0.21 `tuners/tuners_utils.py` (`_find_minimal_target_modules`).
    """
    given = set(targets)
    if len(given) < _CONDENSED_FROM:
        return targets
    others = [m.name for m in table.modules if given.isdisjoint(endings(m.name))]
    taken = {ending for name in others for ending in endings(name)}
    kept: set[str] = set()
    for name in sorted(given, key=lambda name: list(endings(name))):
        covered = kept & set(list(endings(name))[:-1])
        free = (e for e in endings(name) if e not in kept and e not in taken)
        if not covered and (shortest := next(free, None)):
            kept.add(shortest)
    return tuple(sorted(kept)) if kept and len(kept) < len(given) else targets


def match_parameters(
    table: ModuleTable, wanted: tuple[str, ...]
) -> tuple[list[Parameter], dict[str, list[str]]]:
    """The parameters that `target_parameters` reaches, and their names by entry."""
    found: dict[str, Parameter] = {}
    lists: dict[str, list[str]] = {entry: [] for entry in wanted}
    for parameter in table.parameters if wanted else ():
        for entry in wanted:
            if ends_in(parameter.name, entry):
                lists[entry].append(parameter.name)
                found[parameter.name] = parameter
    return list(found.values()), lists
