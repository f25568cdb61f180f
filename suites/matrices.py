"""Few cases of a whole matrix: together they show everything that differs among all of them.

The others carry the marker `evidence`: `tox run -e tests` leaves them out, `tox run -e evidence`
runs them, and a plain `pytest suites/` runs both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import fields
from typing import Any

import pytest

from bench.training.cases import Case, StepOptions

Facts = Callable[..., Iterable[Hashable]]


def matrix(cases: Iterable[Any], by: Facts | None = None) -> list[Any]:
    """The parameters of a test, in their order. As few as can be found of them are unmarked: so
    many that each of their `facts`, or of what `by` says of them, is there. What is marked `slow`
    or `evidence` is left as it is, and shows nothing."""
    found = [_parameter(case) for case in cases]
    shown = {
        number: set((by or facts)(*each.values))
        for number, each in enumerate(found)
        if not any(mark.name in ("slow", "evidence") for mark in each.marks)
    }
    kept, missing = set(), set().union(*shown.values())
    while missing:
        best = max(shown, key=lambda number: len(missing & shown[number]))
        kept.add(best)
        missing -= shown[best]
    return [
        each if number in kept or number not in shown else _marked(each)
        for number, each in enumerate(found)
    ]


def facts(*values: object) -> Iterator[Hashable]:
    """What a case is, in parts: of a number in its options only whether it is the usual one."""
    for place, value in enumerate(values):
        parts = _of_case(value) if isinstance(value, Case) else _of_step(value)
        yield from ((place, *part) for part in parts)


def _of_case(case: Case) -> Iterator[tuple[Hashable, ...]]:
    yield "type", case.config.get("model_type")
    yield "class", case.auto_class
    yield "precision", case.precision
    yield from (("adapter", name) for name, value in case.adapter.items() if value)
    yield from _of_step(case.step)


def _of_step(value: object) -> Iterator[tuple[Hashable, ...]]:
    if not isinstance(value, StepOptions):
        yield ("value", repr(value))
        return
    usual = StepOptions()
    for field in fields(value):
        told = getattr(value, field.name)
        number = isinstance(told, int | float) and not isinstance(told, bool)
        yield field.name, told != getattr(usual, field.name) if number else told


def _parameter(case: Any) -> Any:
    if hasattr(case, "marks"):
        return case
    return pytest.param(*(case if isinstance(case, tuple) else (case,)))


def _marked(each: Any) -> Any:
    return pytest.param(*each.values, id=each.id, marks=[*each.marks, pytest.mark.evidence])
