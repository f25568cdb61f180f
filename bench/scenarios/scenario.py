"""Scenarios: which modules to adapt and to train whole, in roles or in literal names.

A scenario in roles runs on every architecture that has the roles; one in literal names is what
somebody published. They live in `fixtures/scenarios/*.toml`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.adapters.checks import Rank
from bench.adapters.config import AdapterConfig
from bench.errors import BenchError, UnknownName, lookup
from bench.files import FIXTURES, parse, read_toml
from bench.models.architectures import Model
from bench.models.declared import Architecture
from bench.models.modules import OTHER, ModuleTable
from bench.models.roles import FUSED, check_role, role_in_table, role_of, serves
from bench.tasks import BY_CLASS


@dataclass(frozen=True)
class Expected:
    """What its author states of a scenario: counts, and which other it is the same as."""

    adapted_layers: int | None = None
    dead_entries: tuple[str, ...] = ()
    same_as: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Scenario:
    """One choice of target modules.

    Either `roles` (with `optional_roles`, adapted where the architecture has them, and
    `saved_roles`) or literal `target_modules` and `modules_to_save` is given. `optional` names
    entries that may reach nothing. `architectures` is empty for a scenario for all of them.
    `thresholds` are the scenario's own, by metric: see `bench.baselines`.
    """

    name: str
    roles: tuple[str, ...] = ()
    optional_roles: tuple[str, ...] = ()
    saved_roles: tuple[str, ...] = ()
    target_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    r: Rank = 8
    ranks: tuple[Rank, ...] = ()
    lora_alpha: int | float = 32
    lora_dropout: int | float = 0.0
    architectures: tuple[str, ...] = ()
    source: str = ""
    expected: Expected = Expected()
    thresholds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def literal(self) -> bool:
        return bool(self.target_modules)

    @property
    def measured_ranks(self) -> tuple[int, ...]:
        """The ranks at which the scenario was published."""
        return self.ranks or (self.r,)

    def applies_to(self, architecture: Architecture) -> bool:
        """Whether it was written for this architecture and finds its roles there."""
        if self.architectures and architecture.name not in self.architectures:
            return False
        return self.literal or not self._missing(architecture.roles)

    def _missing(self, present: Sequence[str]) -> list[str]:
        """Wanted roles that are not there, not even in a fused projection wanted as a whole."""
        usable = self._usable(present)
        return [
            role
            for role in (*self.roles, *self.saved_roles)
            if not any(serves(r, role) for r in (*usable, *(set(present) & {*self.saved_roles})))
        ]

    def resolve_roles(self, present: Sequence[str], label: str) -> tuple[str, ...]:
        """The roles, as an architecture has them, that this scenario adapts.

        A fused projection is adapted when everything that it does is asked for. Raises BenchError
        naming the roles that are missing, or that only exist fused with others.
        """
        if missing := self._missing(present):
            fused = [r for r in present if any(serves(r, m) for m in missing) and r in FUSED]
            why = (
                f"it fuses {', '.join(FUSED[fused[0]])} in one projection: ask for all of them"
                if fused
                else f"it has {', '.join(present)}"
            )
            raise BenchError(
                f"scenario {self.name!r} wants role {', '.join(missing)}, which {label} does not "
                f"have: {why}"
            )
        return self._usable(present)

    def _usable(self, present: Sequence[str]) -> tuple[str, ...]:
        """Those that are wanted, or do nothing but what is."""
        wanted = {*self.roles, *self.optional_roles}
        return tuple(r for r in present if r in wanted or wanted.issuperset(FUSED.get(r, (r,))))

    def adapter(self, model: Model, r: int | None = None) -> AdapterConfig:
        """The LoRA configuration of this scenario on `model`, at rank `r` (default: its own).

        The task type and the fresh heads follow from the model's class. Dropout is left out where
        experts are adapted: PEFT's wrapper for parameters has none.
        """
        from bench.targets import match
        from bench.targets.hazards import frozen_heads

        adapter = self._adapter(model, r)
        task = BY_CLASS.get(model.task_class)
        if model.architecture or task is None or not task.label_heads:  # or one declares its heads
            return adapter
        left = [name.partition(".")[0] for name in frozen_heads(match(model.table, adapter))]
        base = f"{model.table.base_model}."
        heads = [
            head
            for head in dict.fromkeys(left)
            if not any(n.startswith(base) and n.endswith(head) for n in model.table.by_name)
        ]  # PEFT would train those of the base model too
        return replace(adapter, modules_to_save=(*adapter.modules_to_save, *heads))

    def _adapter(self, model: Model, r: int | None) -> AdapterConfig:
        task = BY_CLASS.get(model.task_class)
        task_type, unnamed = (task.task_type, task.unnamed_heads) if task else (None, ())
        heads = [h for h in unnamed if any(name.endswith(h) for name in _names(model))]
        rank = self.r if r is None else r
        if self.literal:
            saved = tuple(dict.fromkeys((*self.modules_to_save, *heads)))
            return AdapterConfig(
                self.target_modules, rank, self.lora_alpha, self.lora_dropout,
                modules_to_save=saved, task_type=task_type,
            )  # fmt: skip
        places = _places(model)
        present = tuple(dict.fromkeys(p.role for p in places))
        chosen = [p for p in places if p.role in self.resolve_roles(present, model.label)]
        saved = tuple(p.module for p in places if p.role in self.saved_roles)
        modules = [p for p in chosen if not p.is_parameter]
        parameters = tuple(p.module for p in chosen if p.is_parameter)
        targets: tuple[str, ...] | str = tuple(dict.fromkeys(p.module for p in modules))
        if any(p.regex for p in modules):
            parts = [p.module if p.regex else p.module.replace(".", r"\.") for p in modules]
            targets = rf"(?:.*\.)?(?:{'|'.join(parts)})"
        return AdapterConfig(
            targets, rank, self.lora_alpha, 0.0 if parameters else self.lora_dropout,
            target_parameters=parameters, modules_to_save=tuple(dict.fromkeys((*saved, *heads))),
            task_type=task_type,
        )  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """Where a role is found: a target_modules entry, or a target_parameters one."""

    role: str
    module: str
    regex: bool = False
    is_parameter: bool = False


def _names(model: Model) -> list[str]:
    """Its modules' names, their ends where they are declared: for those nothing has to be built."""
    if model.architecture is not None:
        return [p.module for p in model.architecture.projection]
    return [m.name for m in model.table.modules]


def _places(model: Model) -> list[_Place]:
    if model.architecture is not None:
        return [
            _Place(p.role, p.module, p.regex, p.kind == "expert")
            for p in model.architecture.projection
        ]
    return _places_in(model.table)


def _places_in(table: ModuleTable) -> list[_Place]:
    """Roles by rule, for a model that nobody declared: bare names where they are unambiguous."""
    roles = {m.name: role_in_table(table, m.name) for m in table.modules if m.kind != OTHER}
    places = []
    for name, role in roles.items():
        leaf = name.rpartition(".")[2]
        alike = {r for n, r in roles.items() if n == leaf or n.endswith(f".{leaf}")}
        places.append(_Place(role, leaf if alike == {role} else name))
    places += [
        _Place(role_of(p.name), ".".join(p.name.split(".")[-3:]), is_parameter=True)
        for p in table.expert_parameters
    ]
    return list(dict.fromkeys(places))


def load_scenarios(folder: Path | None = None) -> dict[str, Scenario]:
    """Every scenario by name. Raises BenchError, naming file and key, on anything unknown."""
    scenarios: dict[str, Scenario] = {}
    for path in sorted((folder or FIXTURES / "scenarios").glob("*.toml")):
        for scenario in _read(path):
            if scenario.name in scenarios:
                raise BenchError(f"{path}: scenario {scenario.name!r} is defined twice")
            scenarios[scenario.name] = scenario
    return scenarios


def find_scenario(name: str) -> Scenario:
    """The scenario called `name`; UnknownName with the nearest known ones."""
    return lookup("scenario", name, load_scenarios())


def matching_scenarios(patterns: Sequence[str], architecture: Architecture | None) -> list[str]:
    """Names that the patterns (`published-*`) match, of scenarios that apply to `architecture`;
    names without a wildcard as they are. UnknownName for a name or pattern that finds nothing."""
    known = load_scenarios()
    found: list[str] = []
    for pattern in patterns:
        if not set(pattern) & set("*?["):
            found.append(find_scenario(pattern).name)
            continue
        applying = [
            scenario.name
            for scenario in known.values()
            if architecture is None or scenario.applies_to(architecture)
        ]
        matched = fnmatch.filter(applying, pattern)
        if not matched:
            raise UnknownName("scenario", pattern, applying)
        found += matched
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _File:
    scenario: dict[str, dict[str, Any]]
    source: str = ""
    architectures: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


def _read(path: Path) -> list[Scenario]:
    file = parse(read_toml(path), _File, str(path))
    whole = {"source": file.source, "architectures": file.architectures}
    found = []
    for name, values in file.scenario.items():
        where = f"{path}: scenario.{name}"
        scenario = parse({**file.defaults, **values}, Scenario, where, name=name, **whole)
        for key in ("roles", "optional_roles", "saved_roles"):
            for role in getattr(scenario, key):
                check_role(role, f"{where}.{key}")
        if bool(scenario.roles) == bool(scenario.target_modules):
            raise BenchError(f"{where}: give either roles or target_modules")
        found.append(scenario)
    return found
