"""What a configuration may adapt on a model, and train whole: entries, all sets of them, extras."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from bench.adapters.config import NO_TARGETS, AdapterConfig
from bench.formulas.lora import bias_term, module_matrices, parameter_matrices, saved_term
from bench.models.modules import (
    CONV1D,
    EMBEDDING,
    LINEAR,
    OTHER,
    Module,
    ModuleTable,
    Parameter,
    layer_of,
)
from bench.models.roles import FUSED, HEAD, ROUTER, role_of
from bench.targets import match
from bench.tasks import TASKS, Task

_MOST_ENTRIES = 13


@dataclass(frozen=True)
class Candidate:
    """One entry of target_modules or target_parameters that the model has, and what it reaches."""

    name: str
    roles: frozenset[str]
    modules: tuple[Module, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    odd: bool = False  # the embedding, the head, a router: seldom adapted

    @property
    def parts(self) -> set[str]:
        """The roles, a fused projection as all that it does."""
        return {part for role in self.roles for part in FUSED.get(role, (role,))}

    @property
    def per_rank(self) -> int:
        return sum(module_matrices(m, 1).elements for m in self.modules) + sum(
            parameter_matrices(p, 1).elements for p in self.parameters
        )

    @cached_property
    def layers(self) -> int:
        """How many layers hold it, 0 where it is outside of them or they are not alike.

        PEFT counts the layers of an encoder and of a decoder together.
        """
        each: Counter[str] = Counter()
        for module in self.modules:
            each[layer_of(module.name).rpartition(".")[2]] += module_matrices(module, 1).elements
        alike = not self.parameters and len({*each.values()}) == 1
        return len(each) if alike and "" not in each else 0

    @property
    def features(self) -> int:
        return sum(m.out_features for m in self.modules)

    @property
    def bias(self) -> int:
        return sum(m.out_features for m in self.modules if m.bias)


@dataclass(frozen=True)
class Extra:
    """What is trained beside the matrices, whatever S is."""

    adapter: AdapterConfig
    elements: int
    all_biases: int
    saved: tuple[str, ...]
    score: float


def model_entries(table: ModuleTable) -> list[Candidate]:
    """The entries that somebody may write for this model, at most thirteen: the largest."""
    by_leaf: dict[str, list[Module]] = {}
    embedding_and_head = {table.input_embedding, table.output_embedding}
    for module in table.modules:
        plain = module.kind in (LINEAR, CONV1D) and role_of(module.name) not in (HEAD, "dense_head")
        # What cuts an image into patches is an input embedding too, and LoRA cannot adapt it whole.
        if plain or (module.name in embedding_and_head and module.kind != OTHER):
            by_leaf.setdefault(module.leaf, []).append(module)
    entries = []
    for leaf, modules in by_leaf.items():
        for name, group in _split(leaf, modules, table):
            odd = any(m.name in embedding_and_head or m.kind == EMBEDDING for m in group)
            roles = frozenset(role_of(m.name) for m in group)
            entries.append(Candidate(name, roles, tuple(group), odd=odd or ROUTER in roles))
    experts: dict[str, list[Parameter]] = {}
    for parameter in table.expert_parameters:
        experts.setdefault(".".join(parameter.name.split(".")[-2:]), []).append(parameter)
    for name, parameters in experts.items():
        roles = frozenset(role_of(p.name) for p in parameters)
        entries.append(Candidate(name, roles, parameters=tuple(parameters)))
    # Sets are enumerated: beyond a dozen entries the largest are kept.
    kept = sorted(entries, key=lambda e: (e.odd, -e.per_rank))[:_MOST_ENTRIES]
    return [e for e in entries if e in kept]


def _split(
    leaf: str, modules: list[Module], table: ModuleTable
) -> Iterator[tuple[str, list[Module]]]:
    """One entry a role where two segments of the name tell them apart, such as attn.c_proj."""
    groups: dict[str, list[Module]] = {}
    for module in modules:
        groups.setdefault(".".join(module.name.split(".")[-2:]), []).append(module)
    roles = {role_of(m.name) for m in modules}
    exact = all(
        len(group) == sum(m.name.endswith(f".{name}") for m in table.modules)
        for name, group in groups.items()
    )
    if 1 < len(groups) == len(roles) and exact:
        yield from groups.items()
    else:
        yield leaf, modules


class EntrySets:
    """Every set of some entries but the empty one, with what a count depends on as arrays.

    Attributes:
        per_rank: elements at rank 1.
        features: outputs, a magnitude each with DoRA.
        bias: biases.
        layers: how many layers hold each entry of the set, 0 where they are not alike.
    """

    def __init__(self, entries: list[Candidate]) -> None:
        import numpy as np

        self.entries = entries
        masks = np.arange(1 << len(entries))

        def summed(values: list[int]) -> Any:
            total = np.zeros(len(masks), dtype=np.int64)
            for bit, value in enumerate(values):
                total += (masks >> bit & 1) * value
            return total

        self.per_rank = summed([e.per_rank for e in entries])
        self.features = summed([e.features for e in entries])
        self.bias = summed([e.bias for e in entries])
        self.layers = np.zeros(len(masks), dtype=np.int64)
        numbers = {e.layers for e in entries}
        for number in numbers - {0, 1}:
            others = sum(1 << bit for bit, e in enumerate(entries) if e.layers != number)
            self.layers[(masks & others) == 0] = number
        self.modules_only = masks & sum(1 << b for b, e in enumerate(entries) if e.parameters) == 0

    def __len__(self) -> int:
        return len(self.per_rank) - 1

    def picked(self, index: int) -> tuple[Candidate, ...]:
        return tuple(e for bit, e in enumerate(self.entries) if index >> bit & 1)


def unusual(picked: Sequence[Candidate]) -> float:
    """How unlikely a set is that nobody has a name for."""
    if any(e.odd for e in picked):
        return 4 + len(picked) / 10
    return 1 if len({role for e in picked for role in e.parts}) == 1 else 2


def extras_of(table: ModuleTable) -> Iterator[Extra]:
    """Saved modules × task heads, with a copy's elements and the biases outside."""
    heads = [*_trained_heads(table)]
    names = [n for n in (table.input_embedding, table.output_embedding) if n]
    leaves = [n.rpartition(".")[2] for n in names]
    saved = [(), *((leaf,) for leaf in leaves), *([tuple(leaves)] if len(leaves) > 1 else [])]
    for (task, named), kept in product((*heads, (None, ())), saved):
        for tying in (False, True) if kept and table.tied else (False,):
            adapter = AdapterConfig(
                NO_TARGETS,
                modules_to_save=tuple(dict.fromkeys((*named, *kept))),
                task_type=task,
                ensure_weight_tying=tying,
                bias="all",
            )
            ledger = match(table, adapter, described=False)
            elements = saved_term(ledger).trained if ledger.saved else 0
            # Without its head a task model trains on random outputs; with tied copies few do.
            score = 1.0 * bool(heads and not (task or named)) + (2 + len(kept) % 2) * bool(kept)
            yield Extra(
                replace(adapter, bias="none"), elements, bias_term(ledger).trained, ledger.saved,
                score,
            )  # fmt: skip


def _trained_heads(table: ModuleTable) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    """(task type, modules_to_save) that train the task heads which the model has: the task type of
    its own class. Where that trains none of them, or is not known and several would, the heads are
    named: any task type but its own makes another model of the adapter."""
    leaves = {m.leaf for m in table.modules}
    endings = ((task, task.class_ending) for task in TASKS)
    own = next((t for t, end in endings if end and table.class_name.endswith(end)), None)
    by_heads: dict[tuple[str, ...], list[Task]] = {}
    for task in TASKS:
        if not leaves.isdisjoint(task.heads):
            by_heads.setdefault(task.heads, []).append(task)
    for heads, tasks in by_heads.items():
        if own in tasks or (own is None and len(tasks) == 1):
            yield (own or tasks[0]).task_type, ()
        else:
            yield None, tuple(name for name in heads if name in leaves)
