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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.predict.alike import layers_alike, shallow
from bench.predict.largest import walks_beyond
from bench.predict.repeats import Piece, pieces_of, stretched_events
from bench.training.cases import SEQ_LEN, value_of, with_value

if TYPE_CHECKING:
    from bench.predict.kernels import Device
    from bench.predict.replay import Replayed
    from bench.predict.trace import Trace
    from bench.training.cases import Case

MOST_EVENTS = 30_000
"""Of a trace, beyond which none of a longer sequence is made where each token adds to them."""
FEW = 3
"""Layers, or accumulated batches, of the shorter trace: a first one, a last, and one between."""


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
        (`cases.SOLVABLE`)."""
        if not what or value == value_of(self.case, what):
            what, value = "", 0
        if (what, value) not in self._replays:
            if what and (what, value) not in self._at and not self._follows(what, value):
                self._trace_at(what, value)
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

    def _trace_at(self, what: str, value: int) -> tuple[Trace, _Layout | None]:
        """The step at another value. Untraceable where that is a longer sequence, through which the
        model goes token by token: a search tries many."""
        if what == SEQ_LEN:
            events = {each: len(trace.events) for each, (trace, _) in self._known(what).items()}
            if walks_beyond(events, value, MOST_EVENTS):
                from bench.predict.journal import Untraceable

                raise Untraceable(f"{self.case.id}: {value} tokens are too many to go through")
        self._at[what, value] = self._traced(with_value(self.case, what, value))
        return self._at[what, value]

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
            many = len(self._own[0].events) > MOST_EVENTS
            up = value > start and not (what == SEQ_LEN and many)
            other = 2 * start if up else start // 2 if what == SEQ_LEN else value
            known[other] = self._trace_at(what, other)
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
        return self._trace_at(what, value)


def _on_line(x: int, a: int, y: int, b: int, value: int) -> int:
    """A size at `value`, where it is `a` at x and `b` at y; at least 0. In proportion to the
    square of the value where it is so at both."""
    if a == b:
        return a
    if a * y * y == b * x * x:
        return a * value * value // (x * x)
    return max(0, a + (b - a) * (value - x) // (y - x))


def _layout(less: Trace, more: Trace, times: int) -> _Layout | None:
    pieces = pieces_of(less, more)
    grown = _grown(less, more, times)
    if pieces is None or grown is None:
        return None
    events = stretched_events(more, pieces, times - 1)
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
