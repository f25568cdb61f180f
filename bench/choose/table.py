"""The choice: every row with its cost and standing, and the one that is proposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bench.choose.costs import Cost, CostAsked, costs
from bench.choose.published import said_for
from bench.choose.rows import (
    EVERYTHING,
    PROPOSED_PRECISIONS,
    PROPOSED_SCENARIOS,
    ScenarioPlan,
    dominates,
    plans,
)
from bench.errors import BenchError
from bench.models.precision import precision
from bench.predict.gpus import UNCERTAIN, Gpu
from bench.units import format_bytes

if TYPE_CHECKING:
    from bench.models.architectures import Model
    from bench.training.cases import Case, StepOptions

# What is proposed among what fits: the first of these.
_PREFERRED = ("everything", "feed-forward", "attention", "query-value")


@dataclass(frozen=True)
class ChoiceRow:
    """One scenario in one precision, with or without checkpointing.

    `on_front` says that the row fits, and that no other that fits is at least as good in everything
    and better in something: how much of the model is reached, bits of the frozen weights, FLOPs.
    Memory is what they have to fit in, and no aim beside: what a row leaves over is in its limits.
    With it as a fourth aim every row would be on the front, since each saving of memory costs one
    of the other three.
    """

    number: int
    plan: ScenarioPlan
    precision: str
    checkpointing: bool
    case: Case = field(repr=False)
    cost: Cost
    relative_flops: float = 1.0
    on_front: bool = False

    @property
    def fits(self) -> bool:
        return self.cost.fit is not None and self.cost.fit.fits

    def aims(self) -> tuple[float, ...]:
        """What is compared, each the better the smaller."""
        return (-self.plan.reached, -precision(self.precision).bits, self.cost.flops)


@dataclass(frozen=True)
class Choice:
    """A model's rows on one GPU. `proposed` is None where nothing fits; `supports` and `against`
    are published results on the proposed scenario, `missing` says which scenarios the model lacks
    and why. `shortened_from` is the length in the place of which the model's own limit stands."""

    model: Model
    gpu: Gpu
    step: StepOptions
    rows: tuple[ChoiceRow, ...]
    missing: dict[str, str]
    proposed: ChoiceRow | None
    reason: str
    supports: tuple[str, ...]
    against: tuple[str, ...]
    budget: int | None
    shortened_from: int | None = None
    norms: Mapping[str, float] = field(default_factory=dict)
    """Of the gradient by role, where a probe was asked for; `signal` says it in words."""
    signal: str = ""


def choose(
    model: Model,
    gpu: Gpu,
    step: StepOptions,
    *,
    precisions: Sequence[str] = PROPOSED_PRECISIONS,
    rank: int = 16,
    budget: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    shorten: bool = False,
    show: int | None = None,
) -> Choice:
    """Every role scenario × precision × checkpointing, predicted on `gpu`.

    `shorten` allows a step of fewer tokens where the model has no positions for those of `step`;
    `show` is the number of a row that has to be there.

    Raises BenchError for a model without roles, a budget too small for all of them, a step too
    long, a row that is not there (all before anything is predicted), and where no row can be.
    """
    from bench.scenarios.subjects import Subject
    from bench.training.cases import check_has_length
    from bench.training.limits import case_limit

    for name in precisions:
        precision(name)
    planned, missing = plans(model, rank, budget)
    rows_there = len(planned) * len(precisions) * 2
    if show is not None and not 1 <= show <= rows_there:
        raise BenchError(f"--show {show}: the rows are 1 to {rows_there}")
    first = Subject(model, "own", planned[0].adapter, precision=precisions[0]).case(step)
    if not shorten:
        check_has_length(first)
    limit, has_length = case_limit(first), first.task.has_length
    asked_length = None
    if limit is not None and step.seq_len > limit:
        if not shorten:
            raise BenchError(f"--seq-len {step.seq_len}: {model.label} has positions for {limit}")
        asked_length, step = step.seq_len, replace(step, seq_len=limit)
    made = []
    for plan in planned:
        for name in precisions:
            subject = Subject(model, plan.scenario, plan.adapter, precision=name)
            made += [
                (plan, name, on, subject.case(replace(step, gradient_checkpointing=on)))
                for on in (False, True)
            ]
    asked = [CostAsked(case, gpu, limit, has_length) for *_, case in made]
    found = costs(asked, lambda done: progress(done, len(asked)))
    if all(cost.error for cost in found):
        raise BenchError(found[0].error)
    rows = [
        ChoiceRow(number, plan, name, on, case, cost)
        for number, ((plan, name, on, case), cost) in enumerate(zip(made, found, strict=True), 1)
    ]
    rows = _standing(rows)
    proposed = _proposed(rows)
    others = tuple(
        n for n in PROPOSED_SCENARIOS if n not in (EVERYTHING, proposed and proposed.plan.scenario)
    )
    supports, against = said_for(proposed.plan.scenario, others) if proposed else ([], [])
    return Choice(
        model, gpu, step, tuple(rows), missing, proposed, _reason(rows, proposed, gpu, budget),
        tuple(supports), tuple(against), budget, asked_length,
    )  # fmt: skip


def _standing(rows: Sequence[ChoiceRow]) -> list[ChoiceRow]:
    least = min(row.cost.flops for row in rows if not row.cost.error)
    fitting = [row for row in rows if row.fits]
    return [
        row if row.cost.error
        else replace(
            row,
            relative_flops=row.cost.flops / least,
            on_front=row.fits
            and not any(dominates(other.aims(), row.aims()) for other in fitting),
        )
        for row in rows
    ]  # fmt: skip


def _proposed(rows: Sequence[ChoiceRow]) -> ChoiceRow | None:
    """The scenario that published results speak for most among those that fit; there the most bits,
    and no checkpointing where it is not needed."""
    candidates = [row for row in rows if row.fits and row.plan.scenario in _PREFERRED]
    return min(
        candidates or [row for row in rows if row.fits],
        key=lambda row: (
            [*_PREFERRED, EVERYTHING].index(row.plan.scenario),
            -precision(row.precision).bits,
            row.checkpointing,
        ),
        default=None,
    )


def _no_fit(rows: Sequence[ChoiceRow], does: str = "does") -> str:
    """What is said of rows none of which surely fits."""
    verdicts = {row.cost.fit.verdict for row in rows if row.cost.fit is not None}
    return "may not fit" if UNCERTAIN in verdicts else f"{does} not fit"


def _reason(
    rows: Sequence[ChoiceRow], proposed: ChoiceRow | None, gpu: Gpu, budget: int | None
) -> str:
    if proposed is None:
        least = min(
            (row for row in rows if not row.cost.error),
            key=lambda row: row.cost.peak_reserved_bytes,
        )
        assert least.cost.fit is not None
        fit = least.cost.fit
        surely = "surely " if fit.verdict == UNCERTAIN else ""
        taken = f"{format_bytes(fit.low_bytes)} to {format_bytes(fit.high_bytes)} reserved"
        return (
            f"nothing {surely}fits {gpu.name}: row {least.number}, the smallest, lacks "
            f"{format_bytes(-fit.margin_bytes)} at the upper end of what it may take ({taken}, "
            f"beside {format_bytes(fit.context_bytes)} for the CUDA context; {fit.why})"
        )
    wider = [
        name for name in _PREFERRED[: _PREFERRED.index(proposed.plan.scenario)]
        if any(row.plan.scenario == name for row in rows)
    ] if proposed.plan.scenario in _PREFERRED else []  # fmt: skip
    reaching = [row for row in rows if row.plan.scenario in wider]
    names = " and ".join(filter(None, (", ".join(wider[:-1]), *wider[-1:])))
    parts = [
        f"{names} {_no_fit(reaching, 'do' if len(wider) > 1 else 'does')}"
        if wider
        else "the scenario that most of the published results below speak for",
        f"{proposed.precision} is the most bits in which it fits",
    ]
    same = (proposed.plan, proposed.precision, False)
    without = [row for row in rows if (row.plan, row.precision, row.checkpointing) == same]
    parts.append(
        f"it {_no_fit(without)} without checkpointing" if proposed.checkpointing
        else "it needs no checkpointing, which would compute the forward pass twice"
    )  # fmt: skip
    if budget:
        parts.append(f"all rows train about {budget:,} parameters")
    return "; ".join(parts)
