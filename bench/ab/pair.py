"""Two environments measured side by side: the same cases on both, as two runs to compare."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from bench.ab.environments import Environment
from bench.ab.rounds import LAUNCHES, ROUNDS, Rounds, Step, take_rounds
from bench.baselines import KEY, StoredRun, seal
from bench.baselines.runs import parse_machine, parse_record
from bench.errors import BenchError
from bench.measure.outcome import StepTime
from bench.scenarios.subjects import Request
from bench.training.cases import StepOptions

Progress = Callable[[str], None]
Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What to measure on both sides: `rounds` (an even number) in each launch of a case's workers,
    and the fewest and the most launches. Raises BenchError for numbers that cannot be."""

    request: Request
    step: StepOptions = field(default_factory=StepOptions)
    rounds: int = ROUNDS
    launches: tuple[int, int] = LAUNCHES
    memory_limit_bytes: int | None = None
    time_limit_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.rounds < 2 or self.rounds % 2:
            raise BenchError(f"--rounds {self.rounds}: an even number, 2 or more: A B B A")
        fewest, most = self.launches
        if not 1 <= fewest <= most:
            raise BenchError(
                f"--launches {fewest} {most}: the fewest, at least 1, then the most, no fewer"
            )


@dataclass(frozen=True)
class Pair:
    """What was measured on both sides."""

    baseline: StoredRun
    contender: StoredRun

    @property
    def runs(self) -> tuple[StoredRun, StoredRun]:
        return self.baseline, self.contender

    @property
    def documents(self) -> list[dict[str, Any]]:
        """Both runs as files hold them: `write_run` takes these."""
        return [seal({**_EMPTY, KEY: run.table()}) for run in self.runs]


def measure(
    baseline: Environment, contender: Environment, plan: Plan, progress: Progress = lambda _: None
) -> Pair:
    """Every case of the plan, on both sides. Raises BenchError where a side refuses the plan."""
    sides = (baseline, contender)
    for side in sides:
        side.wait_open()
    request = asdict(plan.request)
    request["adapter"] = None if plan.request.adapter is None else str(plan.request.adapter)
    limits = {"memory_bytes": plan.memory_limit_bytes, "seconds": plan.time_limit_seconds}
    for side in sides:
        side.start_select(request, asdict(plan.step), limits)
    for side in sides:
        side.wait_select()
        for model, error in side.broken.items():
            progress(f"{side.option} {side.label}: {model}: {error}")
    records: tuple[Records, Records] = ({}, {})
    keys = list(dict.fromkeys((*baseline.keys, *contender.keys)))
    if not keys:
        raise BenchError(
            "nothing to measure: no case of these models, scenarios and precisions in either "
            "environment"
        )
    for number, key in enumerate(keys, 1):
        progress(f"{number}/{len(keys)} {key}")
        found = _measure_case(key, sides, plan)
        for mine, record in zip(records, found, strict=True):
            if record is not None:
                mine[key] = record
    return Pair(*(_run(*each) for each in zip(sides, records, strict=True)))


class _Failed(Exception):
    """A side's case has failed; its record says how."""


def _measure_case(
    key: str, sides: tuple[Environment, Environment], plan: Plan
) -> list[dict[str, Any] | None]:
    """The record of each side; None for a side that has no such case."""
    known = [key in side.keys for side in sides]
    ready = [has and side.prepare(key) for side, has in zip(sides, known, strict=True)]
    taken, started = Rounds(), False

    def launch() -> tuple[Step, Step]:
        nonlocal started
        if started and not all(side.relaunch() for side in sides):
            raise _Failed
        started = True
        return _step(sides[0]), _step(sides[1])

    if all(ready):
        with contextlib.suppress(_Failed):
            taken = take_rounds(launch, plan.rounds, plan.launches)
    detail = {"interleaved": uuid4().hex, "launches": taken.launches}
    return [
        side.finish([asdict(each) for each in rounds], detail) if has else None
        for side, rounds, has in zip(sides, (taken.baseline, taken.contender), known, strict=True)
    ]


def _step(side: Environment) -> Step:
    def step() -> StepTime:
        time = side.step()
        if time is None:
            raise _Failed
        return time

    return step


# What pytest-benchmark writes beside the records.
_EMPTY: dict[str, Any] = {"benchmarks": [], "machine_info": {}, "commit_info": {}}


def _run(side: Environment, records: Mapping[str, Any]) -> StoredRun:
    where = f"{side.option} {side.label}"
    return StoredRun(
        side.label,
        side.versions,
        parse_machine(side.machine, f"{where}: machine"),
        {key: parse_record(key, record, where) for key, record in records.items()},
    )
