"""Roles: what a projection does, whatever its name is on an architecture; `fixtures/roles.toml`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypedDict

from bench.errors import check_known
from bench.files import FIXTURES, parse, read_toml

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


def serves(role: str, wanted: str) -> bool:
    """Whether a projection of `role` does the work of `wanted`, alone or fused with others."""
    return role == wanted or wanted in FUSED.get(role, ())


def check_role(name: str, where: str) -> str:
    """`name` itself; UnknownName, naming `where`, if there is no such role."""
    check_known(f"role in {where}:", name, ROLES)
    return name


for _rule in _DATA["rule"]:
    check_role(_rule["role"], f"{_FILE}: rule")
