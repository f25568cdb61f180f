"""The values of a tool's file, as the parser of that tool takes them.

Every reader names the kind of each key that it reads; what the tool's parser makes of a text
('false', '16') is made of it here, and a value that it refuses, or would take for what it does not
say, is wrong at its line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from types import MappingProxyType
from typing import Any

from bench.errors import lookup, nearest
from bench.readers.document import Document


@dataclass(frozen=True)
class Parser:
    """What a tool's parser makes of values that are not of the kind which belongs there.

    Attributes:
        true, false: the texts, in lower case, that it takes for a boolean.
        digits: whether it takes the numbers 0 and 1 for one.
        numbers: how it makes a number of a text; None where it makes none.
        fractions: whether it makes a whole number of 16.0.
        why: what to say where it makes nothing of any text.
    """

    true: frozenset[str] = frozenset()
    false: frozenset[str] = frozenset()
    digits: bool = True
    numbers: Callable[[str], float] | None = float
    fractions: bool = False
    why: str = ""


def _in_yaml(text: str) -> float:
    """The number that a text is to `int` or in YAML 1.1, and 1e3, which that leaves out."""
    import yaml

    with suppress(ValueError):
        return int(text)
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", text, re.IGNORECASE):
        return float(text)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return value


PYDANTIC = Parser(
    frozenset(("1", "on", "t", "true", "y", "yes")),
    frozenset(("0", "off", "f", "false", "n", "no")),
    fractions=True,
)
"""Pydantic 2 outside of strict mode, by which axolotl reads."""
ARGUMENTS = Parser(
    frozenset(("yes", "true", "t", "y", "1")), frozenset(("no", "false", "f", "n", "0"))
)
"""transformers' HfArgumentParser on a command line, and on the defaults that a file sets."""
DATACLASSES = Parser(numbers=None, why="a text stays a text there: write it without quotes")
"""HfArgumentParser.parse_dict, by which LLaMA-Factory reads: every value as it stands, so that
any text, 'false' too, is true."""
JSONARGPARSE = Parser(
    frozenset(("true", "yes", "on")), frozenset(("false", "no", "off")), digits=False,
    numbers=_in_yaml,
)  # fmt: skip
"""By which LitGPT reads: a text as its YAML has it."""


@dataclass(frozen=True)
class ValueKind:
    """What belongs to a key: `said` in words, and what `parse` makes of a value. Raises ValueError
    where the value does not belong."""

    said: str
    parse: Callable[[Parser, Any], object]
    texts: bool = False
    """Whether nothing but texts belongs, of which no parser makes anything else."""
    choices: tuple[str, ...] = ()
    """The texts that belong, where they are that few."""

    def beside(self, *texts: str) -> ValueKind:
        """This kind, or one of `texts`."""
        choices = " or ".join((self.said, *texts))
        return ValueKind(choices, lambda p, v: v if v in texts else self.parse(p, v))

    def either(self, other: ValueKind) -> ValueKind:
        """This kind, or else the other."""

        def parse(parser: Parser, value: Any) -> object:
            try:
                return self.parse(parser, value)
            except (ValueError, TypeError, OverflowError):
                return other.parse(parser, value)

        return ValueKind(f"{self.said}, or {other.said}", parse)


def _boolean(parser: Parser, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in parser.true | parser.false:
        return value.lower() in parser.true
    if isinstance(value, int | float) and parser.digits and value in (0, 1):
        return bool(value)
    raise ValueError


def _number(parser: Parser, value: Any) -> float:
    if isinstance(value, str) and parser.numbers:
        return parser.numbers(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return value


def _integer(parser: Parser, value: Any) -> int:
    if isinstance(value, str) and parser.numbers is float:
        digits, dot, zeros = value.partition(".")
        if dot and (not parser.fractions or not zeros.strip() or zeros.strip("0 ")):
            raise ValueError
        return int(digits)
    number = _number(parser, value)
    if number % 1 != 0 or (isinstance(number, float) and not parser.fractions):
        raise ValueError
    return int(number)


def _whole(parser: Parser, value: Any) -> int:
    number = _integer(parser, value)
    if number < 1:
        raise ValueError
    return number


def _text(_: Parser, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _name(_: Parser, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _names(_: Parser, value: Any) -> str | list[str]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise ValueError
    return value  # type: ignore[no-any-return]


def _table(_: Parser, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def _flag(_: Parser, value: Any) -> bool:
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise ValueError
    return bool(value)


def _counted(parser: Parser, value: Any) -> float:
    return _integer(parser, value) if isinstance(value, str) else _number(parser, value)


def _list(_: Parser, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError
    return value


def _json_table(_: Parser, value: Any) -> Mapping[str, Any]:
    if isinstance(value, str) and value:
        if not value.startswith("{"):
            raise ValueError
        with suppress(RecursionError):
            value = _of_json(json.loads(value))
    return _table(_, {} if value == "" else value)


def _table_or_path(_: Parser, value: Any) -> Mapping[str, Any] | str:
    if isinstance(value, str) and not value.startswith("{"):
        return value
    return _json_table(_, value)


def _of_json(value: Any) -> Any:
    """A table written as text, with texts in it that transformers takes for what they look like
    (`training_args.py` `_convert_str_dict`)."""
    if isinstance(value, dict):
        return {key: _of_json(inner) for key, inner in value.items()}
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        if value.replace(".", "", 1).isdecimal():
            return float(value) if "." in value else int(value)
    return value


BOOLEAN = ValueKind("true or false", _boolean)
NUMBER = ValueKind("a number", _number)
INTEGER = ValueKind("a whole number", _integer)
WHOLE = ValueKind("a whole number of at least 1", _whole)
TEXT = ValueKind("text", _text, texts=True)
NAME = ValueKind("text, and not empty", _name, texts=True)
ANY = ValueKind("anything", lambda _, value: value)
NAMES = ValueKind("a list of names, or text", _names)
TABLE = ValueKind("a table of keys", _table)
FLAG = ValueKind("true or false, without quotes", _flag, texts=True)
"""A boolean that no parser looks into: of a text it makes nothing, and any text is true."""
COUNT = ValueKind("a whole number", _counted)
"""A whole number where a text is one; a number with a fraction is taken as the tool takes it."""
LIST = ValueKind("a list", _list)
JSON_TABLE = ValueKind("a table of keys, or one in JSON", _json_table, texts=True)
TABLE_OR_PATH = ValueKind(
    "a table of keys, one in JSON, or the path of a file", _table_or_path, texts=True
)


_MOST_SHOWN = 15


def words_of(*words: str) -> ValueKind:
    """Some words, in one text or in a list; or true or false."""

    def parse(_: Parser, value: Any) -> object:
        found = value.split() if isinstance(value, str) else value
        if not isinstance(value, bool) and not (isinstance(found, list) and set(found) <= {*words}):
            raise ValueError
        return value

    return ValueKind(f"true, false, or words out of {', '.join(words)}", parse, texts=True)


def one_of(*texts: str) -> ValueKind:
    """One of some texts."""

    def parse(_: Parser, value: Any) -> str:
        if value not in texts:
            raise ValueError
        return str(value)

    shown, more = texts, ""
    if len(texts) > _MOST_SHOWN:
        shown, more = texts[:3], f", ... ({len(texts)} names)"
    return ValueKind(f"one of {', '.join(shown)}{more}", parse, texts=True, choices=texts)


OF_FIELD = {
    "r": WHOLE,
    "lora_alpha": NUMBER,
    "lora_dropout": NUMBER,
    **dict.fromkeys(
        ("target_modules", "target_parameters", "modules_to_save", "exclude_modules"), NAMES
    ),
    **dict.fromkeys(("fan_in_fan_out", "use_dora", "use_rslora", "ensure_weight_tying"), BOOLEAN),
}
"""The kind of a field of `peft.LoraConfig`, whatever a tool calls it."""


_NAMED = {
    "boolean": BOOLEAN, "number": NUMBER, "integer": INTEGER, "whole": WHOLE, "text": TEXT,
    "name": NAME, "any": ANY, "names": NAMES, "table": TABLE, "flag": FLAG, "count": COUNT,
    "list": LIST, "json": JSON_TABLE, "file": TABLE_OR_PATH,
}  # fmt: skip


def named_kind(name: str, where: str) -> ValueKind:
    """A kind as a tool's table of keys calls it: "whole"; "table_or_text" for one or else the
    other. Raises UnknownName, naming `where`."""
    kinds = [lookup(f"kind of value in {where}:", part, _NAMED) for part in name.split("_or_")]
    return reduce(ValueKind.either, kinds)


def parsed(
    document: Document,
    kinds: Mapping[str, ValueKind],
    parser: Parser,
    not_null: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Document:
    """The document with the values that `parser` makes of them. What does not belong is left out
    as if it were not written, and said in the document's `wrong`; so is a null where the tool takes
    none (`not_null` as a reader has it). A key within a table is `table.key` among the kinds,
    behind the table's own.
    """
    held = {key for when, keys in not_null.items() for key in keys
            if when == "always" or document.values.get(when)}  # fmt: skip
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in document.values.items()}
    for key, kind in sorted(kinds.items(), key=lambda item: document.line(*item[0].split("."))):
        *outer, name = key.split(".")
        table = values.get(outer[0]) if outer else values
        if not isinstance(table, dict) or name not in table:
            continue
        if table[name] is None:
            if key in held:
                document.wrong.append(_wrong(document, key, table.pop(name), kind, parser))
            continue
        try:
            table[name] = kind.parse(parser, table[name])
        except (ValueError, TypeError, OverflowError):
            document.wrong.append(_wrong(document, key, table.pop(name), kind, parser))
    return replace(document, values=values)


def _wrong(document: Document, key: str, value: Any, kind: ValueKind, parser: Parser) -> str:
    line = document.line(*key.split("."))
    why = f" ({parser.why})" if parser.why and isinstance(value, str) and not kind.texts else ""
    if isinstance(value, str) and (near := nearest(value, kind.choices)):
        why = f"; did you mean {near}?"
    return f"line {line}: {key} must be {kind.said}, not {shown(value)}{why}"


def shown(value: object) -> str:
    """A value as a file has it, cut where it is long."""
    names = {True: "true", False: "false"}
    if isinstance(value, bool):
        return names[value]
    if value is None:
        return "null"
    if isinstance(value, list):
        text = f"[{', '.join(map(shown, value[:9]))}{', ...' if len(value) > 9 else ''}]"
    else:
        text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}..."


def repeated_names(document: Document, kinds: Mapping[str, ValueKind]) -> list[str]:
    """What to say of names that stand twice in one list."""
    said = []
    for key, kind in kinds.items():
        value = document.values.get(key)
        if kind is NAMES and isinstance(value, list):
            twice = (name for name, times in Counter(value).items() if times > 1)
            said += [
                f"{key}: {name} stands there more than once, and counts once" for name in twice
            ]
    return said
