"""Reviewed data for the types whose default configuration does not build: `overrides.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bench.architectures import FIXTURES, read_toml
from bench.errors import BenchError, check_keys

FILE = FIXTURES / "atlas" / "overrides.toml"
OWN = "own"  # as auto_class: the class in the type's own module
_KEYS = ("reason", "config", "auto_class", "transformers")


@dataclass(frozen=True)
class Override:
    """How to build one type. `config` are configuration values; "" leaves the class to the rule."""

    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)
    auto_class: str = ""
    transformers: int | None = None


@cache
def load_overrides(path: Path | None = None) -> dict[str, Override]:
    """Override by model type. Raises BenchError, naming file and key, on anything unknown."""
    path = path or FILE
    found = {}
    data = read_toml(path)
    check_keys(data, str(path), ("type",))
    for model_type, values in data.get("type", {}).items():
        where = f"{path}: type.{model_type}"
        check_keys(values, where, _KEYS, ("reason",))
        for key, kind in zip(_KEYS, (str, dict, str, int), strict=True):
            if key in values and type(values[key]) is not kind:
                raise BenchError(f"{where}: {key}: expected {kind.__name__}")
        found[model_type] = Override(**values)
    return found


def override_for(model_type: str, major: int) -> Override | None:
    """The override of a type under transformers `major`, if there is one."""
    found = load_overrides().get(model_type)
    return found if found and found.transformers in (None, major) else None
