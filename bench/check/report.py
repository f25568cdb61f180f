"""What `bench check` found, as text, as JSON and as annotations of GitHub Actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.reports.layout import aligned
from bench.reports.ledger import ledger_json, ledger_text
from bench.saved.values import parameter_of
from bench.units import one_line, text_of

if TYPE_CHECKING:
    from bench.check.answer import Checked
    from bench.saved.keys import KeysFound
    from bench.saved.values import Values


def check_text(checked: Checked, *, colour: bool = False) -> str:
    """What the path was taken for, the ledger, the trained weights, the step's memory."""
    red, plain = ("\033[31m", "\033[0m") if colour else ("", "")
    model = checked.subject.model
    source = "registered" if model.architecture else model.source_folder or "the hub's cache"
    lines = [
        f"{one_line(str(checked.path))}: {checked.kind}",
        f"  base model: {checked.recipe.model or 'not named'}, checked on {model.label} "
        f"({model.model_type}, {source})",
        *(f"  note: {note}" for note in checked.notes),
        *ledger_text(
            checked.subject,
            checked.ledger,
            checked.parameters,
            colour=colour,
            failing=checked.failing,
        ).split("\n"),
    ]
    if checked.comparison is not None and checked.weights is not None:
        lines += _keys(checked.comparison, checked.weights.name)
    if checked.values is not None:
        lines += _values(checked, checked.values)
    told = {hazard.code for hazard in checked.ledger.hazards}
    for finding in checked.findings:
        if finding.code not in told and finding.file == checked.weights:
            colours = (red, plain) if finding.error else ("", "")
            lines.append(f"  {colours[0]}{finding.code}{colours[1]}: {finding.text}")
    lines += _memory(checked)
    errors = sum(finding.error for finding in checked.findings)
    hazards = len(checked.findings) - errors
    found = f"{_counted(errors, 'error')}, {_counted(hazards, 'hazard')}"
    if checked.prediction is not None and (fit := checked.prediction.fit) is not None:
        found += f"; the step {fit.doubt}" if fit.doubt else ""
    if checked.not_predicted:
        found += "; memory asked for, and not predicted"
    lines.append(found)
    return text_of(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _keys(keys: KeysFound, name: str) -> list[str]:
    if keys.fits:
        return [f"  {name}: {keys.saved} tensors, all of which PEFT looks for, and none missing"]
    return [
        f"  {name}: {keys.saved} tensors; PEFT finds no place for {len(keys.ignored)}, and misses "
        f"{len(keys.missing) + len(keys.lost)}"
    ]


def _values(checked: Checked, values: Values) -> list[str]:
    if not values.updates:
        return []
    norms = values.norms_by(_role_of(checked))
    rows = [
        (role.replace("_", "-"), f"{count} modules", f"{least:.3g} to {most:.3g}")
        for role, (count, least, most) in norms.items()
    ]
    head = "  norm of B·A by role (smallest to largest):"
    return [head, *(f"    {line}" for line in aligned(rows, "lrl"))]


def _role_of(checked: Checked) -> Callable[[str], str]:
    """The role of what the file calls a module: PEFT nests the parameters of one."""
    nested: dict[str, list[str]] = {}
    for item in checked.ledger.adapted:
        if item.parameter is not None:
            nested.setdefault(item.owner, []).append(item.name)
    role_of = checked.subject.model.role_of
    return lambda module: role_of(parameter_of(module, nested))


def _memory(checked: Checked) -> list[str]:
    from bench.reports.predicted import prediction_text

    if checked.not_predicted:
        return [f"  memory is not predicted: {checked.not_predicted}"]
    if checked.prediction is None:
        return []
    said = prediction_text(checked.prediction).split("\n")
    return [f"  {line}" for line in (*said, *_of_step(checked))]


def _of_step(checked: Checked) -> list[str]:
    """What the prediction does not cover of the file's own step."""
    step = checked.recipe.step
    if checked.prediction is None or step is None:
        return []
    return [f"note on the step: {note}" for note in step.notes]


def check_json(checked: Checked) -> dict[str, Any]:
    """One JSON object: what was read, the ledger as `bench targets --json` has it, the findings."""
    step = checked.recipe.step
    return {
        **ledger_json(checked.subject, checked.ledger, checked.parameters, failing=checked.failing),
        "path": str(checked.path),
        "taken_for": checked.kind,
        "tool": checked.recipe.tool,
        "base_model": checked.recipe.model,
        "notes": list(checked.notes),
        "step": asdict(step) if step else None,
        "findings": [{**asdict(f), "file": str(f.file)} for f in checked.findings],
        "saved": asdict(checked.comparison) if checked.comparison else None,
        "values": _values_json(checked) if checked.values else None,
        "prediction": checked.prediction.to_dict() if checked.prediction else None,
        "not_predicted": checked.not_predicted or None,
        "failed": checked.failed,
    }


def _values_json(checked: Checked) -> dict[str, Any]:
    values = checked.values
    assert values is not None
    return {
        "never_trained": values.never_trained,
        "not_finite": list(values.broken),
        "unchanged": list(values.unchanged),
        "norms": {
            role: {"modules": n, "smallest": least, "largest": most}
            for role, (n, least, most) in values.norms_by(_role_of(checked)).items()
        },
    }


def check_annotations(checked: Checked) -> str:
    """One line a finding, as GitHub Actions shows it on the file: errors, and hazards as warnings.

    Source: https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions
    """
    lines = [
        annotation(
            "error" if f.error else "warning", f.text, str(f.file), f.line, f"bench: {f.code}"
        )
        for f in checked.findings
    ]
    fit = checked.prediction.fit if checked.prediction else None
    if fit is not None and fit.doubt:
        lines.append(annotation("error", fit.doubt, str(checked.recipe.path), 1,
                                "bench: memory"))  # fmt: skip
    if checked.not_predicted:
        said = f"memory is not predicted: {checked.not_predicted}"
        lines.append(annotation("error", said, str(checked.recipe.path), 1, "bench: memory"))
    lines += [
        annotation("notice", note, str(checked.recipe.path), 1, "bench: not covered")
        for note in (*checked.notes, *_of_step(checked))
    ]
    return text_of(lines)


def annotation(level: str, text: str, file: str, line: int, title: str) -> str:
    """One workflow command, its text and properties escaped."""
    said = _escaped(text)
    where = f"file={_property(file)},line={line},title={_property(title)}"
    return f"::{level} {where}::{said}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
