"""The sets that people adapt: by names they write whatever the model is called, by the work that
projections do, on the whole model or on one of its stacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.errors import BenchError
from bench.formulas.lora import module_matrices, parameter_matrices
from bench.models.modules import CONV1D, LINEAR, Module, ModuleTable
from bench.models.roles import FUSED, ROUTER, role_of
from bench.models.stacks import Stack
from bench.targets import Adapted, match

_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Fields, how unlikely (0: what most recipes say), and what they are.
_WRITTEN: tuple[tuple[tuple[str, ...] | str | None, float, str], ...] = (
    (_SEVEN, 0.1, "the seven names of most recipes, and Unsloth's default"),
    (_SEVEN[:4], 0.5, "the four attention names"),
    (("q_proj", "v_proj"), 0.4, "query and value"),
    (None, 0.4, "PEFT's default"),
    (ALL_LINEAR, 0.2, "all-linear"),
    (("query", "value"), 1, "query and value"),
    (("c_attn", "c_proj", "c_fc"), 1, "GPT-2's names"),
)
# What people adapt, in roles; a fused projection counts as all that it does.
_WORK: tuple[tuple[set[str], float, str], ...] = (
    ({"query", "value"}, 0.4, "query and value"),
    ({"query", "key", "value"}, 0.5, "query, key and value"),
    ({"query", "key", "value", "output"}, 0.5, "attention"),
    ({"gate", "up", "down"}, 0.5, "feed-forward"),
    ({"query", "key", "value", "output", "gate", "up", "down"}, 0.1, "attention and feed-forward"),
)
_OUTSIDE = ("head", "dense_head", "embedding", "position_embedding")


@dataclass(frozen=True)
class Popular:
    """One set, with what its count depends on.

    `adapted` are its layers at rank 1 (2 where PEFT doubles); `given` the configuration that names
    them, where it is known before it is asked for.
    """

    adapted: tuple[Adapted, ...]
    score: float
    note: str
    given: AdapterConfig | None = None

    @cached_property
    def per_rank(self) -> int:
        of_modules = (module_matrices(a.module, a.r) for a in self.adapted if a.module)
        of_parameters = (parameter_matrices(a.parameter, a.r) for a in self.adapted if a.parameter)
        return sum(m.elements for m in (*of_modules, *of_parameters))

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        return tuple(a.module for a in self.adapted if a.module is not None)

    @cached_property
    def features(self) -> int:
        return sum(m.out_features for m in self.modules)

    @cached_property
    def bias(self) -> int:
        return sum(m.out_features for m in self.modules if m.bias)

    @property
    def experts(self) -> bool:
        return len(self.modules) < len(self.adapted)

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(a.name for a in self.adapted)

    def configured(self, table: ModuleTable) -> AdapterConfig | None:
        """A configuration that adapts exactly these; None where no form of it does."""
        if self.given is not None:
            return self.given
        for form in _forms(table, self.modules):
            ledger = match(table, form, _no_role, described=False)
            if {a.name for a in ledger.adapted} == self.names and not ledger.refusals:
                return form
        return None


def popular(table: ModuleTable) -> list[Popular]:
    """Every such set that the model has, the likeliest of equal ones only."""
    found: dict[tuple[frozenset[str], int], Popular] = {}
    for candidate in sorted((*_by_work(table), *_written(table)), key=lambda c: c.score):
        if candidate.adapted and candidate.per_rank:
            found.setdefault((candidate.names, candidate.per_rank), candidate)
    return list(found.values())


def _scopes(table: ModuleTable) -> Iterator[tuple[tuple[Stack, ...], str]]:
    """The stacks that a set may be held to, and what that is called; none of them: all."""
    yield (), ""
    if len(table.stacks) < 2:
        return
    main = table.main_stacks
    if main != table.stacks:
        yield main, f", {' and '.join(dict.fromkeys(s.kind for s in main))} model only"
    kinds = [s.kind for s in table.stacks]
    for stack in table.stacks:
        if (stack,) != main:
            yield (stack,), f", {stack.kind if kinds.count(stack.kind) == 1 else stack.label} only"


def _by_work(table: ModuleTable) -> Iterator[Popular]:
    linear = [m for m in table.modules if m.kind in (LINEAR, CONV1D)]
    roles = {m.name: role_of(m.name) for m in linear}
    usual = [
        m
        for m in linear
        if roles[m.name] not in (*_OUTSIDE, ROUTER) and m.name != table.output_embedding
    ]
    for stacks, where in _scopes(table):
        inside = [m for m in usual if not stacks or table.stack_of(m.name) in stacks]
        parts = {m.name: {*FUSED.get(roles[m.name], (roles[m.name],))} for m in inside}
        available = {part for some in parts.values() for part in some}
        yield _set(inside, 0.1 * bool(where), f"every linear layer{where}")
        for wanted, score, note in _WORK:
            chosen = [m for m in inside if parts[m.name] <= wanted]
            reached = {part for m in chosen for part in parts[m.name]}
            if reached == wanted & available and {"query", "up"} & wanted <= reached:
                yield _set(chosen, score + 0.1 * bool(where), f"{note}{where}")


def _set(modules: Iterable[Module], score: float, note: str) -> Popular:
    return Popular(tuple(Adapted(m.name, "", 1, module=m) for m in modules), score, note)


def _written(table: ModuleTable) -> Iterator[Popular]:
    leaves = {m.leaf for m in table.modules}
    for targets, score, note in _WRITTEN:
        for stacks, where in _scopes(table):
            if stacks and stacks != table.main_stacks:
                continue
            adapter = AdapterConfig(targets, r=1, exclude_modules=_others(table, stacks))
            try:
                ledger = match(table, adapter, _no_role)
            except BenchError:
                continue
            if ledger.refusals or not ledger.adapted:
                continue
            likely, said = score, note
            if targets is None:
                entries = tuple(e.entry for e in ledger.entries)
                adapter = replace(adapter, target_modules=entries)
            elif isinstance(targets, tuple):
                missing = [t for t in targets if t in ledger.dead_entries]
                adapter = replace(
                    adapter, target_modules=tuple(t for t in targets if t not in missing)
                )
                if missing and not leaves >= {*targets}:
                    likely, said = 1, f"all that {', '.join(targets)} reach here"
            yield Popular(ledger.adapted, likely + 0.1 * bool(where), said + where, adapter)


def _others(table: ModuleTable, stacks: tuple[Stack, ...]) -> str | None:
    """The expression for exclude_modules that holds the other stacks out."""
    inside = {s.prefix for s in stacks}
    outside = [s.prefix for s in table.stacks if s.prefix not in inside and s.prefix]
    outer = [p for p in outside if not any(p.startswith(f"{o}.") for o in outside)]
    holds = [p for p in outer if not any(i.startswith(f"{p}.") for i in inside)]
    if not stacks or not holds:
        return None
    return f"({'|'.join(map(re.escape, holds))})\\..*"


def _forms(table: ModuleTable, modules: tuple[Module, ...]) -> Iterator[AdapterConfig]:
    """Ways to write a set of modules, the shortest first."""
    names = [m.name for m in modules]
    stacks = tuple(dict.fromkeys(table.stack_of(name) for name in names))
    for excluded in dict.fromkeys((None, _others(table, stacks))):
        for size in (1, 2):
            entries = dict.fromkeys(".".join(name.split(".")[-size:]) for name in names)
            if len(entries) <= 30:
                yield AdapterConfig(tuple(entries), r=1, exclude_modules=excluded)
    parts = []
    for stack in stacks:
        ends = dict.fromkeys(_end(n) for n in names if table.stack_of(n) == stack)
        body = "|".join(re.escape(end) for end in ends)
        prefix = re.escape(f"{stack.prefix}.") if stack.prefix else ""
        parts.append(rf"{prefix}(.*\.)?({body})")
    yield AdapterConfig("|".join(parts), r=1)


def _end(name: str) -> str:
    """The last segment of a name, two where the last is a number or says nothing."""
    last = name.rpartition(".")[2]
    return ".".join(name.split(".")[-2:]) if last.isdigit() or last == "linear" else last


def _no_role(name: str) -> str:
    return ""
