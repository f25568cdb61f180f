"""Roles: what a projection does, whatever its name is on an architecture; `fixtures/roles.toml`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypedDict

from bench.errors import check_known
from bench.files import FIXTURES, parse, read_toml
from bench.models import modules

QUERY, KEY, VALUE, OUTPUT = "query", "key", "value", "output"
QUERY_KEY_VALUE, KEY_VALUE = "query_key_value", "key_value"
GATE, UP, DOWN, GATE_UP = "gate", "up", "down", "gate_up"
ROUTER, EMBEDDING, HEAD, UNKNOWN = "router", "embedding", "head", "unknown"


class _Rule(TypedDict):
    role: str
    names: list[str]


class _Roles(TypedDict):
    roles: dict[str, str]
    fused: dict[str, tuple[str, ...]]
    rule: list[_Rule]


_FILE = FIXTURES / "roles.toml"
_DATA = parse(read_toml(_FILE), _Roles, str(_FILE))
ROLES = _DATA["roles"]
FUSED = _DATA["fused"]
"""A fused projection does the work of several roles at once."""

_SEGMENTS = 6  # no rule looks at more of a name
# A wrapper that clips or quantizes keeps its weight in `linear`; experts are parameters.
_COMPILED = tuple(
    (re.compile(rf"(?:.*\.)?(?:{'|'.join(rule['names'])})(?:\.linear)?(?:\.weight)?"), rule["role"])
    for rule in _DATA["rule"]
)


@lru_cache(maxsize=1 << 16)
def role_of(name: str) -> str:
    """The role that a module's (or expert parameter's) name tells; UNKNOWN where it tells none."""
    parts = name.split(".")[-_SEGMENTS:]
    # Numbers before the last two segments are a layer's or an expert's, and tell nothing.
    return _role_at_end(".".join("0" if p.isdigit() else p for p in parts[:-2]), *parts[-2:])


@lru_cache(maxsize=1 << 16)
def _role_at_end(*end: str) -> str:
    name = ".".join(filter(None, end))
    return next((role for pattern, role in _COMPILED if pattern.fullmatch(name)), UNKNOWN)


def role_in_place(name: str, kind: str, input_embedding: str, output_embedding: str) -> str:
    """The role of a module of `kind` ("" for a bare parameter) by its place in the model, else by
    its name, else by its kind; UNKNOWN where none of them tells."""
    if name == output_embedding:
        return HEAD
    if name == input_embedding and kind == modules.EMBEDDING:
        return EMBEDDING
    role = role_of(name)
    if role == UNKNOWN and kind in modules.CONVOLUTIONS:
        return "convolution"
    return EMBEDDING if role == UNKNOWN and kind == modules.EMBEDDING else role


def role_in_table(table: modules.ModuleTable, name: str) -> str:
    """`role_in_place` of a module, or of a parameter, of the model that the table describes."""
    module = table.by_name.get(name)
    kind = module.kind if module is not None else ""
    return role_in_place(name, kind, table.input_embedding, table.output_embedding)


def serves(role: str, wanted: str) -> bool:
    """Whether a projection of `role` does the work of `wanted`, alone or fused with others."""
    return role == wanted or wanted in FUSED.get(role, ())


def check_role(name: str, where: str) -> str:
    """`name` itself; UnknownName, naming `where`, if there is no such role."""
    check_known(f"role in {where}:", name, ROLES)
    return name


for _rule in _DATA["rule"]:
    check_role(_rule["role"], f"{_FILE}: rule")
