"""What an arm has shown so far, and the record of a stored run that holds it, both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bench.baselines.runs import KEY, Record, Selection, StoredRun
from bench.errors import BenchError
from bench.learning.arms import Arm
from bench.learning.stored import Detail, Fit, read_detail
from bench.training.machine import MEASURING_THREADS, machine, versions

if TYPE_CHECKING:
    from bench.learning.study import Study

SUITE = "learning"
_TIME = "taken beside other processes: for the report, not for a verdict"


@dataclass(frozen=True)
class Tuned:
    """The best rate, and the held-back loss of each rate at each rung (rate -> step -> nats; inf
    where it diverged)."""

    rate: float
    losses: dict[float, dict[int, float]] = field(default_factory=dict)

    @property
    def at_edge(self) -> bool:
        """Whether the best is the least or the largest tried: a better one may lie beyond."""
        return self.rate in (min(self.losses), max(self.losses))


@dataclass(frozen=True)
class Fitted:
    """What training one arm with one seed has shown.

    losses: evaluation loss (nats a text or token) by step; forgetting: how far the text of another
    kind is from where it was (see `Fit.drift`); gradient_norms: by role, at the first step;
    step_seconds: the median of the processor's time; peak_allocated_bytes and flops: of the second
    step, where they were followed. diverged: at which step the loss was no number, 0 if never.
    """

    seed: int
    rate: float
    losses: dict[int, float] = field(default_factory=dict)
    forgetting: float | None = None
    tokens: int = 0
    gradient_norms: dict[str, float] = field(default_factory=dict)
    step_seconds: float = 0.0
    peak_allocated_bytes: int | None = None
    flops: float | None = None
    diverged: int = 0

    @property
    def final(self) -> float:
        return self.losses[max(self.losses)] if self.losses and not self.diverged else math.inf


@dataclass
class Shown:
    """One arm: its tuning by the tuning's seed, and its training by seed."""

    arm: Arm
    tuned: dict[int, Tuned] = field(default_factory=dict)
    fitted: dict[int, Fitted] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """The rate that its seeds are trained with: the first tuning's."""
        return self.tuned[min(self.tuned)].rate if self.tuned else None

    @property
    def losses(self) -> dict[int, float]:
        """The last evaluation loss by seed, in nats; inf where it diverged."""
        return {seed: one.final for seed, one in sorted(self.fitted.items())}


def record_id(study: Study, arm: Arm) -> str:
    """What the arm is stored under."""
    return f"{SUITE}/{study.name}/{arm.id}"


def to_record(study: Study, shown: Shown) -> Record:
    """The record of what an arm has shown. Diverged seeds have no loss, and make its outcome."""
    arm = shown.arm
    fits = [shown.fitted[seed] for seed in sorted(shown.fitted)]
    learned = [one for one in fits if not one.diverged]
    metrics: dict[str, Any] = {
        "trainable_parameters": arm.trainable, "total_parameters": arm.total,
        "adapted_layers": arm.layers,
    }  # fmt: skip
    if learned:
        metrics["evaluation_loss"] = tuple(one.final for one in learned)
        metrics["step_seconds"] = tuple(one.step_seconds for one in learned)
    followed = next((one for one in fits if one.peak_allocated_bytes is not None), None)
    if followed is not None:
        metrics["peak_allocated_bytes"] = followed.peak_allocated_bytes
    settings = study.settings
    return Record(
        record_id(study, arm), SUITE, study.model.label, arm.name, arm.rank, arm.precision,
        "ok" if len(learned) == len(fits) else "diverged",
        metrics,
        {
            "batch_size": settings.batch_size,
            "seq_len": settings.length,
            "step_options": study.described,
            "matched": arm.budget,
            "shifted": arm.shift,
            "ranks": arm.ranks,
            "reached": dict(arm.reached),
            "rate": shown.rate,
            "tuning": {str(seed): _tuning(one) for seed, one in shown.tuned.items()},
            "seeds": [one.seed for one in learned],
            "fits": [_plain(one) for one in fits],
            "unstable": _TIME,
        },
    )  # fmt: skip


def _tuning(tuned: Tuned) -> dict[str, Any]:
    losses = {
        f"{rate:g}": {str(step): _told(loss) for step, loss in by_step.items()}
        for rate, by_step in tuned.losses.items()
    }
    return {"rate": tuned.rate, "losses": losses}


def _told(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _plain(one: Fitted) -> dict[str, Any]:
    values = asdict(one)
    values["losses"] = {str(step): _told(loss) for step, loss in one.losses.items()}
    norms = one.gradient_norms.items()
    values["gradient_norms"] = {role: float(f"{norm:.5g}") for role, norm in norms}
    return values


def from_record(record: Record, arm: Arm | None = None, file: str = "") -> Shown:
    """What `to_record` wrote, of `arm` or of what the record tells of it. BenchError, with the
    place in `file`, where the record is no such one."""
    detail = read_detail(record, file)
    tuned = {
        int(seed): Tuned(
            one.rate,
            {
                float(rate): {int(s): _read(loss) for s, loss in by_step.items()}
                for rate, by_step in one.losses.items()
            },
        )
        for seed, one in detail.tuning.items()
    }
    fitted = {one.seed: _fitted(one) for one in detail.fits}
    return Shown(arm or _arm_of(record, detail, file), tuned, fitted)


def _fitted(one: Fit) -> Fitted:
    norms = {role: float(norm) for role, norm in one.gradient_norms.items()}
    return Fitted(
        one.seed, one.rate, {int(s): _read(loss) for s, loss in one.losses.items()},
        None if one.forgetting is None else float(one.forgetting), one.tokens, norms,
        one.step_seconds, one.peak_allocated_bytes, one.flops, one.diverged,
    )  # fmt: skip


def _arm_of(record: Record, detail: Detail, file: str) -> Arm:
    names = ("trainable_parameters", "total_parameters")
    trainable, total = (record.metrics.get(name) for name in names)
    if not isinstance(trainable, int) or not isinstance(total, int):
        where = f"{file}: {record.id}" if file else record.id
        raise BenchError(f"{where}: a record of the learning suite has {' and '.join(names)}")
    return Arm(
        record.scenario, "", None, trainable, total,
        rank=record.rank, ranks=detail.ranks, budget=detail.matched,
        precision=record.precision or "", shift=detail.shifted, seeds=len(detail.fits),
        reached=detail.reached,
    )  # fmt: skip


def shown_in(run: StoredRun) -> dict[str, Shown]:
    """Every arm of a stored run, by name. BenchError for a run of another suite."""
    if not all(record.suite == SUITE for record in run.records.values()):
        raise BenchError(f"{run.label}: not a run of the learning suite (bench learn --save NAME)")
    file = str(run.path or "")
    found = (from_record(record, file=file) for record in run.records.values())
    return {one.arm.name: one for one in found}


def _read(loss: Any) -> float:
    return math.inf if loss is None else float(loss)


def run_of(study: Study, shown: Mapping[str, Shown], name: str, *, interrupted: bool) -> StoredRun:
    """The stored run of what the arms have shown."""
    asked: tuple[str, ...] = (f"{SUITE}/{study.name}",)
    if not study.whole:
        asked = tuple(record_id(study, arm) for arm in study.arms)
    records = [to_record(study, one) for one in shown.values() if one.fitted or one.tuned]
    return StoredRun(
        name,
        versions(),
        machine(MEASURING_THREADS),
        {record.id: record for record in records},
        selection=Selection(asked),
        interrupted=interrupted,
        options={"study": study.name, "margin": study.settings.margin},
    )


def document_of(run: StoredRun) -> dict[str, Any]:
    """The run as `bench.baselines.write_run` stores it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"datetime": now, "machine_info": {}, "commit_info": {}, "benchmarks": [],
            KEY: run.table()}  # fmt: skip
