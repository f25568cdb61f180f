"""Reviewed data beside the rules: how types build whose default does not (`overrides.toml`), and
roles that a name does not tell (`roles.toml`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.atlas import names
from bench.atlas.entries import Atlas, TypeEntry
from bench.errors import BenchError, check_keys
from bench.files import FIXTURES, read_toml
from bench.models.modules import CONVOLUTIONS, EMBEDDING
from bench.models.roles import EMBEDDING as EMBEDDING_ROLE
from bench.models.roles import HEAD, UNKNOWN, check_role, role_of

OWN = "own"  # as auto_class: the class in the type's own module
_OVERRIDES = FIXTURES / "atlas" / "overrides.toml"
_ROLES = FIXTURES / "atlas" / "roles.toml"
_OVERRIDE_KEYS = {"reason": str, "config": dict, "auto_class": str}
_ANY = "type"  # the table for every version; "transformers-4" is for one major version
_ROLE_KEYS = {"types": list, "module": str, "role": str, "reason": str}


@dataclass(frozen=True)
class Override:
    """How to build one type. `config` are configuration values; "" leaves the class to the rule."""

    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)
    auto_class: str = ""


@cache
def load_overrides(path: Path = _OVERRIDES) -> dict[str, dict[str, Override]]:
    """By table and model type. Raises BenchError, naming file and key, on anything unknown."""
    data = read_toml(path)
    check_keys(data, str(path), (_ANY, "transformers-4", "transformers-5"))
    found: dict[str, dict[str, Override]] = {}
    for table, types in data.items():
        found[table] = {}
        for model_type, values in types.items():
            _check(values, f"{path}: {table}.{model_type}", _OVERRIDE_KEYS, ("reason",))
            found[table][model_type] = Override(**values)
    return found


def override_for(model_type: str, major: int) -> Override | None:
    """The override of a type under transformers `major`, if there is one."""
    tables = load_overrides()
    for table in (f"transformers-{major}", _ANY):
        if model_type in tables.get(table, {}):
            return tables[table][model_type]
    return None


@cache
def load_roles(path: Path = _ROLES) -> dict[str, tuple[tuple[re.Pattern[str], str], ...]]:
    """By model type: ends of module names, and the roles that they have there.

    Raises BenchError, naming file and key, on anything unknown.
    """
    data = read_toml(path)
    check_keys(data, str(path), ("role",))
    found: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {}
    for number, values in enumerate(data.get("role", ()), 1):
        where = f"{path}: role {number}"
        _check(values, where, _ROLE_KEYS, _ROLE_KEYS)
        pattern = re.escape(values["module"]).replace(r"\*", r"\d+")
        rule = (re.compile(rf"(?:.*\.)?{pattern}"), check_role(values["role"], where))
        for model_type in values["types"]:
            found[model_type] = (*found.get(model_type, ()), rule)
    return found


def role_in(model_type: str, name: str, kind: str, entry: TypeEntry) -> str:
    """The role of a module (or a bare weight, whose kind is ""): reviewed, else by its place in
    the model, else by its name, else by its kind; UNKNOWN where none of them tells."""
    for pattern, role in load_roles().get(model_type, ()):
        if pattern.fullmatch(name):
            return role
    if name == entry.output_embedding:
        return HEAD
    if name == entry.input_embedding and kind == EMBEDDING:
        return EMBEDDING_ROLE
    role = role_of(name)
    if role == UNKNOWN and kind in CONVOLUTIONS:
        return "convolution"
    if role == UNKNOWN and kind == EMBEDDING:
        return EMBEDDING_ROLE
    return role


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


def _check(
    values: Mapping[str, Any], where: str, kinds: Mapping[str, type], required: object
) -> None:
    check_keys(values, where, kinds, required)  # type: ignore[arg-type]
    for key, value in values.items():
        if type(value) is not kinds[key]:
            raise BenchError(f"{where}: {key}: expected {kinds[key].__name__}, found {value!r}")
