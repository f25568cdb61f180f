"""What a file says, as a data class: one error that names the file, the place and what is wrong.

msgspec converts. What it does not say is said here: which key is none, with the nearest one; and
the names of the tables on the way to what is wrong, each of which it calls `...`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
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
    except msgspec.ValidationError as error:
        raise _fault(data, kind, where, error) from None


def fits(value: Any, kind: Any) -> bool:
    """Whether `parse` would take it: `in_words` says what it takes."""
    import msgspec

    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def keyed(keys: Iterable[str], kind: Any) -> Any:
    """For `parse`: a table of exactly these keys, each of the one type."""
    table: Any = TypedDict
    return table("Keyed", dict.fromkeys(keys, kind))


def _check_keys(data: Any, kind: Any, where: str, given: Collection[str] = ()) -> None:
    """msgspec drops what a data class has no field for."""
    kind = _plain(kind, data)
    known = [name for name in _known(kind) if name not in given]
    for key in data if known and isinstance(data, dict) else ():
        if key not in known:
            raise UnknownName(f"key in {where}:", str(key), known)
    if _holds_tables(kind):
        for name, value, inner in _parts(data, kind):
            _check_keys(value, inner, f"{where}{name}")


def _fault(data: Any, kind: Any, where: str, error: Exception) -> BenchError:
    """What is wrong in `data`, at the innermost place: msgspec calls every table's key `...`."""
    import msgspec

    whole, kind = kind, _plain(kind, data)
    if _is_table(kind) and isinstance(data, dict):
        needed = [name for name, (_, required) in _fields(kind).items() if required]
        if missing := [name for name in needed if name not in data]:
            return BenchError(f"{where}: missing key {', '.join(map(repr, missing))}")
    for name, value, inner in _parts(data, kind):
        try:
            msgspec.convert(value, inner)
        except msgspec.ValidationError as within:
            return _fault(value, inner, f"{where}{name}", within)
    if error.__cause__ is not None:  # what the class itself says
        return BenchError(f"{where}: {error.__cause__}")
    if get_origin(kind) is Literal and isinstance(data, str):
        place, _, key = where.rpartition(": ")
        return UnknownName(f"{key} in {place}:", data, map(str, get_args(kind)))
    found = _WORDS.get(type(data), "") if isinstance(data, dict | list) else f"{data!r:.80}"
    return BenchError(f"{where}: expected {in_words(whole)}, found {found}")


def _is_table(kind: Any) -> bool:
    return is_dataclass(kind) or is_typeddict(kind)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Each field's type, and whether it has to be given."""
    types = get_type_hints(kind, include_extras=True)
    if not is_dataclass(kind):
        return {name: (types[name], name in kind.__required_keys__) for name in types}
    return {
        f.name: (types[f.name], f.default is MISSING and f.default_factory is MISSING)
        for f in fields(kind)
    }


def _known(kind: Any) -> tuple[str, ...]:
    """The keys that a table may have; empty where it may have any."""
    if _is_table(kind):
        return tuple(_fields(kind))
    inner = get_args(kind)
    return get_args(inner[0]) if len(inner) == 2 and get_origin(inner[0]) is Literal else ()


@cache
def _holds_tables(kind: Any) -> bool:
    """Whether tables of known keys lie within."""
    inner = [t for t, _ in _fields(kind).values()] if _is_table(kind) else get_args(kind)
    return any(_known(one) or _holds_tables(one) for one in inner)


def _plain(kind: Any, data: Any) -> Any:
    """A type without its Meta; of a union the part that these data look like."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain(inner[0], data)
    for one in inner if origin in (Union, UnionType) else ():
        part = _plain(one, data)
        is_table = _is_table(part) or get_origin(part) in (dict, Mapping)
        if (isinstance(data, dict) and is_table) or (
            isinstance(data, list) and get_origin(part) in _LISTS
        ):
            return part
    return kind


def _parts(data: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """The parts of a table or list: where each is, its value and its type."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(data, dict) and _is_table(kind):
        known = _fields(kind)
        yield from ((f": {key}", value, known[key][0]) for key, value in data.items())
    elif isinstance(data, dict) and origin in (dict, Mapping):
        yield from ((f": {key}", value, inner[1]) for key, value in data.items())
    elif isinstance(data, list) and origin in _LISTS:
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
        meta = inner[1]
        bounds = (
            f" from {meta.ge} to {meta.le}" if meta.le is not None else f" of at least {meta.ge}"
        )
        return meta.description or in_words(inner[0]) + (bounds if meta.ge is not None else "")
    if word := _WORDS.get(kind) or _WORDS.get(origin):
        return word
    if origin is Literal:
        return " or ".join(map(str, inner))
    if inner and origin not in (dict, Mapping):
        return " or ".join(in_words(one) for one in inner if one is not type(None))
    return "a table"
