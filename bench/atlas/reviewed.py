"""Reviewed data beside the rules: how types build whose default does not (`overrides.toml`), and
roles that a name does not tell (`roles.toml`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bench.atlas import names
from bench.atlas.entries import Atlas, TypeEntry
from bench.files import FIXTURES, parse, read_toml
from bench.models.roles import check_role, role_in_place

OWN_MODULE = "own"  # as auto_class: the class in the type's own module
_OVERRIDES = FIXTURES / "atlas" / "overrides.toml"
_ROLES = FIXTURES / "atlas" / "roles.toml"
_ANY = "type"  # the table for every version; "transformers-4" is for one major version


@dataclass(frozen=True)
class Override:
    """How to build one type. `config` are configuration values; "" leaves the class to the rule."""

    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)
    auto_class: str = ""


_Table = Literal["type", "transformers-4", "transformers-5"]


@cache
def load_overrides(path: Path = _OVERRIDES) -> Mapping[str, Mapping[str, Override]]:
    """By table and model type. Raises BenchError, naming file and key, on anything unknown."""
    file = parse(read_toml(path), dict[_Table, dict[str, Any]], str(path))
    return {
        table: {t: parse(v, Override, f"{path}: {table}.{t}") for t, v in types.items()}
        for table, types in file.items()
    }


def override_for(model_type: str, major: int) -> Override | None:
    """The override of a type under transformers `major`, if there is one."""
    tables = load_overrides()
    for table in (f"transformers-{major}", _ANY):
        if model_type in tables.get(table, {}):
            return tables[table][model_type]
    return None


@dataclass(frozen=True)
class _Role:
    types: tuple[str, ...]
    module: str
    role: str
    reason: str


@dataclass(frozen=True)
class _Roles:
    role: tuple[_Role, ...] = ()


@cache
def load_roles(path: Path = _ROLES) -> dict[str, tuple[tuple[re.Pattern[str], str], ...]]:
    """By model type: ends of module names, and the roles that they have there.

    Raises BenchError, naming file and key, on anything unknown.
    """
    found: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {}
    for number, reviewed in enumerate(parse(read_toml(path), _Roles, str(path)).role, 1):
        pattern = re.escape(reviewed.module).replace(r"\*", r"\d+")
        role = check_role(reviewed.role, f"{path}: role {number}")
        rule = (re.compile(rf"(?:.*\.)?{pattern}"), role)
        for model_type in reviewed.types:
            found[model_type] = (*found.get(model_type, ()), rule)
    return found


def role_in(model_type: str, name: str, kind: str, entry: TypeEntry) -> str:
    """The role of a module (or a bare weight, whose kind is ""): reviewed, else by its place in
    the model, else by its name, else by its kind; UNKNOWN where none of them tells."""
    for pattern, role in load_roles().get(model_type, ()):
        if pattern.fullmatch(name):
            return role
    return role_in_place(name, kind, entry.input_embedding, entry.output_embedding)


def with_roles(atlas: Atlas) -> Atlas:
    """The atlas with its roles assigned again, for when a rule has changed."""

    def again(model_type: str, entry: TypeEntry) -> TypeEntry:
        return replace(
            entry,
            projections=tuple(
                replace(p, role=role_in(model_type, next(names.expand(p.name)), p.kind, entry))
                for p in entry.projections
            ),
            bare=tuple(
                replace(s, role=role_in(model_type, next(names.expand(s.name)), "", entry))
                for s in entry.bare
            ),
        )

    return replace(atlas, types={t: again(t, e) for t, e in atlas.types.items()})
