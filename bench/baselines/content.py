"""What may stand in a stored run, whatever table it is in."""

from __future__ import annotations

from typing import Any

from bench.errors import BenchError

_TOO_GREAT = 10**308


def check_numbers(table: Any, where: str) -> None:
    """BenchError for a whole number within that is greater than every float: in no unit can it be
    told, and a detail has no type that refuses it."""
    rest = [(where, table)]
    while rest:
        where, value = rest.pop()
        if isinstance(value, dict):
            rest += [(f"{where}: {key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            rest += [(where, inner) for inner in value]
        elif isinstance(value, int) and abs(value) >= _TOO_GREAT:
            raise BenchError(f"{where}: expected at most 308 digits, found {value!r:.80}")


def check_words(value: Any, where: str) -> None:
    """BenchError unless every text within is fit for a table and a terminal: no control
    characters."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_words(key, where)
            check_words(inner, f"{where}: {key}")
    elif isinstance(value, list):
        for inner in value:
            check_words(inner, where)
    elif isinstance(value, str) and not value.isprintable():
        raise BenchError(f"{where}: expected printable text, found {value!r:.80}")
