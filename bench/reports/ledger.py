"""The match ledger for people (text) and for programs (JSON)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.formulas.totals import base_totals

if TYPE_CHECKING:
    from bench.formulas import Parameters
    from bench.scenarios.subjects import Subject
    from bench.targets import Entry, Ledger


def ledger_json(subject: Subject, ledger: Ledger, parameters: Parameters | None) -> dict[str, Any]:
    """One JSON object: entries, dead entries, coverage (shares, 0 to 1), parameters by term."""
    return {
        "model": subject.model.label,
        "model_type": subject.model.model_type,
        "model_class": ledger.table.class_name,
        "scenario": subject.name,
        "adapter": subject.adapter.to_dict(),
        "adapted_layers": ledger.adapted_layers,
        "adapted_by_role": ledger.by_role,
        "trainable_parameters": parameters.trainable if parameters else None,
        "total_parameters": parameters.total if parameters else ledger.table.total_parameters,
        "base_totals": asdict(base_totals(ledger.table)),
        "terms": [asdict(term) for term in parameters.terms] if parameters else [],
        "coverage": {"weights": ledger.weight_coverage, "layers": ledger.layer_coverage},
        "entries": [
            {
                "entry": entry.entry,
                "field": entry.field,
                "matched": len(entry.reached),
                "layers": entry.layers,
                "roles": dict(entry.roles),
                "suggestion": entry.suggestion or None,
                "cause": entry.cause or None,
            }
            for entry in ledger.entries
        ],
        "dead_entries": list(ledger.dead_entries),
        "dead_fields": [asdict(dead) for dead in ledger.dead_fields],
        "saved_modules": list(ledger.saved),
        "hazards": [asdict(hazard) for hazard in ledger.hazards],
        "refusals": list(ledger.refusals),
    }


def ledger_text(
    subject: Subject, ledger: Ledger, parameters: Parameters | None, *, colour: bool = False
) -> str:
    """What each entry reaches, what is trained, and every hazard; dead entries in red."""
    red, plain = ("\033[31m", "\033[0m") if colour else ("", "")
    name = f"{subject.model.label} ({ledger.table.class_name}), {subject.name}"
    lines = [f"{name}, r {subject.adapter.r}"]
    width = max((len(entry.entry) for entry in ledger.entries), default=0)
    for entry in ledger.entries:
        colours = (red, plain) if entry.dead else ("", "")
        said = _reach(entry, len(ledger.table.layers))
        lines.append(f"  {colours[0]}{entry.entry:{width}}  {said}{colours[1]}")
    lines += [f"  {red}{dead}{plain}" for dead in ledger.dead_fields]
    if ledger.saved:
        lines.append(f"  trained whole: {', '.join(ledger.saved)}")
    lines.append(
        f"  adapted {ledger.adapted_layers} modules: {ledger.weight_coverage:.1%} of the linear "
        f"weights, {ledger.layer_coverage:.0%} of the layers"
    )
    if parameters:
        lines.append(
            f"  trainable {parameters.trainable:,} of {parameters.total:,} ({parameters.share:.4%})"
        )
        if len(parameters.terms) > 1:
            terms = (f"{term.name} {term.trained:,}" for term in parameters.terms)
            lines.append(f"    = {' + '.join(terms)}")
    if any(module.quantized for module in ledger.table.modules):
        sizes = (f"{n:,} {name}" for name, n in asdict(base_totals(ledger.table)).items())
        lines.append(f"  base model: {', '.join(sizes)} parameters")
    lines += [f"  {red}PEFT refuses{plain}: {reason}" for reason in ledger.refusals]
    lines += [f"  hazard {hazard.code}: {hazard.reason}" for hazard in ledger.hazards]
    return "\n".join(lines)


def _reach(entry: Entry, layers: int) -> str:
    if entry.dead:
        return f"reaches nothing{entry.why_dead}"
    roles = ", ".join(f"{n} {role.replace('_', '-')}" for role, n in entry.roles.items())
    inside = f" in {entry.layers} of {layers} layers" if entry.layers else ""
    return f"{len(entry.reached)} modules{inside}: {roles}"
