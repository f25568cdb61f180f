"""A step traced with few layers and stretched to all, and to other ranks, batches and lengths.

A model of 32 equal layers allocates 32 times what one layer does; to trace it whole is to trace the
same thing 32 times. Here a step is traced with three and with four layers. What the longer trace
holds beyond the shorter, wherever that is (each loop over layers has its place: loading, injecting,
forward, backward, the optimizer), is what one more layer adds, and is repeated. The first layer,
the last one and what lies outside of the layers stay as they were traced.

Another rank, batch or length changes no event, only sizes: one more trace tells how each grows.

Nothing is fitted. Where layers are not all alike, or the two traces do not differ by whole repeated
pieces, the step is traced whole. The suites hold stretched peaks against those of whole traces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from bench.predict.largest import value_of, with_value

if TYPE_CHECKING:
    from bench.predict.kernels import Device
    from bench.predict.replay import Replayed
    from bench.predict.trace import Trace
    from bench.training.cases import Case

DEPTH_FIELDS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""What a configuration of one stack calls its depth."""
FEW = 3
"""Layers of the shorter trace: a first one, a last one, and one between them."""

Tracer = Callable[["Case"], "Trace"]
Piece = tuple[int, int, bool]
"""Where a stretch of the longer trace begins and ends, and whether one more layer repeats it."""


def depth_of(case: Case) -> int | None:
    """How many layers the model has, where they are all alike as far as its config says; else
    None: another name for the depth, several stacks, a list with something else for each layer."""
    config = case.config
    named = [config[f] for f in DEPTH_FIELDS if isinstance(config.get(f), int)]
    stacks = [v for v in config.values() if isinstance(v, dict) and set(v) & {*DEPTH_FIELDS}]
    if len(named) != 1 or stacks:
        return None
    lists = [v for v in config.values() if isinstance(v, list) and len(v) == named[0]]
    alike = all(item == values[0] for values in lists for item in values)
    return named[0] if alike else None


def shallow(case: Case, layers: int) -> Case:
    """The case with so many of its layers, whose widths stay as they are."""
    depth = depth_of(case)
    config = {
        name: layers if name in DEPTH_FIELDS and value == depth
        else value[:layers] if isinstance(value, list) and len(value) == depth
        else value
        for name, value in case.config.items()
    }  # fmt: skip
    return replace(case, config=config)


class Stretched:
    """One case's step on a device, at its own rank, batch and length and at others.

    `layers` says how many layers were traced: FEW + 1, or None for a model that was traced whole.
    Raises BenchError where the step cannot be traced.
    """

    def __init__(self, case: Case, device: Device, tracer: Tracer | None = None) -> None:
        self.case = case
        self._device = device
        self._traced: dict[str, Trace] = {}
        self._tracer = tracer or self._trace
        self._varied: dict[str, tuple[Trace, _Layout | None]] = {}
        self._beyond: dict[str, Stretched] = {}
        self.layers: int | None = None
        depth = depth_of(case)
        if depth is not None and depth > FEW + 1:
            less, more = (self._tracer(shallow(case, n)) for n in (FEW, FEW + 1))
            pieces = _pieces(less, more)
            if pieces is not None:
                self.layers = FEW + 1
                times = depth - FEW - 1
                self._base = more
                self._pieces, self._times = pieces, times
                self.flops = more.flops + times * (more.flops - less.flops)
                self.unquantized_bytes = {
                    kind: size + times * (size - less.unquantized_bytes.get(kind, 0))
                    for kind, size in more.unquantized_bytes.items()
                }
                return
        self._base = self._tracer(case)
        self._pieces, self._times = [(0, len(self._base.events), False)], 0
        self.flops = self._base.flops
        self.unquantized_bytes = dict(self._base.unquantized_bytes)

    def _trace(self, case: Case) -> Trace:
        from bench.predict.trace import trace

        known = repr(case)
        if known not in self._traced:
            self._traced[known] = trace(case, self._device)
        return self._traced[known]

    def replayed(self, what: str | None = None, value: int = 0) -> Replayed:
        """Peaks of the step: as the case says, or at another value of `what` (`largest.SOLVABLE`).

        What an allocation holds grows in proportion: a line through its sizes in two traces, or a
        square where it has grown as one, as a mask of length × length does.
        """
        start = 0 if what is None else value_of(self.case, what)
        if what is None or value == start:
            layout = _Layout(self._base, self._pieces, self._times, self._base.sizes)
            return self._replay(layout.trace(self._base.sizes))
        varied, grown = self._vary(what)
        if grown is None:  # another kernel, or a copy more: its own traces tell what lies beyond
            if value < 2 * start:
                return self._replay(self._tracer(with_value(self.case, what, value)))
            return self._beyond[what].replayed(what, value)
        steps = (value - start) / start
        pairs = zip(self._base.sizes, varied.sizes, strict=True)
        return self._replay(grown.trace([_grown(w, n, steps, value / start) for w, n in pairs]))

    def _replay(self, whole: Trace) -> Replayed:
        from bench.predict.journal import BREAKDOWN
        from bench.predict.replay import replay

        return replay(whole, self._device.allocator(), BREAKDOWN)

    def _vary(self, what: str) -> tuple[Trace, _Layout | None]:
        """The traced layers at twice the value; None beside it where its events are others."""
        if what not in self._varied:
            case = self.case if self.layers is None else shallow(self.case, self.layers)
            twice = 2 * value_of(case, what)
            varied = self._tracer(with_value(case, what, twice))
            layout = None
            if _shape(varied) == _shape(self._base):
                layout = _Layout(self._base, self._pieces, self._times, varied.sizes)
            else:
                beyond = with_value(self.case, what, twice)
                self._beyond[what] = Stretched(beyond, self._device, self._tracer)
            self._varied[what] = varied, layout
        return self._varied[what]


def _grown(was: int, now: int, steps: float, share: float) -> int:
    return round(was * share**2) if now == 4 * was else was + round((now - was) * steps)


def _shape(trace: Trace) -> tuple[object, ...]:
    return trace.events, trace.makers, trace.marks


def _tokens(trace: Trace) -> list[tuple[bool, int, str, str]]:
    """Events without their numbers: what begins or ends is told by its size and purpose."""
    sizes, categories, makers = trace.sizes, trace.categories, trace.makers
    return [(e > 0, sizes[n], categories[n], makers[n]) for e in trace.events if (n := abs(e))]


def _pieces(less: Trace, more: Trace) -> list[Piece] | None:
    """The longer trace in pieces, in order; without the repeated ones it is the shorter trace.
    None where it is not."""
    if [name for _, name in less.marks] != [name for _, name in more.marks]:
        return None
    known: dict[object, int] = {}
    one, two = (
        [known.setdefault(token, len(known)) for token in _tokens(trace)] for trace in (less, more)
    )
    pieces: list[Piece] = []
    for (a, b), (c, d) in zip(_phases(less), _phases(more), strict=True):
        found = _aligned(one[a:b], two[c:d])
        if found is None:
            return None
        pieces += [(c + start, c + end, again) for start, end, again in found]
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


class _Layout:
    """The events of a whole step, by the short trace's numbers: its repeated pieces come so many
    times more. `grown` are the short trace's sizes at another value, which tell apart what has one
    size by chance."""

    def __init__(
        self, short: Trace, pieces: Sequence[Piece], times: int, grown: Sequence[int]
    ) -> None:
        order: list[int] = []
        first: dict[int, int] = {}  # where each event of the short trace comes first
        for start, end, again in pieces:
            for index in range(start, end):
                first[index] = len(order) + index - start
            order += [*range(start, end)] * (1 + times if again else 1)
        first[len(short.events)] = len(order)
        ends = _Ends(short, grown)
        events, origins = [], [0]  # which storage of the short trace each one is like
        for index in order:
            event = short.events[index]
            if event > 0:
                origins.append(event)
                events.append(ends.begin(event, len(origins) - 1))
            else:
                events.append(-ends.end(-event))
        self._origins = origins
        self._whole = replace(
            short,
            events=tuple(events),
            categories=tuple(short.categories[n] for n in origins),
            makers=tuple(short.makers[n] for n in origins),
            marks=tuple((first[index], name) for index, name in short.marks),
        )

    def trace(self, sizes: Sequence[int]) -> Trace:
        """The whole trace, where the short one's storages have these sizes."""
        return replace(self._whole, sizes=tuple(sizes[n] for n in self._origins))


class _Ends:
    """Which of several storages that are alike ends when the short trace says that one does: the
    last that began, as what a layer saved does, unless those of its kind ended in order."""

    def __init__(self, short: Trace, sizes: Sequence[int]) -> None:
        kinds = zip(short.sizes, sizes, short.categories, short.makers, strict=True)
        self._kinds = list(kinds)
        self._alive: dict[object, list[int]] = defaultdict(list)
        in_order: dict[object, int] = defaultdict(int)
        for event in short.events:
            alive = self._alive[self._kinds[abs(event)]]
            if event > 0:
                alive.append(event)
            else:
                in_order[self._kinds[-event]] += (alive[0] == -event) - (alive[-1] == -event)
                alive.remove(-event)
        self._first = {kind for kind, more in in_order.items() if more > 0}
        self._alive.clear()
        self._by: dict[int, list[int]] = defaultdict(list)
        self._origin: dict[int, int] = {}

    def begin(self, origin: int, number: int) -> int:
        self._alive[self._kinds[origin]].append(number)
        self._by[origin].append(number)
        self._origin[number] = origin
        return number

    def end(self, origin: int) -> int:
        kind = self._kinds[origin]
        which = 0 if kind in self._first else -1
        if self._by[origin]:
            number = self._by[origin].pop(which)
            self._alive[kind].remove(number)
            return number
        number = self._alive[kind].pop(which)
        self._by[self._origin[number]].remove(number)
        return number
