"""Two environments measured side by side: the same cases on both, as two runs to compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.ab.environments import Environment
from bench.ab.launches import (
    LAUNCHES,
    ROUNDS,
    Failed,
    Far,
    PairedRounds,
    SideAsked,
    TakeStep,
    take_rounds,
)
from bench.baselines import KEY, StoredRun, seal
from bench.baselines.configuration import differing, others
from bench.baselines.journal import Lines
from bench.baselines.runs import parse_machine, parse_record
from bench.errors import BenchError
from bench.measure.cluster import Cluster
from bench.measure.outcome import StepTime
from bench.scenarios.subjects import Request
from bench.training.cases import StepOptions

Records = dict[str, dict[str, Any]]

FILE = ".unfinished-ab.jsonl"
"""What is finished of a comparison, until all of it is."""


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
    contender: Request | None = None
    """What the contender measures, where it is another configuration; else the same."""

    def __post_init__(self) -> None:
        if self.rounds < 2 or self.rounds % 2:
            raise BenchError(f"--rounds {self.rounds}: an even number, 2 or more: A B B A")
        fewest, most = self.launches
        if not 1 <= fewest <= most:
            raise BenchError(
                f"--launches {fewest} {most}: the fewest, at least 1, then the most, no fewer"
            )

    def recorded(self) -> dict[str, Any]:
        """It as JSON has it."""
        contender = None if self.contender is None else _plain(self.contender)
        plan = {**asdict(self), "request": _plain(self.request), "contender": contender}
        found: dict[str, Any] = json.loads(json.dumps(plan))
        return found


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


class PairJournal(Lines):
    """The finished cases of a comparison that goes on, each on disk as it ends, for `--resume`: a
    line for what is compared, then one a case: its id and the record of either side.

    Raises BenchError where the folder cannot be written to, where another comparison goes on there,
    and where an unfinished one lies in it that `resume` does not ask for, or that was another one:
    of another plan at once, of other environments when they have told (`begin`).
    """

    def __init__(self, folder: Path, plan: Plan, *, resume: bool) -> None:
        super().__init__(
            folder / FILE,
            f"--save {folder}: cannot be written to",
            f"--save {folder}: a comparison goes on there: name another folder",
        )
        left, wrong = self.path.stat().st_size > 0, ""
        if left and not resume:
            wrong = (
                f"{self.path}: a comparison ended here before its last case: go on with it "
                "(--resume), or remove the file"
            )
        elif resume and not left:
            wrong = f"--resume: no unfinished comparison lies in {folder}"
        self.plan = plan.recorded()
        if not wrong and self.found:
            wrong = self._another(_other_plan(self.found[0], self.plan))
        if wrong:
            self.close(done=not left)
            raise BenchError(wrong)
        self.records: dict[str, list[dict[str, Any] | None]] = {
            case["key"]: case["records"] for case in self.found[1:]
        }

    def _another(self, differing: str) -> str:
        return differing and f"--resume: {self.path} is of another comparison: {differing}"

    def begin(self, sides: Sequence[Environment]) -> None:
        """Write what is compared; what was found has to be of the same."""
        head = {
            "plan": self.plan,
            "sides": [
                {
                    "label": s.label,
                    "clock": s.clock,
                    "versions": s.versions,
                    "machine": s.machine,
                    **s.decided,
                }
                for s in sides
            ],
        }
        if self.found and self.found[0] != (now := json.loads(json.dumps(head))):
            raise BenchError(self._another(_differing(self.found[0], now)))
        if self.found:
            self.go_on()
        else:
            self.start(head)

    def add(self, key: str, records: Sequence[dict[str, Any] | None]) -> None:
        """Keep a finished case."""
        self.keep({"key": key, "records": records})


def _other_plan(before: Any, plan: dict[str, Any]) -> str:
    """What this plan asks for otherwise than the one in the head of a journal; "" if nothing."""
    if not isinstance(before, dict) or not isinstance(before.get("plan"), dict):
        return "it is of another release"

    def otherwise(old: dict[str, Any], new: dict[str, Any], of: str = "") -> Iterator[str]:
        for name, value in new.items():
            was, said = old.get(name), f"{of}{name.replace('_', ' ')}"
            if isinstance(was, dict) and isinstance(value, dict):
                inside = name in ("request", "step")  # whose fields are options of their own
                yield from otherwise(was, value, of if inside else f"{said} ")
            elif was != value:
                yield f"{said} {_shown(was)} -> {_shown(value)}"

    return "; ".join(otherwise(before["plan"], plan))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "one of its own" if isinstance(value, dict) else str(value)


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the heads of two journals of one plan, in words."""
    found: list[str] = []
    for old, new in zip(before["sides"], now["sides"], strict=True):
        found += others(old, new)
        found += [f"another {each}" for each in ("label", "machine") if old[each] != new[each]]
        if old.get("clock") != new["clock"]:
            found.append(f"--clock {old.get('clock')} -> {new['clock']}")
        found += differing(old["versions"], new["versions"])
    return "; ".join(dict.fromkeys(found)) or "other cases"


def measure(
    baseline: Environment,
    contender: Environment,
    plan: Plan,
    say: Callable[[str], None] = lambda _: None,
    journal: PairJournal | None = None,
    *,
    cluster: Cluster | None = None,
) -> Pair:
    """Every case of the plan, on both sides; those that `journal` has are taken from there, and the
    others added to it. The launches are spread over the nodes of `cluster` that are machines like
    this one. Raises BenchError where a side refuses the plan."""
    sides = (baseline, contender)
    for side in sides:
        side.wait_open()
    limits = {"memory_bytes": plan.memory_limit_bytes, "seconds": plan.time_limit_seconds}
    for side, request in zip(sides, (plan.request, plan.contender or plan.request), strict=True):
        side.start_select(_plain(request), asdict(plan.step), limits)
    for side in sides:
        side.wait_select()
        for model, error in side.broken.items():
            say(f"{side.option} {side.label}: {model}: {error}")
    records: tuple[Records, Records] = ({}, {})
    cases = _cases(baseline.keys, contender.keys, plan.contender is not None)
    if journal is not None:
        journal.begin(sides)
    if not cases:
        raise BenchError(
            "nothing to measure: no case of these models, scenarios and precisions in either "
            "environment"
        )
    far = None
    if cluster is not None:
        requests = (plan.request, plan.contender or plan.request)
        far = Far(
            cluster,
            [
                SideAsked(
                    s.python, s.option, s.label, s.clock, _plain(r), asdict(plan.step), limits
                )
                for s, r in zip(sides, requests, strict=True)
            ],
        )
        far.check([side.versions for side in sides], [side.decided for side in sides])
    for number, (key, keys) in enumerate(cases.items(), 1):
        known = None if journal is None else journal.records.get(key)
        say(f"{number}/{len(cases)} {key}{' (measured before)' if known else ''}")
        found = known or measure_case(keys, sides, plan, far)
        if journal is not None and not known:
            journal.add(key, found)
        for mine, record in zip(records, found, strict=True):
            if record is not None:
                mine[key] = record
    return Pair(*(_run(*each) for each in zip(sides, records, strict=True)))


def _plain(request: Request) -> dict[str, Any]:
    """The request as JSON has it."""
    paths = {name: str(value) for name, value in vars(request).items() if isinstance(value, Path)}
    return {**asdict(request), **paths}


_RANK = re.compile(r"-own-r\d+-")


def _cases(
    baseline: Iterable[str], contender: Iterable[str], other: bool
) -> dict[str, tuple[str | None, str | None]]:
    """Each case's key on either side, by the id that it is compared under. Of another configuration
    (`other`), one's own case is the same at another rank."""
    named: list[dict[str, str]] = []
    for keys in (baseline, contender):
        ids = [_RANK.sub("-own-", key) if other else key for key in keys]
        named.append(dict(zip(ids, keys, strict=True)))
    return {key: (named[0].get(key), named[1].get(key)) for key in {**named[0], **named[1]}}


def measure_case(
    keys: tuple[str | None, str | None],
    sides: tuple[Environment, Environment],
    plan: Plan,
    far: Far | None = None,
) -> list[dict[str, Any] | None]:
    """The record of each side; None for a side that has no such case."""
    known = [key is not None for key in keys]
    ready = [key is not None and s.prepare(key) for s, key in zip(sides, keys, strict=True)]
    taken, started = PairedRounds(), False

    def launch() -> tuple[TakeStep, TakeStep]:
        nonlocal started
        if started and not all(side.relaunch() for side in sides):
            raise Failed
        started = True
        return _step(sides[0]), _step(sides[1])

    elsewhere: list[dict[str, Any]] = []
    if all(ready):
        both = (str(keys[0]), str(keys[1]))
        next_launch = launch if far is None else far.launches(both, plan.rounds)
        try:
            taken = take_rounds(next_launch, plan.rounds, plan.launches)
        except Failed as failed:
            elsewhere = failed.records
    detail = {"interleaved": uuid4().hex, "launches": taken.launches}
    records = [
        side.finish([asdict(each) for each in rounds], detail) if has else None
        for side, rounds, has in zip(sides, (taken.baseline, taken.contender), known, strict=True)
    ]
    return [*elsewhere] or records


def _step(side: Environment) -> TakeStep:
    def step() -> StepTime:
        time = side.step()
        if time is None:
            raise Failed
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
