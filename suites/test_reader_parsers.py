"""A value is read as the parser of its tool reads it: transformers', pydantic, jsonargparse."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import yaml

from bench.files import FIXTURES
from bench.readers.values import (
    ARGUMENTS,
    BOOLEAN,
    DATACLASSES,
    INTEGER,
    JSONARGPARSE,
    NUMBER,
    PYDANTIC,
    TEXT,
    ValueKind,
)

TEXTS = ("true", "True", "false", "FALSE", "yes", "no", "on", "off", "y", "n", "t", "f", "1", "0",
         "maybe", "yes please", "", " false", "2", "none")  # fmt: skip
NUMBERS = ("16", " 16 ", "+16", "16.0", "16.", "16.5", "1e3", "sixteen", "", "0x10", "1_6")


def made(kind: ValueKind, parser: object, value: object) -> object:
    try:
        return kind.parse(parser, value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None


@pytest.mark.parametrize("value", [*TEXTS, True, False])
def test_booleans_of_a_command_line_are_those_of_transformers_parser(value: object) -> None:
    from argparse import ArgumentTypeError

    from transformers.hf_argparser import string_to_bool

    try:
        expected = string_to_bool(value)
    except ArgumentTypeError:
        expected = None
    assert made(BOOLEAN, ARGUMENTS, value) == expected


def test_a_dictionary_of_arguments_keeps_its_texts() -> None:
    """Which is why none is taken for LLaMA-Factory: 'false' would be true there."""
    from transformers import HfArgumentParser

    @dataclass
    class Switch:
        on: bool = False
        rank: int = 8

    (read,) = HfArgumentParser(Switch).parse_dict({"on": "false", "rank": "16"})
    assert (read.on, read.rank) == ("false", "16")
    assert all(made(BOOLEAN, DATACLASSES, text) is None for text in TEXTS)
    assert all(made(INTEGER, DATACLASSES, text) is None for text in NUMBERS)


@pytest.mark.parametrize("value", [*TEXTS, *NUMBERS, True, False, 1, 0, 2, 1.0, 0.5, 16.0, 16.5])
def test_values_of_axolotl_are_those_of_pydantic(value: object) -> None:
    """But for booleans among numbers: pydantic takes true for 1, and nobody means that."""
    pydantic = pytest.importorskip("pydantic")
    for kind, python in ((BOOLEAN, bool), (INTEGER, int), (NUMBER, float)):
        try:
            expected = pydantic.TypeAdapter(python).validate_python(value)
        except pydantic.ValidationError:
            expected = None
        if isinstance(value, bool) and kind is not BOOLEAN:
            expected = None
        assert made(kind, PYDANTIC, value) == expected, kind.said


IN_YAML = ("true", "True", "yes", "on", "off", "no", "y", "t", "'true'", "'Yes'", "'ON'", "'off'",
           "'No'", "'FALSE'", "'t'", "'y'", "'n'", "'f'", "'1'", "'0'", "1", "0", "1.0", "2", "16",
           "'16'", "' 16 '", "16.0", "'16.0'", "16.", "'16.'", "16.5", "'16.5'", "1e3", "'1e3'",
           "'1E-3'", "'1_6'", "0x10", "'0x10'", "017", "'017'", "'-4'", "'+4'", ".5", "'.5'",
           "'nan'", ".inf", "'inf'", "text", "''", "[1]", "{a: 1}", "'1,000'", "'[1]'")  # fmt: skip


JSONARGPARSED = FIXTURES / "readers" / "jsonargparse.json"


def by_jsonargparse() -> dict[str, dict[str, object]]:
    """What the library makes of each text of a YAML file, null where it refuses it. The fixture is
    this, as JSON with an indent of 1."""
    from jsonargparse import ArgumentParser

    def value(python: type, text: str) -> object:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--key", type=python)
        try:
            return parser.parse_string(f"key: {text}").key
        except Exception:
            return None

    kinds = {"boolean": bool, "integer": int, "number": float, "text": str}
    return {kind: {t: value(python, t) for t in IN_YAML} for kind, python in kinds.items()}


def test_values_of_litgpt_are_those_of_jsonargparse() -> None:
    """But for 1e3 as a text: its YAML has a number there, and YAML 1.1 has none."""
    expected = json.loads(JSONARGPARSED.read_text())
    kinds = {"boolean": BOOLEAN, "integer": INTEGER, "number": NUMBER, "text": TEXT}
    for name, kind in kinds.items():
        for text in IN_YAML:
            if (name, text) != ("text", "1e3"):
                value = yaml.safe_load(f"key: {text}")["key"]
                assert made(kind, JSONARGPARSE, value) == expected[name][text], (name, text)


def test_the_stored_values_are_the_librarys() -> None:
    pytest.importorskip("jsonargparse")
    assert json.loads(JSONARGPARSED.read_text()) == by_jsonargparse()
