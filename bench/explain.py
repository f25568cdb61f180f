"""The inverse: which LoRA configurations train exactly this many parameters on a model.

Somebody has a number in a log and wants to know what was trained. For a set S of entries the count
is linear in the rank,

    trainable  =  r · Σ_S (in + out)  +  bias(S)  +  magnitudes(S)  +  saved copies,

so every set of entries × bias × DoRA × saved modules is tried, and the rank follows by division.
What is shown is computed again by the match ledger and the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.adapters import TASK_HEADS, AdapterConfig
from bench.errors import BenchError
from bench.formulas.lora import (
    bias_term,
    lora_parameters,
    module_matrices,
    parameter_matrices,
    saved_term,
)
from bench.modules import CONV1D, EMBEDDING, LINEAR, Module, ModuleTable, Parameter
from bench.roles import FUSED, HEAD, ROUTER, role_of
from bench.targets import match

LARGEST_RANK = 1024
_MOST_ENTRIES = 13
_SHOWN = 10
_COMMON_RANKS = {8: 0, 16: 0, 32: 0.2, 64: 0.2}
_KNOWN_RANKS = (1, 2, 4, 128, 256)

# What people adapt, in roles; a fused projection counts as all that it does.
_POPULAR: tuple[tuple[set[str], str], ...] = (
    ({"query", "value"}, "query and value"),
    ({"query", "key", "value"}, "query, key and value"),
    ({"query", "key", "value", "output"}, "attention"),
    ({"gate", "up", "down"}, "feed-forward"),
    ({"query", "key", "value", "output", "gate", "up", "down"}, "attention and feed-forward"),
)
# What people write whatever the model is called; some of it reaches nothing there.
_WRITTEN = (
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "v_proj"),
    ("c_attn", "c_proj", "c_fc"),
    ("query", "value"),
)


@dataclass(frozen=True)
class Found:
    """A configuration, what it trains, and the total that PEFT prints with it.

    `score` orders by plausibility, the lowest first; `note` tells what is special.
    """

    adapter: AdapterConfig
    trainable: int
    total: int
    score: float
    note: str = ""

    def describe(self) -> str:
        adapter = self.adapter
        parts = [f"r {adapter.r}"]
        if adapter.target_modules and adapter.target_modules != ("-",):
            parts.append(", ".join(adapter.target_modules))
        if adapter.target_parameters:
            parts.append("target_parameters " + ", ".join(adapter.target_parameters))
        if adapter.use_dora:
            parts.append("DoRA")
        if adapter.bias != "none":
            parts.append(f"bias {adapter.bias}")
        if adapter.modules_to_save:
            parts.append("modules_to_save " + ", ".join(adapter.modules_to_save))
        if adapter.ensure_weight_tying:
            parts.append("ensure_weight_tying")
        if adapter.task_type:
            parts.append(f"task type {adapter.task_type}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Explanation:
    """The exact configurations, the most plausible first; the nearest ones where there are none.

    `remark` says what a total that was given tells.
    """

    trainable: int
    base: int
    exact: tuple[Found, ...]
    nearest: tuple[Found, ...]
    remark: str = ""


@dataclass(frozen=True)
class _Entry:
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

    @property
    def features(self) -> int:
        return sum(m.out_features for m in self.modules)

    @property
    def bias(self) -> int:
        return sum(m.out_features for m in self.modules if m.bias)


@dataclass(frozen=True)
class _Extra:
    """What is trained beside the matrices, whatever S is."""

    adapter: AdapterConfig
    elements: int
    all_biases: int
    saved: tuple[str, ...]
    score: float


def explain(table: ModuleTable, trainable: int, total: int | None = None) -> Explanation:
    """Every LoRA configuration on the model with exactly `trainable` trained parameters.

    Tried: all sets of the model's linear entries, expert parameters, embedding and head; r from 1
    to 1024; bias none, all, lora_only; DoRA; the task heads; embedding and head in modules_to_save.
    With `total`, the configurations that give it too come first. Raises BenchError for a count
    below 1 or a total below the count.
    """
    if trainable < 1:
        raise BenchError(f"--trainable must be at least 1, not {trainable}")
    if total is not None and total < trainable:
        raise BenchError(f"--total {total} is smaller than --trainable {trainable}")
    sets = list(_sets(_entries(table), table))
    extras = list(_extras(table))
    exact = [f for s in sets for e in extras for f in _solve(table, s, e, trainable)]
    exact = sorted(exact, key=lambda f: (f.total != total, f.score, f.adapter.r))
    shown = [v for f in exact[: 3 * _SHOWN] if (v := _verified(table, f)).trainable == trainable]
    nearest: list[Found] = []
    if not shown:
        near = [_near(table, s, e, trainable) for s in sets for e in extras if e.score < 1]
        near = sorted(
            (f for f in near if f.score < 4),
            key=lambda f: (abs(f.trainable - trainable), f.score),
        )
        nearest = [_verified(table, f) for f in near[:5]]
    remark = _remark(table, trainable, total, shown)
    return Explanation(
        trainable, table.total_parameters, tuple(shown[:_SHOWN]), tuple(nearest), remark
    )


def _entries(table: ModuleTable) -> list[_Entry]:
    by_leaf: dict[str, list[Module]] = {}
    embedding_and_head = {table.input_embedding, table.output_embedding}
    for module in table.modules:
        plain = module.kind in (LINEAR, CONV1D) and role_of(module.name) not in (HEAD, "dense_head")
        if plain or module.name in embedding_and_head:
            by_leaf.setdefault(module.leaf, []).append(module)
    entries = []
    for leaf, modules in by_leaf.items():
        for name, group in _split(leaf, modules, table):
            odd = any(m.name in embedding_and_head or m.kind == EMBEDDING for m in group)
            roles = frozenset(role_of(m.name) for m in group)
            entries.append(_Entry(name, roles, tuple(group), odd=odd or ROUTER in roles))
    experts: dict[str, list[Parameter]] = {}
    for parameter in table.expert_parameters:
        experts.setdefault(".".join(parameter.name.split(".")[-2:]), []).append(parameter)
    for name, parameters in experts.items():
        roles = frozenset(role_of(p.name) for p in parameters)
        entries.append(_Entry(name, roles, parameters=tuple(parameters)))
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


@dataclass(frozen=True)
class _Set:
    entries: tuple[_Entry, ...]
    per_rank: int
    features: int
    bias: int
    score: float
    note: str


def _sets(entries: list[_Entry], table: ModuleTable) -> Iterator[_Set]:
    popular = _popular(entries, table)
    sizes = [(e.per_rank, e.features, e.bias) for e in entries]
    for mask in range(1, 1 << len(entries)):
        chosen = [i for i in range(len(entries)) if mask >> i & 1]
        picked = tuple(entries[i] for i in chosen)
        names = frozenset(e.name for e in picked)
        score, note = popular.get(names, (_unusual(picked), ""))
        per_rank, features, bias = (sum(sizes[i][k] for i in chosen) for k in range(3))
        yield _Set(picked, per_rank, features, bias, score, note)


def _popular(entries: list[_Entry], table: ModuleTable) -> dict[frozenset[str], tuple[float, str]]:
    """Sets of entries that people adapt: by role, and by names written without a look."""
    usual = [e for e in entries if not e.odd]
    everything = frozenset(e.name for e in usual if e.modules)
    found: dict[frozenset[str], tuple[float, str]] = {everything: (0, "every linear layer")}
    available = {role for e in usual for role in e.parts}
    for wanted, note in _POPULAR:
        names = frozenset(e.name for e in usual if e.parts <= wanted)
        reached = {role for e in usual if e.name in names for role in e.parts}
        if reached == wanted & available and {"query", "up"} & wanted <= reached:
            # PEFT's own default for most models is query and value.
            found.setdefault(names, (0.4 if wanted == _POPULAR[0][0] else 0.5, note))
    leaves = {m.leaf for m in table.modules}
    for written in _WRITTEN:
        names = frozenset(
            e.name for e in usual if e.modules and all(m.leaf in written for m in e.modules)
        )
        if names and not leaves >= set(written):
            found.setdefault(names, (1, f"all that {', '.join(written)} reach here"))
    return found


def _unusual(picked: Sequence[_Entry]) -> float:
    if any(e.odd for e in picked):
        return 4 + len(picked) / 10
    return 1 if len({role for e in picked for role in e.parts}) == 1 else 2


def _extras(table: ModuleTable) -> Iterator[_Extra]:
    """Saved modules × task heads, with a copy's elements and the biases outside."""
    heads = [
        task
        for task, names in TASK_HEADS.items()
        if task != "TOKEN_CLS" and any(m.leaf in names for m in table.modules)
    ]
    names = [n for n in (table.input_embedding, table.output_embedding) if n]
    leaves = [n.rpartition(".")[2] for n in names]
    saved = [(), *((leaf,) for leaf in leaves), *([tuple(leaves)] if len(leaves) > 1 else [])]
    for task, kept in product((*heads, None), saved):
        for tying in (False, True) if kept and table.tied else (False,):
            adapter = AdapterConfig(
                ("-",), modules_to_save=kept, task_type=task, ensure_weight_tying=tying, bias="all"
            )
            ledger = match(table, adapter)
            elements = saved_term(ledger, 0).trained if ledger.saved else 0
            # Without its head a task model trains on random outputs; with tied copies few do.
            score = 1.0 * bool(heads and not task) + (2 + len(kept) % 2) * bool(kept)
            yield _Extra(
                replace(adapter, bias="none"), elements, bias_term(ledger).trained, ledger.saved,
                score,
            )  # fmt: skip


def _solve(table: ModuleTable, s: _Set, extra: _Extra, trainable: int) -> Iterator[Found]:
    left = trainable - extra.elements
    if left < s.per_rank or any(m.name in extra.saved for e in s.entries for m in e.modules):
        return
    experts = any(e.parameters for e in s.entries)
    for bias, biases in (("none", 0), ("lora_only", s.bias), ("all", extra.all_biases)):
        if bias != "none" and not biases:
            continue
        for dora in (False,) if experts else (False, True):
            r, rest = divmod(left - biases - dora * s.features, s.per_rank)
            if rest == 0 and 1 <= r <= LARGEST_RANK:
                adapter = replace(_adapter(s, extra, r), bias=bias, use_dora=dora)
                score = _score(s, extra, r) + 3 * (bias != "none") + 1.5 * dora
                total = table.total_parameters + trainable - biases
                yield Found(adapter, trainable, total, score, s.note)


def _near(table: ModuleTable, s: _Set, extra: _Extra, trainable: int) -> Found:
    r = max(1, min(LARGEST_RANK, round((trainable - extra.elements) / s.per_rank)))
    count = extra.elements + r * s.per_rank
    total = table.total_parameters + count
    return Found(_adapter(s, extra, r), count, total, _score(s, extra, r), s.note)


def _adapter(s: _Set, extra: _Extra, r: int) -> AdapterConfig:
    return replace(
        extra.adapter,
        r=r,
        target_modules=tuple(e.name for e in s.entries if e.modules),
        target_parameters=tuple(e.name for e in s.entries if e.parameters),
    )


def _score(s: _Set, extra: _Extra, r: int) -> float:
    return s.score + extra.score + _odd_rank(r)


def _odd_rank(r: int) -> float:
    if r in _COMMON_RANKS:
        return _COMMON_RANKS[r]
    if r in _KNOWN_RANKS:
        return 1
    return 2 if r % 8 == 0 else 3 if r % 2 == 0 else 4


def _verified(table: ModuleTable, found: Found) -> Found:
    """The same configuration with the counts of the ledger and the formulas."""
    ledger = match(table, found.adapter)
    if ledger.refusals:
        return replace(found, trainable=0, total=0)
    counted = lora_parameters(ledger)
    return replace(found, trainable=counted.trainable, total=counted.total)


def _remark(table: ModuleTable, trainable: int, total: int | None, exact: Iterable[Found]) -> str:
    base = table.total_parameters
    if total is None:
        return ""
    found = list(exact)
    if any(f.total == total for f in found):
        return "the total fits"
    if total == base:
        return f"the total {total:,} is the base model's: the adapter is not in it"
    if found:
        return (
            f"the total {total:,} does not fit: it would be {found[0].total:,} "
            f"({total - found[0].total:+,})"
        )
    return f"total less trainable is {total - trainable:,}, the base model has {base:,}"
