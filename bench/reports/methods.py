"""What other PEFT methods train on a model, and every method at one budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.formulas.kinds import UNCOUNTED
from bench.reports.layout import aligned
from bench.units import format_change, text_of

if TYPE_CHECKING:
    from bench.formulas import Parameters
    from bench.formulas.budgets import BudgetRow
    from bench.formulas.methods import Method
    from bench.models.architectures import Model
    from bench.targets import Ledger


def method_json(model: Model, asked: Method, counted: Parameters, ledger: Ledger) -> dict[str, Any]:
    """One JSON object: the method's config, its parameters by term, what has no effect."""
    return {
        "model": model.label,
        "method": asked.name,
        "config": asked.to_dict(),
        "trainable_parameters": counted.trainable,
        "total_parameters": counted.total,
        "terms": [asdict(term) for term in counted.terms],
        "dead_entries": list(ledger.dead_entries),
        "dead_fields": [asdict(dead) for dead in ledger.dead_fields],
        "source": asked.kind.source,
    }


def method_text(model: Model, asked: Method, counted: Parameters) -> str:
    """What the method trains, and the terms that it is the sum of."""
    given = ", ".join(f"{key} {value}" for key, value in asked.to_dict().items())
    lines = [
        f"{model.label}, {asked.name}" + (f", {given}" if given else ""),
        f"  trainable {counted.trainable:,} of {counted.total:,} ({counted.share:.4%})",
    ]
    terms = " + ".join(f"{term.name} {term.trained:,}" for term in counted.terms)
    return text_of([*lines, f"    = {terms}"])


def budget_json(
    model: Model, budget: int, rows: Iterable[BudgetRow], dead_entries: Sequence[str]
) -> list[dict[str, Any]]:
    """One JSON object a method."""
    shared = {
        "model": model.label,
        "notes": list(model.notes),
        "budget": budget,
        "dead_entries": dead_entries,
        "methods_left_out": sorted(UNCOUNTED),
    }
    return [{**shared, **asdict(row)} for row in rows]


def budget_text(model: Model, budget: int, rows: Iterable[BudgetRow]) -> str:
    """One line a method: its size nearest to the budget, or why it has none."""
    head = f"{model.label}: methods at {budget:,} trainable parameters"
    every = list(rows)
    sizes = [
        (r.setting, f"{r.trainable:,}", format_change(r.trainable / budget))
        for r in every
        if r.trainable is not None
    ]
    said = iter(aligned(sizes, "lrr"))
    lines = [(r.method, r.refusal if r.trainable is None else next(said)) for r in every]
    return text_of([head, *(f"  {line}" for line in aligned(lines, "ll")), left_out()])


def left_out() -> str:
    """PEFT's methods that are not counted."""
    return f"left out, with no closed form here: {', '.join(sorted(UNCOUNTED))}"
