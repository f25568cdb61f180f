"""Collects what the suites find, and makes the document of a stored run of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.baselines.configuration import recorded
from bench.baselines.runs import Record, Selection, StoredRun, parse_record
from bench.formulas import Parameters
from bench.scenarios.subjects import Subject
from bench.statistics import instability
from bench.targets import Ledger
from bench.training.machine import Machine, machine, versions
from bench.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from bench.measure import Measurement, StepTime

WAITING = 0.05
"""Share of the time that other processes may take: no more than a verdict on time tolerates."""


def ledger_digest(ledger: Ledger) -> str:
    """Sixteen hex digits over every adapted name, role and rank, and every saved name."""
    lines = [f"{item.name} {item.role} {item.r}" for item in ledger.adapted]
    lines += [f"{name} saved" for name in ledger.saved]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@dataclass
class Recorder:
    """One test's record: figures by name (`metrics`) and what explains them (`detail`)."""

    suite: str
    subject: Subject
    metrics: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    outcome: str = "failed"  # until the test has passed
    reported: bool = False  # whether the test came to an end at all

    def ledger(self, ledger: Ledger) -> None:
        """What is adapted: counts, dead entries, and a digest of every adapted name and rank."""
        self.metrics |= {
            "adapted_layers": ledger.adapted_layers,
            "dead_entries": len(ledger.dead_entries),
            "ledger_digest": ledger_digest(ledger),
        }
        self.detail["adapted_by_role"] = ledger.by_role
        if ledger.dead_entries:
            self.detail["dead_entries"] = list(ledger.dead_entries)

    def parameters(self, parameters: Parameters) -> None:
        """Trainable and total parameters."""
        self.metrics |= {
            "trainable_parameters": parameters.trainable,
            "total_parameters": parameters.total,
        }

    def measurement(self, measurement: Measurement) -> None:
        """Memory and exact cost of one case."""
        found = measurement.to_dict()
        for name in (
            "peak_allocated_bytes", "first_step_peak_allocated_bytes", "loaded_bytes",
            "peak_reserved_bytes", "process_bytes", "peak_rss_bytes", "flops",
            "allocated_bytes_total",
        ):  # fmt: skip
            if found.get(name) is not None:
                self.metrics[name] = found[name]
        operations: Mapping[str, int] = found["operations"]
        self.metrics["operations"] = sum(operations.values())
        self.detail |= {
            "operations": dict(operations),
            "breakdown": measurement.breakdown,
            "tokens_per_step": found["tokens_per_step"],
            "file_pages_bytes": found["file_pages_bytes"],
        }

    def times(self, rounds: Sequence[StepTime]) -> bool:
        """Seconds of every measured round, and why they are not to be trusted, if so. Those of a
        later launch take the place of an earlier one's, but for such; whether these were taken."""
        reason = _disturbance(rounds) or instability([r.total_seconds for r in rounds])
        if reason and "step_seconds" in self.metrics:
            return False
        for name in ("total", "forward", "backward", "optimizer"):
            key = "step_seconds" if name == "total" else f"{name}_seconds"
            self.metrics[key] = tuple(getattr(r, f"{name}_seconds") for r in rounds)
        if reason:
            self.detail["unstable"] = reason
        return True

    def summary(self) -> str:
        """One line about a measured case: peak allocated and the median step."""
        said = f"{self.subject.measured_key} {self.outcome}"
        if "peak_allocated_bytes" in self.metrics:
            said += f", {format_bytes(self.metrics['peak_allocated_bytes'])}"
        if "step_seconds" in self.metrics:
            said += f", {format_seconds(median(self.metrics['step_seconds']))} a step"
        if "launch" in self.detail:
            said += f" at launch {self.detail['launch']}"
        return said

    def record(self, key: str = "") -> Record:
        """The record as it stands, under the id `key`; a user's own adapter with its fields."""
        own = {}
        if self.subject.scenario is None:
            own = {"adapter": recorded(self.subject.adapter.as_given())}
        return Record(
            id=key,
            suite=self.suite,
            model=self.subject.model.label,
            scenario=self.subject.name,
            rank=self.subject.adapter.r,
            precision=self.subject.precision,
            outcome=self.outcome,
            metrics=self.metrics,
            detail=self.detail | own,
        )


def _disturbance(rounds: Sequence[StepTime]) -> str:
    """What came between the steps and the machine; "" if nothing did."""
    if throttled := sum(r.throttled for r in rounds):
        return f"throttled in {throttled} of {len(rounds)} rounds"
    if sum(r.waited_seconds for r in rounds) > WAITING * sum(r.total_seconds for r in rounds):
        return f"other processes took over {WAITING:.0%} of the time"
    return ""


@dataclass
class Pace:
    """How far the measured cases are. Seconds; the estimate assumes that cases cost alike."""

    total: int
    done: int = 0
    started: float | None = None

    def start(self) -> None:
        """Start the clock with the first measured case."""
        if self.started is None:
            self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        return 0.0 if self.started is None else time.monotonic() - self.started

    @property
    def per_case(self) -> float:
        return self.elapsed / self.done if self.done else 0.0

    def left(self) -> str:
        """How long the other cases may take, in words."""
        seconds = self.per_case * (self.total - self.done)
        return (
            f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"
        )


@dataclass
class RunLog:
    """Every record of this run, by test id."""

    records: dict[str, Recorder] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    deselected: list[str] = field(default_factory=list)
    interrupted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    resumed: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Records of an interrupted run that this one goes on from."""
    machine: Machine | None = None
    """The one that was measured on, where it is not this one: a cluster's nodes."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is kept of the config.json of every model that may have records, by label."""
    subjects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What decides each subject that may be measured, by its key: `configuration.decided`."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where each model lies that may have records and is not registered, by label."""

    def run(self, name: str, seed: int = 0) -> StoredRun:
        """The run as it stands, called `name`."""
        labels = {recorder.subject.model.label for recorder in self.records.values()}
        labels |= {record["model"] for record in self.resumed.values()}
        only = {option: tuple(values) for option, values in self.only.items()}
        return StoredRun(
            name,
            versions(),
            self.machine or machine(),
            {
                **{key: parse_record(key, raw, "resumed") for key, raw in self.resumed.items()},
                **{key: recorder.record(key) for key, recorder in self.records.items()},
            },
            seed,
            Selection(self.arguments, frozenset(self.deselected), only),
            interrupted=self.interrupted,
            options=self.options,
            # Before the first case, of all that may come.
            models={k: kept for k, kept in self.models.items() if not labels or k in labels},
            subjects=self.subjects,
            places={k: where for k, where in self.places.items() if not labels or k in labels},
        )
