"""A step traced with few layers and stretched to all, and to other ranks, batches and lengths.

A model of 32 equal layers allocates 32 times what one layer does; to trace it whole is to trace the
same thing 32 times. Here a step is traced with three and with four layers. What the longer trace
holds beyond the shorter, wherever that is (each loop over layers has its place: loading, injecting,
forward, backward, the optimizer), is what one more layer adds, and is repeated. The first layer,
the last one and what lies outside of the layers stay as they were traced.

Nothing is fitted. Where layers are not all alike, or the two traces do not differ by whole repeated
pieces, the step is traced whole. The suites hold stretched traces against whole ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bench.predict.alike import layers_alike, shallow
from bench.predict.largest import SEQ_LEN, value_of, with_value

if TYPE_CHECKING:
    from bench.predict.kernels import Device
    from bench.predict.replay import Replayed
    from bench.predict.trace import Trace
    from bench.training.cases import Case

FEW = 3
"""Layers, or accumulated batches, of the shorter trace: a first one, a last, and one between."""

Piece = tuple[int, int, bool]
"""Where a stretch of the longer trace begins and ends, and whether one more layer repeats it."""


class Stretched:
    """One case's step on a device, at its own rank, batch and length and at others.

    `layers` says how many layers were traced at most: FEW + 1, or None for a model that was traced
    whole. Raises BenchError where the step cannot be traced.
    """

    def __init__(
        self, case: Case, device: Device, progress: Callable[[str], None] = lambda phase: None
    ) -> None:
        self.case = case
        self._device = device
        self._progress = progress
        self._depth = layers_alike(case, FEW + 1)
        self._layouts: dict[object, _Layout | None] = {}
        """By the events of FEW + 1 layers: another value changes sizes, and seldom events."""
        self._at: dict[tuple[str, int], tuple[Trace, _Layout | None]] = {}
        self._replays: dict[tuple[str, int], Replayed] = {}
        self._own = self._traced(case)
        self.layers = FEW + 1 if self._own[1] else None

    def _tracer(self, case: Case) -> Trace:
        """The case's trace; of many accumulated batches a few are traced, and one more of them adds
        what the last of those did."""
        from bench.predict.trace import trace

        def accumulating(batches: int) -> Trace:
            few = replace(case, step=replace(case.step, accumulation=batches))
            return trace(few, self._device, self._progress)

        batches = case.step.accumulation
        if batches <= FEW + 1:
            return accumulating(batches)
        less, more = accumulating(FEW), accumulating(FEW + 1)
        figures = _grown(less, replace(more, tokens=less.tokens), batches - FEW)
        if figures is None:
            return accumulating(batches)
        tokens = less.tokens + (batches - FEW) * (more.tokens - less.tokens)
        return replace(more, **figures, tokens=tokens)

    @cached_property
    def trace(self) -> Trace:
        """The whole step, as if every layer had been traced."""
        short, layout = self._own
        return layout.trace(short) if layout else short

    def _traced(self, case: Case) -> tuple[Trace, _Layout | None]:
        """The case's few layers and how they repeat; or all of them, and None. Which layer's events
        repeat is worked out once, with a layer more."""
        if self._depth is not None:
            less = self._tracer(shallow(case, FEW))
            shape = less.events, less.makers, less.marks, less.categories
            if shape not in self._layouts:
                more = self._tracer(shallow(case, FEW + 1))
                self._layouts[shape] = _layout(less, more, self._depth - FEW)
            if (layout := self._layouts[shape]) is not None:
                return less, layout
        return self._tracer(case), None

    def replayed(self, what: str = "", value: int = 0) -> Replayed:
        """Peaks of the step: as the case says, or traced at another value of `what`
        (`largest.SOLVABLE`)."""
        if not what or value == value_of(self.case, what):
            what, value = "", 0
        if (what, value) not in self._replays:
            if what and (what, value) not in self._at and not self._follows(what, value):
                self._at[what, value] = self._traced(with_value(self.case, what, value))
            self._replays[what, value] = self._replay(what, value)
        return self._replays[what, value]

    def estimated(self, what: str, value: int) -> Replayed:
        """Peaks at another value, the sizes on a line through those traced. Exact between two
        values at which the same is allocated in proportion."""
        start = value_of(self.case, what)
        if value == start or (what, value) in self._at:
            return self.replayed(what, value)
        return self._replay(what, value)

    def _known(self, what: str) -> dict[int, tuple[Trace, _Layout | None]]:
        """Values that were traced."""
        found = {value: traced for (name, value), traced in self._at.items() if name == what}
        return {value_of(self.case, what): self._own, **found}

    def _follows(self, what: str, value: int) -> bool:
        """Whether the sizes at a value follow from traces on both sides of it: the same events,
        every size constant or in proportion to the value (or its square)."""
        known = self._known(what)
        below = max((v for v in known if v < value), default=None)
        above = min((v for v in known if v > value), default=None)
        if below is None or above is None:
            return False
        (one, layout), (other, same) = known[below], known[above]
        if layout is not same or one.events != other.events:
            return False
        pairs = set(zip(one.sizes, other.sizes, strict=True))
        return all(
            a == b or a * above == b * below or a * above**2 == b * below**2 for a, b in pairs
        )

    def _replay(self, what: str, value: int) -> Replayed:
        from bench.predict.journal import breakdown_of
        from bench.predict.replay import replay

        short, layout = self._own if not what else self._at.get((what, value), (None, None))
        if short is None:
            short, layout = self._between(what, value)
        whole = layout.events_of(short) if layout else short
        return replay(whole, self._device.allocator(), breakdown_of(self.case.step))

    def _between(self, what: str, value: int) -> tuple[Trace, _Layout | None]:
        """The short trace with sizes on a line through two values that were traced, the nearest
        ones; traced where there are no two with the same events."""
        known = self._known(what)
        if len(known) == 1:
            start = value_of(self.case, what)
            other = 2 * start if value > start else start // 2 if what == SEQ_LEN else value
            self._at[what, other] = known[other] = self._traced(with_value(self.case, what, other))
            if value == other:
                return known[other]
        near = sorted(known, key=lambda v: abs(v - value))
        for other in near[1:]:
            (one, layout), (two, same) = known[near[0]], known[other]
            if layout is same and one.events == two.events:
                sizes = [
                    _on_line(near[0], a, other, b, value)
                    for a, b in zip(one.sizes, two.sizes, strict=True)
                ]
                return replace(one, sizes=tuple(sizes)), layout
        self._at[what, value] = self._traced(with_value(self.case, what, value))
        return self._at[what, value]


def _on_line(x: int, a: int, y: int, b: int, value: int) -> int:
    """A size at `value`, where it is `a` at x and `b` at y; at least 0. In proportion to the
    square of the value where it is so at both."""
    if a == b:
        return a
    if a * y * y == b * x * x:
        return a * value * value // (x * x)
    return max(0, a + (b - a) * (value - x) // (y - x))


def _layout(less: Trace, more: Trace, times: int) -> _Layout | None:
    pieces = _pieces(less, more)
    grown = _grown(less, more, times)
    if pieces is None or grown is None:
        return None
    events = _stretched_events(more, pieces, times - 1)
    if events is None:
        return None
    return _Layout(less, _like(less, more, pieces), more.sizes, grown, times, *events)


def _like(less: Trace, more: Trace, pieces: Sequence[Piece]) -> dict[int, int]:
    """By a storage of the longer trace the one of the shorter that it is, or repeats."""
    like: dict[int, int] = {}
    events = iter(less.events)
    for start, end, again in pieces:
        for index in range(start, end):
            event = more.events[index]
            before = like.get(more.events[index - (end - start)], 0) if again else next(events)
            if event > 0:
                like[event] = before
    return like


class _Layout:
    """How a step of few layers becomes one of all: which storage of the few each one is like, and
    what the figures are that are sums over layers."""

    def __init__(  # noqa: PLR0917  # what a layout is made of
        self,
        less: Trace,
        like: Mapping[int, int],
        more: Sequence[int],
        grown: dict[str, Any],
        times: int,
        events: tuple[int, ...],
        origins: Sequence[int],
        marks: tuple[tuple[int, str], ...],
    ) -> None:
        origins = [0, *(like[n] for n in origins[1:])]
        self._origins = origins
        self._growing = [
            (n, times * (more[m] - less.sizes[n])) for m, n in like.items()
            if more[m] != less.sizes[n]
        ]  # fmt: skip
        self._grown = grown
        self._order = {
            "events": events,
            "categories": tuple(less.categories[n] for n in origins),
            "makers": tuple(less.makers[n] for n in origins),
            "marks": marks,
        }

    def events_of(self, less: Trace) -> Trace:
        """What is allocated, where the storages of the few layers have these sizes; the other
        figures stay theirs."""
        sizes = list(less.sizes)
        for number, growth in self._growing:
            sizes[number] += growth
        made = tuple([sizes[n] for n in self._origins])
        return replace(less, sizes=made, **self._order)  # type: ignore[arg-type]

    def trace(self, less: Trace) -> Trace:
        """The whole trace of the case whose traces made this layout."""
        return replace(self.events_of(less), **self._grown)


def _grown(less: Trace, more: Trace, times: int) -> dict[str, Any] | None:
    """The figures that are sums over layers, with `times` layers more than the shorter trace has;
    None where one more layer takes something away."""
    figures: dict[str, Any] = {}
    for name in ("flops", "moved_bytes", "trainable_parameters", "quantized_layers"):
        one, two = getattr(less, name), getattr(more, name)
        if two < one:
            return None
        figures[name] = one + times * (two - one)
    for name in ("operations", "work", "unquantized_bytes"):
        one, two = getattr(less, name), getattr(more, name)
        if any(two.get(key, 0) < count for key, count in one.items()):
            return None
        figures[name] = {k: one.get(k, 0) + times * (v - one.get(k, 0)) for k, v in two.items()}
    if (less.tokens, less.unquantized_share) != (more.tokens, more.unquantized_share):
        return None
    return figures


def _tokens(trace: Trace, alone: set[object]) -> list[object]:
    """Events without their numbers: what begins or ends is told by its size and purpose; by the
    purpose only where the size is in `alone`."""
    sizes, categories, makers = trace.sizes, trace.categories, trace.makers
    kinds: list[object] = list(zip(categories, makers, sizes, strict=True))
    kinds = [kind[:2] if kind in alone else kind for kind in kinds]  # type: ignore[index]
    return [(e > 0, kinds[abs(e)]) for e in trace.events]


def _pieces(less: Trace, more: Trace) -> list[Piece] | None:
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


def _stretched_events(
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
