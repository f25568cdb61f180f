"""The match ledger module by module, and as tables: what is adapted, and what is missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.models.modules import CONV1D, LINEAR
from bench.reports.layout import BAD, EMPTY, Report, Table

if TYPE_CHECKING:
    from bench.formulas import Parameters
    from bench.scenarios.subjects import Subject
    from bench.targets import Ledger


def adapted_modules(ledger: Ledger) -> list[dict[str, Any]]:
    """Every module and parameter with an adapter: its name, role and rank."""
    return [{"name": a.name, "role": a.role, "r": a.r} for a in ledger.adapted]


def missed_modules(subject: Subject, ledger: Ledger) -> list[dict[str, Any]]:
    """Every linear layer without one that is not trained whole either: its name and role."""
    taken = {a.name for a in ledger.adapted} | set(ledger.saved)
    return [
        {"name": m.name, "role": subject.model.role_of(m.name)}
        for m in ledger.table.modules
        if m.kind in (LINEAR, CONV1D) and m.name not in taken
    ]


def modules_text(subject: Subject, ledger: Ledger) -> str:
    """A line for each adapted module, then one for each linear layer that is missed."""
    adapted, missed = adapted_modules(ledger), missed_modules(subject, ledger)
    lines = [f"  adapted  {m['name']}  {m['role']}, r {m['r']}" for m in adapted]
    lines += [f"  trained whole  {name}" for name in ledger.saved]
    lines += [f"  missed   {m['name']}  {m['role']}" for m in missed]
    return "\n".join(lines)


def ledger_report(
    subject: Subject, ledger: Ledger, parameters: Parameters | None, *, modules: bool
) -> Report:
    """The entries as a table, what they train, and with `modules` every module as another."""
    rows = [
        (
            entry.entry,
            str(len(entry.reached)),
            ", ".join(f"{n} {role.replace('_', '-')}" for role, n in entry.roles.items()) or EMPTY,
            f"reaches nothing{entry.why_dead}" if entry.dead else EMPTY,
        )
        for entry in ledger.entries
    ]
    styles = tuple(BAD if entry.dead else "" for entry in ledger.entries)
    header = ("entry", "modules", "roles", "dead")
    tables = [
        Table("", header, tuple(rows), 1, frozenset(("modules",)), styles).without_empty_columns()
    ]
    if modules:
        listed = [
            *((m["name"], m["role"], str(m["r"])) for m in adapted_modules(ledger)),
            *((name, "trained whole", EMPTY) for name in ledger.saved),
            *((m["name"], m["role"], "missed") for m in missed_modules(subject, ledger)),
        ]
        columns = ("module", "role", "r")
        tables.append(Table("Modules", columns, tuple(listed), 1, frozenset(("r",))))
    caption = [
        f"{ledger.table.class_name}; adapted {ledger.adapted_layers} modules: "
        f"{ledger.weight_coverage:.1%} of the linear weights."
    ]
    if parameters:
        share = f"{parameters.trainable:,} of {parameters.total:,} ({parameters.share:.4%})"
        caption.append(f"Trainable {share}.")
    notes = [str(dead) for dead in ledger.dead_fields]
    notes += [f"PEFT refuses: {reason}" for reason in ledger.refusals]
    notes += [f"Hazard {hazard.code}: {hazard.reason}" for hazard in ledger.hazards]
    title = f"{subject.model.label}, {subject.name}, r {subject.adapter.r}"
    return Report(title, tuple(caption), tuple(tables), tuple(notes))
