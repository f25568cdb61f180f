"""What a file says, as a data class: one error that names the file, the place and what is wrong.

msgspec converts. What it does not say is said here: which key is none, with the nearest one; and
the names of the tables on the way to what is wrong, each of which it calls `...`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from bench.errors import BenchError, UnknownName

T = TypeVar("T")


def parse(data: Any, kind: type[T], where: str, **given: Any) -> T:
    """`data`, as TOML or JSON gave it, as `kind`: a data class (or a TypedDict), or lists and
    tables of such. `given` are fields that are no keys of the file.

    BenchError names `where`, the place within, what would be right and what was found; UnknownName
    a key, or a word, that is none of those allowed.
    """
    import msgspec

    _check_keys(data, kind, where, given)
    if given and isinstance(data, dict):
        data = {**data, **given}
    try:
        return msgspec.convert(data, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # "\ud800" is no text to it
        for name, value, inner in _parts(data, kind):
            parse(value, inner, f"{where}{name}")  # at the innermost place it says what is wrong
        if error.__cause__ is not None:  # what the class itself says
            raise BenchError(f"{where}: {error.__cause__}") from None
        if get_origin(kind) is Literal and isinstance(data, str):
            place, _, key = where.rpartition(": ")
            raise UnknownName(f"{key} in {place}:", data, map(str, get_args(kind))) from None
        found = _WORDS[type(data)] if isinstance(data, dict | list) else f"{data!r:.80}"
        raise BenchError(f"{where}: expected {in_words(kind)}, found {found}") from None


def fits(value: Any, kind: Any) -> bool:
    """Whether `parse` would take it: `in_words` says what it takes."""
    import msgspec

    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return True


def keyed(keys: Iterable[str], kind: Any) -> Any:
    """For `parse`: a table of exactly these keys, each of the one type."""
    table: Any = TypedDict
    return table("Keyed", dict.fromkeys(keys, kind))


def parse_rows(path: Path, kind: Any, make: Callable[[Any], T]) -> list[T]:
    """`make` of each row of a CSV file, which is parsed as `kind`. BenchError names file and line,
    for a ValueError or KeyError of `make` too."""
    found = []
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            where = f"{path}: line {number}"
            try:
                found.append(make(parse(row, kind, where)))
            except (ValueError, KeyError) as error:
                raise BenchError(f"{where}: {error}") from None
    return found


def kept_rows(versions: Mapping[str, str], rows: Mapping[str, Any], name: str = "rows") -> str:
    """A JSON file of what was kept of each row, under which versions of the libraries: a row a
    line, so that a change is a readable diff."""
    lines = [f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items()]
    head = f'{{\n "versions": {json.dumps(dict(versions))},\n "{name}": {{\n'
    return head + ",\n".join(lines) + "\n }\n}\n"


def _check_keys(data: Any, kind: Any, where: str, given: Collection[str] = ()) -> None:
    """msgspec drops what a data class has no field for."""
    known = _fields(_plain(kind, data)) if isinstance(data, dict) else {}
    allowed = [name for name in known if name not in given]
    for key in data if known else ():
        if key not in allowed:
            raise UnknownName(f"key in {where}:", str(key), allowed)
    needed = (name for name, (_, required) in known.items() if required and name not in given)
    if missing := [name for name in needed if name not in data]:
        raise BenchError(f"{where}: missing key {', '.join(map(repr, missing))}")
    for name, value, inner in _parts(data, kind):
        if isinstance(value, dict | list):
            _check_keys(value, inner, f"{where}{name}")


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The keys that a table may have, each with its type and whether it has to be given; empty
    where it may have any."""
    if is_dataclass(kind):
        types = get_type_hints(kind, include_extras=True)
        fixed = {f.name for f in fields(kind) if f.default is f.default_factory is MISSING}
        return {f.name: (types[f.name], f.name in fixed) for f in fields(kind)}
    if is_typeddict(kind):
        types = get_type_hints(kind, include_extras=True)
        return {name: (types[name], name in kind.__required_keys__) for name in types}
    inner = get_args(kind)
    names = get_args(inner[0]) if len(inner) == 2 and get_origin(inner[0]) is Literal else ()
    return dict.fromkeys(names, (inner[-1], False)) if names else {}


def _plain(kind: Any, data: Any) -> Any:
    """A type without its Meta; of a union the part that these data look like."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain(inner[0], data)
    if origin in (Union, UnionType):
        parts = [_plain(one, data) for one in inner]
        like = _LISTS if isinstance(data, list) else (dict, Mapping)
        return next((p for p in parts if get_origin(p) in like or _fields(p)), kind)
    return kind


def _parts(data: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """The parts of a table or list: where each is, its value and its type."""
    kind = _plain(kind, data)
    inner, known = get_args(kind), _fields(kind)
    if isinstance(data, dict):
        for key, value in data.items() if known or get_origin(kind) in (dict, Mapping) else ():
            yield f": {key}", value, known[key][0] if known else inner[1]
    elif isinstance(data, list) and get_origin(kind) in _LISTS:
        kinds = inner if inner[1:] and inner[1] is not ... else [inner[0]] * len(data)
        yield from ((f" {n}", v, k) for n, (v, k) in enumerate(zip(data, kinds, strict=False), 1))


_LISTS = (list, tuple, frozenset)
_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false",
    **dict.fromkeys(_LISTS, "a list"), dict: "a table",
}  # fmt: skip


def in_words(kind: Any) -> str:
    """What a type takes, as a user calls it; a `description` in its Meta is taken as it is."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        least, most = inner[1].ge, inner[1].le
        bounds = f" from {least} to {most}" if most is not None else f" of at least {least}"
        return inner[1].description or in_words(inner[0]) + (bounds if least is not None else "")
    if word := _WORDS.get(kind) or _WORDS.get(origin):
        return word
    if origin is Literal:
        return " or ".join(map(str, inner))
    if inner and origin not in (dict, Mapping):
        return " or ".join(in_words(one) for one in inner if one is not type(None))
    return "a table"
