"""The inverse: which LoRA configurations train exactly this many parameters on a model.

Somebody has a number in a log and wants to know what was trained. For a set S of entries the count
is linear in the rank,

    trainable  =  r · Σ_S (in + out)  +  bias(S)  +  magnitudes(S)  +  saved copies,

so every set of entries × bias × DoRA × saved modules is tried, and the rank follows by division.
Where no configuration of the whole model gives the number, one of some of its layers may: on layers
that are alike, k of them train k times what one does. What is shown is computed again by the match
ledger and the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bench.adapters.config import NO_TARGETS, AdapterConfig
from bench.errors import BenchError
from bench.explain.candidates import EntrySet, Extra, entry_sets, extras_of, model_entries
from bench.formulas.lora import lora_parameters
from bench.models.modules import ModuleTable
from bench.targets import match

LARGEST_RANK = 1024
SEARCHED = (
    "every set of the model's linear layers, expert weights, embedding and head (the 13 largest), "
    f"r 1 to {LARGEST_RANK}, bias none, all and lora_only, DoRA, the task heads, embedding and "
    "head in modules_to_save; of some layers only, where they are alike: every set of linear "
    "layers without bias and DoRA"
)
"""What `explain` tries, in words."""
_SHOWN = 10
_COMMON_RANKS = {8: 0, 16: 0, 32: 0.2, 64: 0.2}
_KNOWN_RANKS = (1, 2, 4, 128, 256)


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
        if adapter.target_modules and adapter.target_modules != NO_TARGETS:
            parts.append(", ".join(adapter.target_modules))
        if adapter.target_parameters:
            parts.append("target_parameters " + ", ".join(adapter.target_parameters))
        if isinstance(adapter.layers_to_transform, tuple):
            parts.append(f"layers_to_transform 0 to {adapter.layers_to_transform[-1]}")
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

    `remark` says what a total that was given tells; `full`, that the number is the model's own.
    """

    trainable: int
    base: int
    exact: tuple[Found, ...]
    nearest: tuple[Found, ...]
    remark: str = ""
    full: bool = False


def explain(table: ModuleTable, trainable: int, total: int | None = None) -> Explanation:
    """Every LoRA configuration on the model with exactly `trainable` trained parameters.

    Tried: what SEARCHED says; some of the layers only where nothing on all of them fits. With
    `total`, the configurations that give it too come first. Raises BenchError for a count below 1
    or a total below the count.
    """
    if trainable < 1:
        raise BenchError(f"--trainable must be at least 1, not {trainable}")
    if total is not None and total < trainable:
        raise BenchError(f"--total {total} is smaller than --trainable {trainable}")
    sets = list(entry_sets(model_entries(table), table))
    extras = list(extras_of(table))
    full = trainable == table.total_parameters
    found = (f for s in sets for e in extras for f in _solve(table, s, e, trainable))
    shown = _best(table, found, trainable, total)
    if not shown and not full:
        found = (f for s in sets for f in _solve_layers(table, s, extras, trainable))
        shown = _best(table, found, trainable, total)
    nearest: list[Found] = []
    if not shown and not full:
        near = [_near(table, s, e, trainable) for s in sets for e in extras if e.score < 1]
        near = sorted(
            (f for f in near if f.score < 4),
            key=lambda f: (abs(f.trainable - trainable), f.score),
        )
        nearest = [_verified(table, f) for f in near[:5]]
    remark = _remark(table, trainable, total, shown)
    return Explanation(
        trainable, table.total_parameters, tuple(shown[:_SHOWN]), tuple(nearest), remark, full
    )


def _best(
    table: ModuleTable, found: Iterable[Found], trainable: int, total: int | None
) -> list[Found]:
    """The most plausible, counted again."""
    order = sorted(found, key=lambda f: (f.total != total, f.score, f.adapter.r))
    return [v for f in order[: 3 * _SHOWN] if (v := _verified(table, f)).trainable == trainable]


def _solve(table: ModuleTable, s: EntrySet, extra: Extra, trainable: int) -> Iterator[Found]:
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


def _solve_layers(
    table: ModuleTable, s: EntrySet, extras: Iterable[Extra], trainable: int
) -> Iterator[Found]:
    """The same set in the first k layers, of layers that are alike: any k of them do."""
    number = s.entries[0].layers
    if number < 2 or any(e.layers != number for e in s.entries):
        return
    for extra in extras:
        ranks, rest = divmod(trainable - extra.elements, s.per_rank // number)
        for k in range(1, number) if rest == 0 and ranks > 0 else ():
            r, rest = divmod(ranks, k)
            if rest == 0 and 1 <= r <= LARGEST_RANK:
                adapter = replace(_adapter(s, extra, r), layers_to_transform=tuple(range(k)))
                note = f"any {k} of {number} layers"
                total = table.total_parameters + trainable
                yield Found(adapter, trainable, total, _score(s, extra, r), note)


def _near(table: ModuleTable, s: EntrySet, extra: Extra, trainable: int) -> Found:
    r = max(1, min(LARGEST_RANK, round((trainable - extra.elements) / s.per_rank)))
    count = extra.elements + r * s.per_rank
    total = table.total_parameters + count
    return Found(_adapter(s, extra, r), count, total, _score(s, extra, r), s.note)


def _adapter(s: EntrySet, extra: Extra, r: int) -> AdapterConfig:
    return replace(
        extra.adapter,
        r=r,
        target_modules=tuple(e.name for e in s.entries if e.modules),
        target_parameters=tuple(e.name for e in s.entries if e.parameters),
    )


def _score(s: EntrySet, extra: Extra, r: int) -> float:
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
