"""A choice for people, and as one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.predict.gpus import bfloat16_note
from bench.predict.result import LIMITS
from bench.reports.layout import EMPTY, FADED, GOOD, Report, Table
from bench.reports.learning import cited
from bench.training.cases import BATCH_SIZE, RANK, SEQ_LEN
from bench.training.options import DTYPES
from bench.units import counted, format_bytes, format_count, format_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.choose.costs import Limit
    from bench.choose.table import Choice, ChoiceRow

_SCENARIO = ("scenario", "r", "layers", "coverage", "trainable")
"""The columns that are alike in all rows of a scenario."""
_HEADER = (*_SCENARIO, "row", "precision", "ckpt", "peak reserved", "fits", "max rank",
           "max length", "max batch", "FLOPs", "*")  # fmt: skip
_RIGHT = frozenset(_HEADER) - {"scenario", "precision", "ckpt", "fits", "*"}


def choice_report(choice: Choice) -> Report:
    """The table, the proposal with its reason, and what is published for and against it."""
    rows = tuple(_cells(row) for row in choice.rows)
    # What is the same in every row is said once, above.
    same = {
        name: rows[0][i]
        for i, name in enumerate(_HEADER)
        if name in ("r", "precision") and len({row[i] for row in rows}) == 1
    }
    kept = [i for i, name in enumerate(_HEADER) if name not in same]
    table = Table(
        "",
        tuple(_HEADER[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        leading=len(_SCENARIO) - ("r" in same),
        right=_RIGHT,
        styles=tuple(_style(choice, r) for r in choice.rows),
    ).without_empty_columns()
    caption = f"{choice.model.label} on {choice.gpu.name}, {step_said(choice)}"
    caption += f", {same['precision']}" if "precision" in same else ""
    caption += f", r {same['r']}" if "r" in same else ""
    if choice.budget:
        caption += f", about {choice.budget:,} trainable parameters in every row"
    return Report("Which modules?", (caption,), (table,), tuple(_notes(choice)))


def step_said(choice: Choice) -> str:
    """The step in words: `1 × 2048 tokens, adamw`."""
    step = choice.step
    has_length = choice.rows[0].case.task.has_length
    size = f"{step.batch_size} × {step.seq_len} tokens" if has_length else counted(
        step.batch_size, "image")  # fmt: skip
    return f"{size}, {step.optimizer}"


def _notes(choice: Choice) -> list[str]:
    notes = []
    if choice.proposed is None:
        notes.append(f"No row is proposed: {choice.reason}.")
    else:
        row = choice.proposed
        ck = " with checkpointing" if row.checkpointing else ""
        notes.append(
            f"Proposed: row {row.number}, {row.plan.scenario} in {row.precision}{ck} at r "
            f"{row.plan.adapter.r}: {choice.reason}. As code: --show {row.number}."
        )
        notes += [f"For it: {text}." for text in choice.supports]
        notes += [f"Against it, or no difference: {text}." for text in choice.against]
        if choice.supports and choice.against:
            notes.append(
                "These results contradict each other. None was made with this model, data and "
                "budget of yours: they say what to try first, not what will be best."
            )
        elif choice.supports or choice.against:
            notes.append("None of them was made with this model, data and budget of yours.")
    if choice.shortened_from:
        notes.append(
            f"{choice.step.seq_len:,} tokens: the model has positions for no more; without "
            f"--seq-len it would be {choice.shortened_from:,}."
        )
    notes += [f"{line}." for line in cited()]
    if choice.signal:
        notes.append(choice.signal)
    notes += [f"No row for {name}: {why}." for name, why in choice.missing.items()]
    notes += list(
        dict.fromkeys(
            f"Hazard of {row.plan.scenario}: {hazard.code}: {hazard.reason}."
            for row in choice.rows
            for hazard in row.plan.ledger.hazards
        )
    )
    errors = {row.cost.error for row in choice.rows if row.cost.error}
    notes += [f"Not predicted: {error}." for error in sorted(errors)]
    halves = any(row.case.compute == DTYPES["bf16"] for row in choice.rows)
    if halves and (bf16 := bfloat16_note(choice.gpu)):
        notes.append(f"bf16, in which quantized weights compute too: {bf16}.")
    notes.append(
        "* on the Pareto front: the row fits, and no other that does is at least as good in share "
        "of the model reached, bits of the weights and FLOPs, and better in one; the others are "
        "dominated, or do not fit. "
        "ckpt: gradient checkpointing. peak reserved: predicted. FLOPs: of a step, relative to the "
        "cheapest row. Each limit (max) holds with everything else as asked for; + marks one that "
        "the model's positions or the search ended, not memory."
    )
    notes.append(f"Predicted, not measured; {'; '.join(LIMITS)}.")
    return notes


def _cells(row: ChoiceRow) -> tuple[str, ...]:
    plan, cost = row.plan, row.cost
    shared = (
        plan.scenario, str(plan.adapter.r), str(plan.ledger.adapted_layers),
        format_percent(100 * plan.ledger.weight_coverage), format_count(plan.trainable),
        str(row.number), row.precision, "yes" if row.checkpointing else "no",
    )  # fmt: skip
    if cost.error:
        return (*shared, *[EMPTY] * 7)
    return (
        *shared, format_bytes(cost.peak_reserved_bytes), fits_said(row),
        *(_limit(cost.limits, what) for what in (RANK, SEQ_LEN, BATCH_SIZE)),
        f"× {row.relative_flops:.2f}", "*" if row.on_front else "",
    )  # fmt: skip


def fits_said(row: ChoiceRow) -> str:
    """Yes, no, or uncertain where the interval of the prediction holds both."""
    assert row.cost.fit is not None
    return row.cost.fit.verdict


def _limit(limits: dict[str, Limit | None], what: str) -> str:
    if what not in limits:
        return EMPTY
    found = limits[what]
    return "none" if found is None else f"{found.value:,}{'+' if found.bounded else ''}"


def _style(choice: Choice, row: ChoiceRow) -> str:
    if choice.proposed is not None and row.number == choice.proposed.number:
        return GOOD
    return "" if row.on_front else FADED


def choice_plot(choice: Choice) -> Figure:
    """Predicted peak against relative FLOPs, by precision, the proposed row named."""
    from bench.reports.plots import CostPoint, choice_figure

    groups: dict[str, list[CostPoint]] = {}
    for row in choice.rows:
        if row.cost.error:
            continue
        proposed = choice.proposed is not None and row.number == choice.proposed.number
        name = f"{row.number} {row.plan.scenario}{', ckpt' if row.checkpointing else ''}"
        groups.setdefault(row.precision, []).append(
            CostPoint(
                row.relative_flops,
                row.cost.peak_reserved_bytes,
                f"proposed: {name}" if proposed else name,
                row.fits,
                proposed,
                str(row.number),
            )
        )
    title = f"{choice.model.label}: what each choice of modules costs"
    footer = (
        f"{step_said(choice)}. ckpt: gradient checkpointing. Predicted, not measured; "
        f"{'; '.join(LIMITS)}."
    )
    return choice_figure(title, groups, footer, (choice.gpu.name, choice.gpu.memory_bytes))


def choice_json(choice: Choice) -> dict[str, Any]:
    """Everything as one object, in raw figures."""
    return {
        "kind": "choice",
        "model": choice.model.label,
        "gpu": choice.gpu.name,
        "batch_size": choice.step.batch_size,
        "seq_len": choice.step.seq_len,
        "budget": choice.budget,
        "rows": [_row_json(row) for row in choice.rows],
        "missing": choice.missing,
        "proposed": choice.proposed.number if choice.proposed else None,
        "reason": choice.reason,
        "for": list(choice.supports),
        "against": list(choice.against),
        "trained_here": cited(),
        "signal": dict(choice.norms),
    }


def _row_json(row: ChoiceRow) -> dict[str, Any]:
    plan, cost = row.plan, row.cost
    return {
        "row": row.number,
        "scenario": plan.scenario,
        "precision": row.precision,
        "gradient_checkpointing": row.checkpointing,
        "adapter": {"r": plan.adapter.r, **plan.adapter.to_dict()},
        "adapted_layers": plan.ledger.adapted_layers,
        "weight_coverage": plan.ledger.weight_coverage,
        "reached": plan.reached,
        "hazards": {hazard.code: hazard.reason for hazard in plan.ledger.hazards},
        "trainable_parameters": plan.trainable,
        "off_budget": plan.off_budget,
        "peak_allocated_bytes": cost.peak_allocated_bytes,
        "peak_reserved_bytes": cost.peak_reserved_bytes,
        "fits": None if cost.fit is None else fits_said(row),
        "margin_bytes": None if cost.fit is None else cost.fit.margin_bytes,
        "limits": {
            what: None if found is None else {"value": found.value, "bounded": found.bounded}
            for what, found in cost.limits.items()
        },
        "flops": cost.flops,
        "relative_flops": row.relative_flops,
        "front": row.on_front,
        "traced_layers": cost.traced_layers,
        "error": cost.error,
    }
