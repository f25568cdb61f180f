"""A stored run: what it holds, and how a file is read without being believed.

The file is pytest-benchmark's JSON with one key more, `lora_bench`. Its digest covers the whole
document, so that an edited figure is refused wherever it stands. The digest guards against
slips, not against malice: whoever can edit a figure can also compute a new digest, and the
review of the change is what catches that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from bench.baselines.content import check_numbers, check_words
from bench.baselines.metrics import EXACT, LOSS, TIME, Metric, metric_named
from bench.errors import BenchError, UnknownName, check_known
from bench.files import check_readable, finite, malformed, parse, strict_json, unreadable
from bench.training.machine import INSTRUCTION_SETS, Machine

KEY = "lora_bench"
SCHEMA = 1
OK, OOM = "ok", "oom"
FAILURES = ("crashed", "timed-out", "diverged", "failed")
OUTCOMES = (OK, OOM, *FAILURES)
"""How a case ended; that it runs out of memory is its figure, and no failure of it."""


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From an older schema version to the next: takes and returns a `lora_bench` table."""

Value = int | float | str | tuple[float, ...]
MOST_COUNTED = 10**18
"""More bytes, seconds and counts than there are: a greater figure is a slip, and its square or its
ratio to another would be no number."""
_Count = Annotated[int, Meta(ge=0, le=MOST_COUNTED)]
_Number = Annotated[float, Meta(ge=0, le=MOST_COUNTED)]
_Rounds = Annotated[
    tuple[_Number, ...], Meta(min_length=1, description="a list of rounds that is not empty")
]
_ONLY = ("model", "scenario", "rank", "precision")


@dataclass(frozen=True)
class Selection:
    """Which tests a run was asked for: a narrowed run must not make the others vanish.

    arguments: the paths and node ids it was started with, relative to the root folder.
    deselected: ids that were collected and then left out (-k, -m, --deselect).
    only: the models, scenarios, ranks and precisions asked for, where options named any.
    A test that was renamed or deleted is in neither, and so does vanish.
    """

    arguments: tuple[str, ...] = ()
    deselected: frozenset[str] = frozenset()
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def asks_for(self, record: Record) -> bool:
        """Whether a run with these options makes the case at all."""
        facts = {
            "model": record.model,
            "scenario": record.scenario,
            "rank": record.rank,
            "precision": record.in_precision,
        }
        return all(
            facts[name] is None or str(facts[name]) in allowed
            for name, allowed in self.only.items()
        )

    def covers(self, record_id: str) -> bool:
        """Whether a whole run would have reported `record_id`. No arguments: everything."""
        if record_id in self.deselected:
            return False
        starts = [argument.removeprefix("./").rstrip("/") for argument in self.arguments]
        return not starts or any(
            start in ("", ".", record_id)
            or record_id.startswith((f"{start}/", f"{start}::", f"{start}["))
            for start in starts
        )


@dataclass(frozen=True)
class Record:
    """One case of a run. metrics: raw bytes, seconds (a tuple of rounds) and counts."""

    id: str
    suite: str
    model: str
    scenario: str
    rank: _Count | None
    precision: str | None
    outcome: str
    metrics: Mapping[str, Value]
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_precision(self) -> str | None:
        """The precision that it was measured in, or predicted in; None where it is counted alone.
        Predictions of two precisions are two cases, though `precision` is None in both."""
        predicted = self.detail.get("predicted_in")
        return self.precision or (predicted if isinstance(predicted, str) else None)

    def to_dict(self) -> dict[str, Any]:
        """The record as a stored run holds it, under its id."""
        return {key: value for key, value in vars(self).items() if key != "id"}


@dataclass(frozen=True)
class StoredRun:
    """A stored run. datetime and commit as pytest-benchmark wrote them, if it did.

    interrupted: it was ended (by Ctrl-C, or -x) before its last case, and holds those before.
    gate: how it ended, as `bench.baselines.accepted` says; None where there was none. options: what
    decided how its cases were measured.
    """

    name: str
    versions: Mapping[str, str]
    machine: Machine
    records: Mapping[str, Record]
    seed: int = 0
    selection: Selection = Selection()
    commit: str | None = None
    dirty: bool = False
    interrupted: bool = False
    gate: str | None = None
    digest: str = ""
    datetime: str | None = None
    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `configuration.recorded` keeps of each model's config.json, by the model's label."""
    subjects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `configuration.decided` says of each measured subject, by its key."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where each model that is not registered lies, by its label: `Model.place`."""

    @property
    def label(self) -> str:
        """What tells this run from others: its file's number and name, or its name."""
        return self.path.stem if self.path else self.name

    def is_same(self, other: StoredRun) -> bool:
        """Whether both were read from one file."""
        return bool(self.path and other.path and self.path.samefile(other.path))

    def table(self) -> dict[str, Any]:
        """The `lora_bench` table of the file, which `parse_run` reads; `seal` adds the digest."""
        selection = self.selection
        detail: dict[str, Any] = {"options": dict(self.options)} if self.options else {}
        if self.models:
            detail["models"] = {key: dict(fields) for key, fields in self.models.items()}
        if self.subjects:
            detail["subjects"] = {key: dict(facts) for key, facts in self.subjects.items()}
        if self.places:
            detail["places"] = dict(self.places)
        if self.interrupted:
            detail["interrupted"] = True
        if self.gate is not None:
            detail["gate"] = self.gate
        return {
            "schema": SCHEMA,
            "name": self.name,
            "versions": dict(self.versions),
            "machine": self.machine.to_dict(),
            "seed": self.seed,
            "selection": {
                "arguments": list(selection.arguments),
                "only": {name: list(values) for name, values in selection.only.items()},
                "deselected": sorted(selection.deselected),
            },
            **({"detail": detail} if detail else {}),
            "records": {key: self.records[key].to_dict() for key in sorted(self.records)},
        }


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256, in hex, over the canonical JSON of a whole document less its own digest."""
    body = {key: value for key, value in document[KEY].items() if key != "digest"}
    canonical = json.dumps(
        {**document, KEY: body}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `document`, as JSON would give it back, with its digest put in.

    JSON has no NaN and no infinity: a diverged loss becomes the word "nan" or "inf".
    Raises BenchError for a document that `parse_run` would refuse, and TypeError for an object
    that is not JSON.
    """
    sealed: dict[str, Any] = json.loads(json.dumps(finite(document), allow_nan=False))
    if not isinstance(sealed.get(KEY), dict):
        raise BenchError(f"a run to store has no {KEY!r} table")
    sealed[KEY]["digest"] = digest(sealed)
    parse_run(sealed, "the run to store")
    return sealed


def load_run(path: Path | str) -> StoredRun:
    """The run stored in `path`.

    BenchError, with the file's name and the reason, for a file that is missing, truncated,
    edited, foreign, of a newer schema, or that holds an unknown metric or a wrong value.
    """
    path = Path(path)
    check_readable(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = strict_json(text)
    except OSError as error:
        raise unreadable(path, error) from None
    except json.JSONDecodeError as error:
        raise BenchError(
            f"{path}: truncated, or not JSON: "
            f"{error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: not a stored run: {malformed(error)}") from None
    return parse_run(document, str(path), Path(path))


def parse_run(document: Any, where: str, path: Path | None = None) -> StoredRun:
    """The run in a parsed document; BenchError, naming `where`, as `load_run`."""
    body = _body(document, where)
    detail, only = body.detail, body.selection.only
    if unknown := [name for name in only if name not in _ONLY]:
        raise UnknownName(f"key in {where}: selection: only:", unknown[0], _ONLY)
    commit = document.get("commit_info")
    commit = commit if isinstance(commit, dict) else {}
    return StoredRun(
        name=body.name,
        versions=body.versions,
        machine=body.machine,
        records={key: parse_record(key, record, where) for key, record in body.records.items()},
        seed=body.seed,
        selection=body.selection,
        commit=str(commit["id"])[:12] if str(commit.get("id") or "").isalnum() else None,
        dirty=commit.get("dirty") is True,
        interrupted=detail.get("interrupted") is True,
        gate=_text(detail.get("gate"), f"{where}: detail: gate"),
        digest=body.digest,
        datetime=_text(document.get("datetime"), f"{where}: datetime"),
        options=parse(detail.get("options", {}), dict[str, Any], f"{where}: detail: options"),
        models=_tables(detail, "models", where),
        subjects=_subjects(detail, where),
        places=parse(detail.get("places", {}), dict[str, str], f"{where}: detail: places"),
        path=path,
    )


def _tables(detail: Mapping[str, Any], name: str, where: str) -> dict[str, dict[str, Any]]:
    return parse(detail.get(name, {}), dict[str, dict[str, Any]], f"{where}: detail: {name}")


def _subjects(detail: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    found = _tables(detail, "subjects", where)
    for key, facts in found.items():
        inside = f"{where}: detail: subjects: {key}"
        parse(facts.get("model"), str, f"{inside}: model")
        parse(facts.get("adapter", {}), dict[str, Any], f"{inside}: adapter")
        for name in facts.keys() - {"model", "adapter"}:
            parse(facts[name], str | None, f"{inside}: {name}")  # type: ignore[arg-type]
    return found


@dataclass(frozen=True)
class _Body:
    """The `lora_bench` table in today's schema."""

    schema: int
    name: str
    versions: dict[str, str]
    machine: Machine
    seed: _Count
    digest: str
    records: dict[str, Any]
    selection: Selection = Selection()
    detail: dict[str, Any] = field(default_factory=dict)


def _body(document: Any, where: str) -> _Body:
    """The `lora_bench` table, its digest checked."""
    if not isinstance(document, dict) or KEY not in document:
        what = "foreign JSON"
        if isinstance(document, dict) and {"benchmarks", "machine_info"} <= document.keys():
            what = "a plain pytest-benchmark file, stored without this suite's plugin"
        raise BenchError(f"{where}: not a stored run but {what}: it has no {KEY!r} table")
    body = parse(document[KEY], dict[str, Any], f"{where}: {KEY}")
    schema = body.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BenchError(f"{where}: {KEY}: schema must be a whole number from 1, not {schema!r}")
    if schema > SCHEMA:
        raise BenchError(
            f"{where}: written by a newer version: its schema is {schema}, "
            f"and this one reads up to {SCHEMA}: upgrade to read it"
        )
    try:
        intact = body.get("digest") == digest(document)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{where}: not a stored run: {malformed(error)}") from None
    if not intact:
        raise BenchError(
            f"{where}: edited: its content does not match its digest. "
            "Restore the file, or store a new run: pytest suites/ --benchmark-save=NAME"
        )
    for version in range(schema, SCHEMA):
        body = MIGRATIONS[version](body)
    if "machine" in body:
        body = {**body, "machine": _with_processor(body["machine"], document.get("machine_info"))}
    check_words({k: v for k, v in body.items() if k not in ("records", "detail")}, where)
    check_numbers(body.get("machine"), f"{where}: machine")
    return parse(body, _Body, f"{where}: {KEY}")


def parse_machine(data: Any, where: str) -> Machine:
    """The machine of a document; BenchError, naming `where`."""
    check_words(data, where)
    check_numbers(data, where)
    return parse(data, Machine, where)


def _with_processor(machine: Any, info: Any) -> Any:
    """An older run's machine, with what pytest-benchmark has written of the processor."""
    cpu = info.get("cpu") if isinstance(info, dict) else None
    if not isinstance(machine, dict) or "model" in machine or not isinstance(cpu, dict):
        return machine
    facts = [f"{name} {cpu[name]}" for name in ("family", "model", "stepping") if name in cpu]
    flags = cpu.get("flags")
    return {
        **machine,
        "model": " ".join(facts) or None,
        "instruction_sets": (
            sorted(INSTRUCTION_SETS & {str(flag) for flag in flags})
            if isinstance(flags, list) and flags
            else None
        ),
    }


def parse_record(key: str, data: Any, file: str) -> Record:
    """One record of a document; BenchError, naming `file` and `key`, as `load_run`."""
    check_words(key, f"{file}: records")
    where = f"{file}: {key}"
    given = {"rank": None, "precision": None, **data} if isinstance(data, dict) else data
    record = parse(given, Record, where, id=key)
    check_words({k: v for k, v in data.items() if k != "detail"}, where)
    check_known(f"outcome in {where}:", record.outcome, OUTCOMES)
    metrics = {
        name: _value(metric_named(name, where), value, f"{where}: {name}")
        for name, value in record.metrics.items()
    }
    check_numbers(record.detail, where)
    return replace(record, metrics=metrics)


def _value(metric: Metric, value: Any, where: str) -> Value:
    """`value`, if the metric's unit allows it; times and losses are a list, or one number."""
    if metric.unit == "text":
        return parse(value, str, where)
    if metric.kind in (TIME, LOSS):
        rounds = parse(list(value) if isinstance(value, tuple) else [value], _Rounds, where)
        if metric.kind == TIME and any(math.copysign(1, each) < 0 for each in rounds):
            raise BenchError(f"{where}: expected a number from 0, found -0.0")
        return rounds
    flops = metric.kind == EXACT and metric.unit == "flops" and isinstance(value, float)
    return parse(value, _Number if flops else _Count, where)


def _text(value: Any, where: str) -> str | None:
    check_words(value, where)
    return None if value is None else parse(value, str, where)
