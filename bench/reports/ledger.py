"""The match ledger for people (text, tables) and for programs (JSON); module by module, too: what
is adapted, and what is missed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from bench.formulas.terms import base_totals
from bench.models.modules import CONV1D, LINEAR
from bench.reports.layout import BAD, EMPTY, Report, Table
from bench.units import harmless_line, one_line, text_of

if TYPE_CHECKING:
    from bench.formulas import Parameters
    from bench.models.stacks import Stack
    from bench.scenarios.subjects import Subject
    from bench.targets import Entry, Ledger

_MOST_ENTRIES = 16
"""Of more entries than these, those that differ in numbers only are told in one line."""


_SAVED_SHOWN = 6


def ledger_json(
    subject: Subject,
    ledger: Ledger,
    parameters: Parameters | None,
    *,
    failing: Collection[str] = (),
) -> dict[str, Any]:
    """One JSON object: entries, dead entries, coverage (shares, 0 to 1), parameters by term, and
    the hazards, of which `failing` fail."""
    return {
        "model": subject.model.label,
        "model_type": subject.model.model_type,
        "model_class": ledger.table.class_name,
        "scenario": subject.name,
        "adapter_file": str(subject.adapter_file) if subject.adapter_file else None,
        "adapter": subject.adapter.to_dict(),
        "adapted_layers": ledger.adapted_layers,
        "adapted_by_role": ledger.by_role,
        "trainable_parameters": parameters.trainable if parameters else None,
        "total_parameters": parameters.total if parameters else ledger.table.total_parameters,
        "base_totals": asdict(base_totals(ledger.table)),
        "terms": [asdict(term) for term in parameters.terms] if parameters else [],
        "coverage": {"weights": ledger.weight_coverage, "layers": ledger.layer_coverage},
        "stacks": [
            {
                "kind": reach.stack.kind,
                "module": reach.stack.prefix,
                "fed_by": list(reach.stack.inputs),
                "layers": len(reach.stack.layers),
                "adapted_modules": reach.modules,
                "adapted_layers": reach.layers,
                "weights": reach.weights,
                "trainable_parameters": _trained_in(ledger, reach.stack) if parameters else None,
            }
            for reach in ledger.stacks
        ],
        "entries": [
            {
                "entry": entry.entry,
                "field": entry.field,
                "matched": len(entry.reached),
                "layers": sum(reach.layers for reach in ledger.reach(entry.reached)),
                "stacks": {
                    reach.stack.label: reach.modules for reach in ledger.reach(entry.reached)
                },
                "roles": dict(entry.roles),
                "suggestion": entry.suggestion or None,
                "cause": entry.cause or None,
            }
            for entry in ledger.entries
        ],
        "dead_entries": list(ledger.dead_entries),
        "dead_fields": [asdict(dead) for dead in ledger.dead_fields],
        "saved_modules": list(ledger.saved),
        "hazards": [
            {**asdict(hazard), "fails": hazard.code in failing} for hazard in ledger.hazards
        ],
        "refusals": list(ledger.refusals),
        "ways_out": list(ledger.ways_out),
        "notes": list(subject.model.notes),
    }


_WIDEST = 60
"""A longer entry does not move what the others reach out of sight."""


def ledger_text(
    subject: Subject,
    ledger: Ledger,
    parameters: Parameters | None,
    *,
    colour: bool = False,
    failing: Collection[str] = (),
) -> str:
    """What each entry reaches, what is trained, and every hazard, the failing ones marked; dead
    entries in red."""
    red, plain = ("\033[31m", "\033[0m") if colour else ("", "")
    name = f"{subject.model.label} ({ledger.table.class_name}), {subject.name}"
    lines = [f"{name}, r {subject.adapter.r}"]
    if subject.adapter_file:
        lines[0] += f", from {one_line(str(subject.adapter_file))}"
    elif subject.adapter.target_modules is None:
        lines[0] += ", PEFT's default targets"
    lines += [f"  note: {note}" for note in subject.model.notes]
    groups = list(_groups(ledger))
    width = max((len(written) for written, _ in groups if len(written) <= _WIDEST), default=0)
    for written, entries in groups:
        colours = (red, plain) if entries[0].dead else ("", "")
        said = _reach(ledger, entries)
        lines.append(f"  {colours[0]}{written:{width}}  {said}{colours[1]}")
    lines += [f"  {red}{harmless_line(str(dead))}{plain}" for dead in ledger.dead_fields]
    if ledger.saved:
        more = len(ledger.saved) - _SAVED_SHOWN
        rest = f" and {more} more (--modules lists all)" if more > 0 else ""
        lines.append(f"  trained whole: {', '.join(ledger.saved[:_SAVED_SHOWN])}{rest}")
    if not ledger.refusals:
        lines += _coverage_lines(ledger, parameters)
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
    lines += [f"    way out: {way}" for way in ledger.ways_out]
    for hazard in ledger.hazards:
        fails = f"{red}hazard{plain} {hazard.code}, which fails"
        word = fails if hazard.code in failing else f"hazard {hazard.code}"
        lines.append(f"  {word}: {hazard.reason}")
    return text_of(lines)


def _coverage_lines(ledger: Ledger, parameters: Parameters | None) -> Iterator[str]:
    if len(ledger.stacks) > 1:
        yield from _stack_lines(ledger, parameters)
    beside = any(reach.stack not in ledger.table.main_stacks for reach in ledger.stacks)
    where = " that text feeds" if beside else ""
    yield (
        f"  adapted {ledger.adapted_layers} modules: {_covered(ledger)}, "
        f"{ledger.layer_coverage:.0%} of the layers{where}"
    )


def _covered(ledger: Ledger) -> str:
    if not ledger.has_weights_to_cover:
        return "no linear weight left to cover"
    return f"{ledger.weight_coverage:.1%} of the linear weights"


def _groups(ledger: Ledger) -> Iterator[tuple[str, list[Entry]]]:
    """The entries with how they were written; of many, those alike but for their numbers as one,
    if they are dead or alive alike."""
    if len(ledger.entries) <= _MOST_ENTRIES:
        yield from ((harmless_line(entry.entry), [entry]) for entry in ledger.entries)
        return
    alike: dict[tuple[str, bool, str], list[Entry]] = {}
    for entry in ledger.entries:
        key = (_without_numbers(entry.entry), entry.dead, _without_numbers(entry.nothing))
        alike.setdefault(key, []).append(entry)
    for (_, *_), entries in alike.items():
        first = harmless_line(entries[0].entry)
        yield (first if len(entries) == 1 else f"{first} and {len(entries) - 1} like it", entries)


def _without_numbers(text: str) -> str:
    return re.sub(r"(?<![\w])\d+(?![\w])", "N", text)


def _reach(ledger: Ledger, entries: Sequence[Entry]) -> str:
    if nothing := entries[0].nothing:
        return nothing
    found = list(dict.fromkeys(name for entry in entries for name in entry.reached))
    roles: dict[str, int] = {}
    for entry in entries:
        for role, n in entry.roles.items():
            roles[role] = roles.get(role, 0) + n
    told = ", ".join(f"{n} {role.replace('_', '-')}" for role, n in roles.items())
    reached = ledger.reach(found)
    if len(ledger.stacks) == 1:
        inside = f" in {reached[0].inside}" if reached and reached[0].inside else ""
    else:
        parts = [
            f"{r.inside.removesuffix(' layers')} {r.stack.kind} layers" if r.inside
            else f"the {r.stack.kind}"
            for r in reached
        ]  # fmt: skip
        inside = f" in {', '.join(parts)}"
    return f"{len(found)} modules{inside}: {told}"


def _stack_lines(ledger: Ledger, parameters: Parameters | None) -> Iterator[str]:
    """One line a stack: what of it is adapted, and what that trains."""
    width = max(len(reach.stack.label) for reach in ledger.stacks)
    for reach in ledger.stacks:
        said = "not adapted"
        if reach.modules:
            inside = f" in {reach.inside}" if reach.inside else ""
            said = f"{reach.modules} modules{inside}, {reach.weights:.1%} of its linear weights"
            if parameters:
                said += f", {_trained_in(ledger, reach.stack):,} trained"
        elif reach.stack.layers:
            said += f", {len(reach.stack.layers)} layers"
        yield f"  {reach.stack.label:{width}}  {said}"


def _trained_in(ledger: Ledger, stack: Stack) -> int:
    """What the adapters in one stack train: every term that belongs to an adapted layer."""
    from bench.formulas import lora_parameters
    from bench.targets import Ledger

    held = tuple(a for a in ledger.adapted if ledger.table.stack_of(a.name) is stack)
    adapter = replace(ledger.adapter, bias="none", trainable_token_indices=None)
    return lora_parameters(Ledger(ledger.table, adapter, (), held, ())).trainable


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
    return text_of(lines)


def ledger_report(
    subject: Subject, ledger: Ledger, parameters: Parameters | None, *, modules: bool
) -> Report:
    """The entries as a table, what they train, and with `modules` every module as another."""
    rows = [
        (
            entry.entry,
            str(len(entry.reached)),
            ", ".join(f"{n} {role.replace('_', '-')}" for role, n in entry.roles.items()) or EMPTY,
            entry.nothing or EMPTY,
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
        f"{ledger.table.class_name}; adapted {ledger.adapted_layers} modules: {_covered(ledger)}."
    ]
    if parameters:
        share = f"{parameters.trainable:,} of {parameters.total:,} ({parameters.share:.4%})"
        caption.append(f"Trainable {share}.")
    notes = [str(dead) for dead in ledger.dead_fields]
    notes += [f"PEFT refuses: {reason}" for reason in ledger.refusals]
    notes += [f"Hazard {hazard.code}: {hazard.reason}" for hazard in ledger.hazards]
    title = f"{subject.model.label}, {subject.name}, r {subject.adapter.r}"
    return Report(title, tuple(caption), tuple(tables), tuple(notes))
