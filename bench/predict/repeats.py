"""Two traces of one step, with some layers and with one more: which events the longer one repeats,
and the events of a trace in which they are repeated further."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.predict.trace import Trace

Piece = tuple[int, int, bool]
"""Where a stretch of the longer trace begins and ends, and whether one more layer repeats it."""


def _tokens(trace: Trace, alone: set[object]) -> list[object]:
    """Events without their numbers: what begins or ends is told by its size and purpose; by the
    purpose only where the size is in `alone`."""
    sizes, categories, makers = trace.sizes, trace.categories, trace.makers
    kinds: list[object] = list(zip(categories, makers, sizes, strict=True))
    kinds = [kind[:2] if kind in alone else kind for kind in kinds]  # type: ignore[index]
    return [(e > 0, kinds[abs(e)]) for e in trace.events]


def pieces_of(less: Trace, more: Trace) -> list[Piece] | None:
    """The longer trace in pieces, in order: without the repeated ones it is the shorter trace, but
    for single storages that grow with every layer, such as a list of all layers' norms. None where
    the traces differ in another way."""
    if [name for _, name in less.marks] != [name for _, name in more.marks]:
        return None
    kinds = [set(zip(t.categories, t.makers, t.sizes, strict=True)) for t in (less, more)]
    alone: set[object] = kinds[0] ^ kinds[1]
    known: dict[object, int] = {}
    one, two = (
        [known.setdefault(token, len(known)) for token in _tokens(trace, alone)]
        for trace in (less, more)
    )
    pieces: list[Piece] = []
    for (a, b), (c, d) in zip(_phases(less), _phases(more), strict=True):
        found = _aligned(one[a:b], two[c:d])
        if found is None:
            return None
        pieces += [(c + start, c + end, again) for start, end, again in found]
    again = {more.events[i] for start, end, rep in pieces if rep for i in range(start, end)}
    if any((more.categories[n], more.makers[n], more.sizes[n]) in alone for n in map(abs, again)):
        return None  # what every layer adds must not change with their number
    return pieces


def _phases(trace: Trace) -> list[tuple[int, int]]:
    bounds = [0, *(index for index, _ in trace.marks), len(trace.events)]
    return list(pairwise(bounds))


def _aligned(less: list[int], more: list[int]) -> list[Piece] | None:
    """Walk through both until they part: the longer one has come to the piece that is a layer's,
    which it has just been through and now goes through once more. Then both agree again."""
    pieces: list[Piece] = []
    at, start, here = 0, 0, 0
    while here < len(more):
        if at < len(less) and less[at] == more[here]:
            at, here = at + 1, here + 1
            continue
        sizes = [n for n in range(1, here - start + 1) if _repeats(more, here, n)]
        size = max(sizes, key=lambda n: _agreeing(less, at, more, here + n), default=0)
        if not size or not _agreeing(less, at, more, here + size):
            return None
        pieces += [(start, here, False), (here, here + size, True)]
        start = here = here + size
    return [*pieces, (start, here, False)] if at == len(less) else None


def _repeats(events: list[int], at: int, size: int) -> bool:
    """Whether the `size` events before `at` come once more behind it."""
    return (
        events[at - size] == events[at]  # tells most apart
        and events[at - size : at] == events[at : at + size]
    )


def _agreeing(less: list[int], at: int, more: list[int], here: int) -> int:
    """How far both agree from there on; to the end of both is farther than any other."""
    count = 0
    while at + count < len(less) and here + count < len(more):
        if less[at + count] != more[here + count]:
            return count
        count += 1
    both = at + count == len(less) and here + count == len(more)
    return len(more) + 1 if both else count


def stretched_events(
    short: Trace, pieces: Sequence[Piece], times: int
) -> tuple[tuple[int, ...], list[int], tuple[tuple[int, str], ...]] | None:
    """The whole step's events, the storage of the short trace that each of its storages is like,
    and its marks. Storages of which one is the other a layer on are a family: which of them ends
    is the one that began last, or first, as in the short trace. None where that shows both."""
    family = _families(short, pieces)
    first_ends = _which_ends(short, family)
    if first_ends is None:
        return None
    order: list[int] = []
    first: dict[int, int] = {}  # where each event of the short trace comes first
    for start, end, again in pieces:
        for index in range(start, end):
            first[index] = len(order) + index - start
        order += [*range(start, end)] * (1 + times if again else 1)
    first[len(short.events)] = len(order)
    alive: dict[int, list[int]] = defaultdict(list)
    events, origins = [], [0]
    for index in order:
        event = short.events[index]
        which = family[abs(event)]
        if event > 0:
            origins.append(event)
            alive[which].append(len(origins) - 1)
            events.append(len(origins) - 1)
        elif not alive[which]:
            return None
        else:
            events.append(-alive[which].pop(0 if which in first_ends else -1))
    marks = tuple((first[index], name) for index, name in short.marks)
    return tuple(events), origins, marks


def _families(short: Trace, pieces: Sequence[Piece]) -> list[int]:
    """For each storage the first of its family: of two events a layer apart, within a repeated
    piece and as far as the trace goes on repeating itself around it, the storages are of one."""
    tokens = _tokens(short, set())
    family = list(range(len(short.sizes)))

    def root(number: int) -> int:
        while family[number] != number:
            family[number] = number = family[family[number]]
        return number

    for start, end, again in pieces:
        if not again:
            continue
        size, before, after = end - start, start, end
        while before > size and tokens[before - 1 - size] == tokens[before - 1]:
            before -= 1
        while after < len(tokens) and tokens[after - size] == tokens[after]:
            after += 1
        for index in range(before, after):
            one, other = (root(abs(short.events[i])) for i in (index - size, index))
            family[max(one, other)] = min(one, other)
    return [root(number) for number in range(len(family))]


def _which_ends(short: Trace, family: Sequence[int]) -> set[int] | None:
    """The families of which the first ends first; of all others the last does. None where one
    does both."""
    alive: dict[int, list[int]] = defaultdict(list)
    first: set[int] = set()
    last: set[int] = set()
    for event in short.events:
        held = alive[family[abs(event)]]
        if event > 0:
            held.append(event)
            continue
        if len(held) > 1 and short.sizes[-event]:  # of nothing it does not matter which ends
            if -event not in (held[0], held[-1]):
                return None
            (first if -event == held[0] else last).add(family[-event])
        held.remove(-event)
    return None if first & last else first
