"""The inverse: which LoRA configurations train exactly this many parameters on a model.

Somebody has a number in a log and wants to know what was trained. For a set S of entries the count
is linear in the rank,

    trainable  =  r · Σ_S (in + out)  +  bias(S)  +  magnitudes(S)  +  saved copies,

so every set of entries × bias × DoRA × saved modules is tried, the popular ones first, and the rank
follows by division. One of some of the layers may give the number too: on layers that are alike, k
of them train k times what one does; those come after the likely ones of the whole model. What is
shown is computed again by the match ledger and the formulas.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby, product
from operator import itemgetter
from typing import Any

from bench.adapters.config import NO_TARGETS, AdapterConfig
from bench.errors import BenchError
from bench.explain.candidates import EntrySets, Extra, extras_of, model_entries, unusual
from bench.explain.found import Explanation, Found
from bench.explain.popular import Popular, popular
from bench.explain.totals import packed_total, remark
from bench.formulas.lora import lora_parameters
from bench.models.modules import ModuleTable
from bench.targets import match

SEARCHED_RANK = 1024
SEARCHED = (
    "the popular sets on the whole model and on each of its stacks (the seven names, attention, "
    "feed-forward, query and value, all-linear, PEFT's and Unsloth's defaults), and every set of "
    "the model's linear layers, expert weights, embedding and head (the 13 largest); "
    f"r 1 to {SEARCHED_RANK}, bias none, all and lora_only, DoRA, the task heads, embedding and "
    "head in modules_to_save; of some layers only, where they are alike: every set of linear "
    "layers without bias and DoRA"
)
"""What `explain` tries, in words."""
_SHOWN = 10
_SHOWN_BESIDE = 3
"""So many of some layers only stand beside the likely ones of all layers."""
_COMMON_RANKS = {8: 0, 16: 0, 32: 0.2, 64: 0.2}
_UNLIKELY = 5
"""From this score on, some of the layers are likelier than what all of them give."""
_KNOWN_RANKS = (1, 2, 4, 128, 256)


def check_counts(trainable: int, total: int | None) -> None:
    """Raise BenchError for counts that no model has."""
    if trainable < 1:
        raise BenchError(f"--trainable must be at least 1, not {trainable}")
    if total is not None and total < trainable:
        raise BenchError(f"--total {total} is smaller than --trainable {trainable}")


def explain(table: ModuleTable, trainable: int, total: int | None = None) -> Explanation:
    """Every LoRA configuration on the model with exactly `trainable` trained parameters.

    Tried: what SEARCHED says; some of the layers stand apart where all of them give the number at
    a likely configuration. With `total`, the others are left out where a configuration gives it
    too. Raises BenchError for a count below 1 or a total below the count.
    """
    return Search(table).explain(trainable, total)


class Search:
    """The candidates of one model, made once for any number of questions."""

    def __init__(self, table: ModuleTable) -> None:
        self.table = table
        self.popular = popular(table)
        self.sets = EntrySets(model_entries(table))
        self.extras = list(extras_of(table))
        self._known = {s.names: s for s in reversed(self.popular)}
        self._forms: dict[tuple[frozenset[str], int], AdapterConfig | None] = {}

    def explain(self, trainable: int, total: int | None = None) -> Explanation:
        """What `explain` answers for this model."""
        check_counts(trainable, total)
        base = self.table.total_parameters
        full = trainable == base
        packed = packed_total(self.table) - base
        everywhere = (*self._popular(trainable), *self._sets(trainable))
        whole, more = self._best(everywhere, trainable, total)
        some, some_more = self._best(self._layers(trainable), trainable, total)
        every = [*whole, *some]
        if fitting := [f for f in every if total in (f.total, f.total + packed)]:
            # What was counted beyond those looked at is of a total that another has.
            whole, some = ([f for f in found if f in fitting] for found in (whole, some))
            more, some_more = more * bool(whole), some_more * bool(some)
        left = [*whole, *some]
        told = remark(self.table, trainable, total, left, len(every))
        shown, beside = whole[:_SHOWN], some[:_SHOWN_BESIDE]
        if not (full or any(f.score < _UNLIKELY for f in whole)):
            shown, beside = sorted(left, key=lambda f: f.score)[:_SHOWN], []
        partly = sum(bool(f.adapter.layers_to_transform) for f in (*shown, *beside))
        missed = not (left or full)
        return Explanation(
            trainable, base, tuple(shown), self._nearest(trainable) if missed else (), told, full,
            self.tried, self._nearest_usual(trainable) if missed else (),
            len(left) + more + some_more - len(shown) - len(beside),
            tuple(beside), len(some) + some_more - partly,
        )  # fmt: skip

    @property
    def tried(self) -> int:
        """Configurations, each of them at every rank."""
        whole = (len(self.popular) + len(self.sets)) * len(self.extras) * 6
        return whole + int(self.sets.layers.sum()) * len(self.extras)

    def _best(
        self, found: Iterable[Found], trainable: int, total: int | None
    ) -> tuple[list[Found], int]:
        """The most plausible, counted again, one of those that adapt the same; and how many there
        are beside them, of which some may adapt the same."""
        packed = packed_total(self.table) - self.table.total_parameters

        def order(f: Found) -> tuple[bool, float, int]:
            return total not in (f.total, f.total + packed), f.score, f.adapter.r

        kept: dict[object, Found] = {}
        ordered = sorted(found, key=order)
        for candidate in ordered[: 4 * _SHOWN]:
            verified = _verified(self.table, candidate)
            if verified and verified[0].trainable == trainable:
                kept.setdefault(verified[1], verified[0])
        fitting = [f for f in ordered if not order(f)[0]]  # all others are left out beside them
        return list(kept.values()), max(0, len(fitting or ordered) - 4 * _SHOWN)

    def _form(self, popular: Popular) -> AdapterConfig | None:
        """What `Popular.configured` says, asked for once whatever the number of questions."""
        key = popular.names, popular.per_rank
        if key not in self._forms:
            self._forms[key] = popular.configured(self.table)
        return self._forms[key]

    def _popular(self, trainable: int) -> Iterator[Found]:
        for s in self.popular:
            for extra in self.extras:
                left = trainable - extra.elements
                if left < s.per_rank or not s.names.isdisjoint(extra.saved):
                    continue
                for bias, biases, dora, score in _variants(extra, s.bias, s.experts):
                    r, rest = divmod(left - biases - dora * s.features, s.per_rank)
                    if rest == 0 and 1 <= r <= SEARCHED_RANK and (form := self._form(s)):
                        adapter = _with(extra, form, r, bias, dora)
                        yield self._found(
                            adapter, trainable, biases, s.score + extra.score + score, s.note
                        )

    def _sets(self, trainable: int) -> Iterator[Found]:
        sets = self.sets
        for extra in self.extras:
            for bias, _, dora, score in _variants(extra, 1, False):
                biases = {"none": 0, "all": extra.all_biases}.get(bias, sets.bias)
                left = trainable - extra.elements - biases - dora * sets.features
                fits = _fits(left, sets.per_rank)
                if dora:
                    fits &= sets.modules_only
                if bias == "lora_only":
                    fits &= sets.bias > 0
                for index in fits.nonzero()[0]:
                    picked = sets.picked(int(index))
                    if any(m.name in extra.saved for e in picked for m in e.modules):
                        continue
                    of_bias = int(biases if isinstance(biases, int) else biases[index])
                    r = trainable - extra.elements - of_bias - dora * int(sets.features[index])
                    r //= int(sets.per_rank[index])
                    adapter = _with(extra, _of_entries(picked), r, bias, dora)
                    yield self._found(
                        adapter, trainable, of_bias, unusual(picked) + extra.score + score
                    )

    def _found(
        self, adapter: AdapterConfig, trainable: int, biases: int, score: float, note: str = ""
    ) -> Found:
        total = self.table.total_parameters + trainable - biases
        return Found(adapter, trainable, total, score + _odd_rank(adapter.r), note)

    def _layers(self, trainable: int) -> Iterator[Found]:
        """The same set in the first k layers, of layers that are alike: any k of them do."""
        sets = self.sets
        alike = sets.layers > 1
        one = sets.per_rank // sets.layers.clip(1)
        for extra in self.extras:
            for k in range(1, int(sets.layers.max(initial=0))):
                fits = _fits(trainable - extra.elements + 0 * one, one * k)
                for index in (fits & alike & (sets.layers > k)).nonzero()[0]:
                    picked = sets.picked(int(index))
                    r = (trainable - extra.elements) // int(one[index] * k)
                    whole = _with(extra, _of_entries(picked), r)
                    adapter = whole.but(layers_to_transform=tuple(range(k)))
                    known = self._known.get(frozenset(m.name for e in picked for m in e.modules))
                    score = (known.score if known else unusual(picked)) + extra.score
                    note = f"any {k} of {int(sets.layers[index])} layers"
                    note = f"{known.note}, {note}" if known else note
                    yield self._found(adapter, trainable, 0, score, note)

    def _nearest(self, trainable: int) -> tuple[Found, ...]:
        """The five nearest of all that was tried, the likelier of two as near."""
        order = _nearest_first(trainable)
        found = heapq.merge(
            sorted(self._near_sets(trainable), key=order),
            self._near_layers(trainable),
            sorted(self._near_popular(trainable), key=order),
            key=order,
        )
        return self._verified_nearest(found, trainable, 5)

    def _nearest_usual(self, trainable: int) -> tuple[Found, ...]:
        """The three nearest of what somebody is likely to have written."""
        found = sorted(self._near_popular(trainable), key=_nearest_first(trainable))
        return self._verified_nearest((f for f in found if f.score < _UNLIKELY), trainable, 3)

    def _verified_nearest(
        self, found: Iterable[Found], trainable: int, most: int
    ) -> tuple[Found, ...]:
        """The first of `found`, which come in their order, that adapt different things."""
        kept: dict[object, Found] = {}
        for candidate in found:
            if verified := _verified(self.table, candidate):
                kept.setdefault(verified[1], verified[0])
            if len(kept) == most:
                break
        return tuple(sorted(kept.values(), key=lambda f: abs(f.trainable - trainable)))

    def _near_popular(self, trainable: int) -> Iterator[Found]:
        for extra, s in product(self.extras, self.popular):
            if s.names.isdisjoint(extra.saved):
                for bias, biases, dora, score in _variants(extra, s.bias, s.experts):
                    beside = extra.elements + biases + dora * s.features
                    r = max(1, min(SEARCHED_RANK, round((trainable - beside) / s.per_rank)))
                    if form := self._form(s):
                        yield self._found(
                            _with(extra, form, r, bias, dora),
                            beside + r * s.per_rank,
                            biases,
                            s.score + extra.score + score,
                            s.note,
                        )

    def _near_sets(self, trainable: int) -> Iterator[Found]:
        """The nearest sets with each of what may be trained beside them."""
        sets = self.sets
        for extra in self.extras:
            for bias, _, dora, score in _variants(extra, 1, False):
                biases = {"none": 0, "all": extra.all_biases}.get(bias, sets.bias)
                beside = extra.elements + biases + dora * sets.features
                asked = (sets.modules_only | (not dora)) & ((sets.bias > 0) | (bias != "lora_only"))
                for index, r, off in _near(trainable - beside, sets.per_rank, asked):
                    picked = sets.picked(index)
                    if any(m.name in extra.saved for e in picked for m in e.modules):
                        continue
                    of_bias = int(biases if isinstance(biases, int) else biases[index])
                    adapter = _with(extra, _of_entries(picked), r, bias, dora)
                    likely = unusual(picked) + extra.score + score
                    yield self._found(adapter, trainable + off, of_bias, likely)

    def _near_layers(self, trainable: int) -> Iterator[Found]:
        """The nearest sets in some of the layers, the nearest first: of thousands a few are asked
        for, and only those are made."""
        sets = self.sets
        one = sets.per_rank // sets.layers.clip(1)
        near = [
            (abs(off), extra, k, index, r, off)
            for extra in self.extras
            for k in range(1, int(sets.layers.max(initial=0)))
            for index, r, off in _near(
                trainable - extra.elements + 0 * one, one * k, sets.layers > max(k, 1)
            )
        ]
        near.sort(key=itemgetter(0))
        for _, as_near in groupby(near, itemgetter(0)):
            found = []
            for _, extra, k, index, r, off in as_near:
                picked = sets.picked(index)
                whole = _with(extra, _of_entries(picked), r)
                adapter = whole.but(layers_to_transform=tuple(range(k)))
                note = f"any {k} of {int(sets.layers[index])} layers"
                likely = unusual(picked) + extra.score + _UNLIKELY
                found.append(self._found(adapter, trainable + off, 0, likely, note))
            yield from sorted(found, key=lambda f: f.score)


def _nearest_first(trainable: int) -> Callable[[Found], tuple[int, float]]:
    """The order of what is near a count: the likelier of two as near before the other."""
    return lambda f: (abs(f.trainable - trainable), f.score)


_NEAR = 8
"""So many sets are looked at of those that are nearest with the same beside them."""


def _near(left: Any, per_rank: Any, asked: Any) -> Iterator[tuple[int, int, int]]:
    """(index, rank, how far off) of the sets of `asked` whose multiple of `per_rank` is nearest."""
    ranks = (left / per_rank.clip(1)).round().clip(1, SEARCHED_RANK).astype(int)
    off = ranks * per_rank - left
    known = (asked & (per_rank > 0)).nonzero()[0]
    for index in known[abs(off[known]).argsort(kind="stable")[:_NEAR]]:
        yield int(index), int(ranks[index]), int(off[index])


def _fits(left: Any, per_rank: Any) -> Any:
    """Where `left` is a whole multiple of `per_rank`, up to the largest rank."""
    safe = per_rank.clip(1)
    return (per_rank > 0) & (left > 0) & (left % safe == 0) & (left // safe <= SEARCHED_RANK)


def _variants(extra: Extra, bias: int, experts: bool) -> Iterator[tuple[str, int, bool, float]]:
    """(bias, biases, DoRA, how unlikely) of what may be trained beside the matrices."""
    for kind, biases in (("none", 0), ("lora_only", bias), ("all", extra.all_biases)):
        if kind == "none" or biases:
            for dora in (False,) if experts else (False, True):
                yield kind, biases, dora, 3 * (kind != "none") + 1.5 * dora


def _with(
    extra: Extra, form: AdapterConfig, r: int, bias: str = "none", dora: bool = False
) -> AdapterConfig:
    return extra.adapter.but(
        r=r,
        bias=bias,
        use_dora=dora,
        target_modules=form.target_modules,
        target_parameters=form.target_parameters,
        exclude_modules=form.exclude_modules,
    )


_NOTHING = AdapterConfig(NO_TARGETS)


def _of_entries(picked: Iterable[Any]) -> AdapterConfig:
    entries = list(picked)
    return _NOTHING.but(
        target_modules=tuple(e.name for e in entries if e.modules) or NO_TARGETS,
        target_parameters=tuple(e.name for e in entries if e.parameters),
    )


def _odd_rank(r: int) -> float:
    if r in _COMMON_RANKS:
        return _COMMON_RANKS[r]
    if r in _KNOWN_RANKS:
        return 1
    return 2 if r % 8 == 0 else 3 if r % 2 == 0 else 4


def _verified(table: ModuleTable, found: Found) -> tuple[Found, object] | None:
    """The same configuration with the counts of the ledger and the formulas, and what it trains;
    None where PEFT refuses it, or no closed form is known."""
    try:
        ledger = match(table, found.adapter, described=False)
        if ledger.refusals:
            return None
        counted = lora_parameters(ledger)
    except BenchError:
        return None
    same = (
        tuple((a.name, a.r) for a in ledger.adapted), ledger.saved, found.adapter.bias,
        found.adapter.use_dora, found.adapter.ensure_weight_tying,
    )  # fmt: skip
    return replace(found, trainable=counted.trainable, total=counted.total), same
