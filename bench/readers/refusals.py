"""What a tool's own checks refuse of keys that stand together: data of `fixtures/tools/`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.readers.document import Document


def given(value: object) -> bool:
    """Whether a value says anything: null, false and what is empty leave the default."""
    return value not in (None, False, "", [], {}, ())


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One rule of a tool's checks.

    Attributes:
        when: key → what its value is where the rule is met; every one of them must be. `true`:
            given; `false`: not given; a text: a pattern of the whole value as text, "" where there
            is none, true and false as YAML has them, a list with commas between its items.
            `table.key` lies within a table. Keys with | between them are met by any one of them.
        why: what is at odds, in a few words.
        source: where the tool checks it: file and function.
        silent: the tool takes the file without a word, and does something else than it says.
    """

    when: Mapping[str, bool | str]
    why: str
    source: str
    silent: bool = False

    def found(self, document: Document, defaults: Mapping[str, Any]) -> list[_Part] | None:
        """The keys that meet the rule; None where it is not met, or a value was misread."""
        parts: list[_Part] = []
        for names, wanted in self.when.items():
            there = [_Part.of(name, document, defaults) for name in names.split("|")]
            if any(part.misread for part in there):
                return None
            set_here = [part for part in there if given(part.value)]
            if isinstance(wanted, bool):
                if bool(set_here) != wanted:
                    return None
                parts += set_here or there
            else:
                met = [p for p in set_here or there if re.fullmatch(wanted, p.text, re.DOTALL)]
                if not met:
                    return None
                parts += met
        return parts

    def said(self, tool: str, document: Document, defaults: Mapping[str, Any]) -> str | None:
        """What is wrong, with the lines of the keys; None where nothing is."""
        parts = self.found(document, defaults)
        if parts is None:
            return None
        lines = sorted({part.line for part in parts if part.line})
        does = "takes it without a word" if self.silent else "refuses it"
        named = [part for part in parts if part.stands] or parts
        first, *more = map(str, named)
        with_them = f" with {' and '.join(more)}" if more else ""
        without = " or ".join(part.name for part in parts if part not in named)
        without = f" without {without}" if without else ""
        return f"{_numbered(lines)}{first}{with_them}{without}: {tool} {does}: {self.why}"


@dataclass(frozen=True)
class _Part:
    """A key of a rule as a file has it; `line` is 0 where that is not known."""

    name: str
    value: Any
    line: int
    by_default: bool
    misread: bool

    @classmethod
    def of(cls, name: str, document: Document, defaults: Mapping[str, Any]) -> _Part:
        keys = tuple(name.split("."))
        table: Any = document.values
        for outer in keys[:-1]:
            table = table.get(outer) if isinstance(table, Mapping) else None
        there = isinstance(table, Mapping) and keys[-1] in table
        value = table[keys[-1]] if there else defaults.get(name)
        line = document.lines.get(keys, 0)
        return cls(name, value, line, not there, bool(line) and not there)

    @property
    def stands(self) -> bool:
        """Whether there is something to show: 0 is a number."""
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        return number or given(self.value)

    @property
    def text(self) -> str:
        if self.value is None:
            return ""
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if isinstance(self.value, list):
            return ",".join(map(str, self.value))
        return "" if isinstance(self.value, Mapping) else str(self.value)

    def __str__(self) -> str:
        plain = isinstance(self.value, str | int | float) and not isinstance(self.value, bool)
        said = f"{self.name} {self.text[:60]}" if plain else self.name
        return f"{said} (the default)" if self.by_default else said


def _numbered(lines: Sequence[int]) -> str:
    if not lines:
        return ""
    *others, last = map(str, lines)
    return f"lines {', '.join(others)} and {last}: " if others else f"line {last}: "


def refusals(
    rules: Sequence[Refusal], tool: str, document: Document, defaults: Mapping[str, Any]
) -> list[str]:
    """What the tool's checks refuse of the file, each rule once, in the order of the table."""
    said = (rule.said(tool, document, defaults) for rule in rules)
    return [text for text in said if text]
