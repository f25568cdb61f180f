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
from collections.abc import Iterable

from bench.adapters import ALL_LINEAR, AdapterConfig
from bench.errors import BenchError
from bench.modules import CONV1D, LINEAR, ModuleTable, Parameter

_SEQ_CLS_HEADS = ("score", "classifier")


class Filter:
    """Which of the names that an entry fits are kept: exclusion, saved modules, layer indices."""

    def __init__(self, adapter: AdapterConfig) -> None:
        self.adapter = adapter
        self.guards = [re.compile(rf"(^|.*\.){m}($|\..*)") for m in adapter.guarded_modules]
        indices = adapter.layers_to_transform
        self.indices = None if indices is None or indices == () else (
            {indices} if isinstance(indices, int) else set(indices))  # fmt: skip
        patterns = adapter.layers_pattern or ()
        self.patterns = [
            re.compile(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.")
            for p in ((patterns,) if isinstance(patterns, str) else patterns)
        ] or [re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")]

    def keeps(self, name: str) -> bool:
        excluded = self.adapter.exclude_modules
        if isinstance(excluded, str):
            if excluded and re.fullmatch(excluded, name):
                return False
        elif excluded and any(name == e or name.endswith(f".{e}") for e in excluded):
            return False
        return not any(guard.match(name) for guard in self.guards)

    def matches(self, entry: str, name: str) -> bool:
        if name == entry:
            return self.keeps(name)
        if not name.endswith(f".{entry}") or not self.keeps(name):
            return False
        if self.indices is None or name in (self.adapter.target_modules or ()):
            return True
        found = next(filter(None, (p.match(name) for p in self.patterns)), None)
        return found is not None and int(found["idx"]) in self.indices


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
    skipped = table.output_embedding
    if not skipped and adapter.task_type == "SEQ_CLS":
        skipped = next((name for name in _SEQ_CLS_HEADS if name in table.by_name), "")
    return (m.name for m in table.modules if m.kind in (LINEAR, CONV1D) and m.name != skipped)


def match_parameters(
    table: ModuleTable, wanted: tuple[str, ...]
) -> tuple[list[Parameter], dict[str, list[str]]]:
    """The parameters that `target_parameters` reaches, and their names by entry."""
    found: dict[str, Parameter] = {}
    lists: dict[str, list[str]] = {entry: [] for entry in wanted}
    for parameter in table.parameters if wanted else ():
        for entry in wanted:
            if parameter.name == entry or parameter.name.endswith(f".{entry}"):
                lists[entry].append(parameter.name)
                found[parameter.name] = parameter
    return list(found.values()), lists
