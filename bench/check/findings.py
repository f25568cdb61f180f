"""What is wrong with a file or folder that was checked, or probably not meant, each at its line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.check.base import label_heads
from bench.models.architectures import Model
from bench.saved.folder import CONFIG
from bench.saved.keys import Mismatch
from bench.units import counted

if TYPE_CHECKING:
    from bench.check.answer import Checked


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`) or probably not meant, at a line of a file."""

    code: str
    text: str
    file: Path
    line: int = 1
    error: bool = True


def findings_of(checked: Checked, failing: Collection[str]) -> list[Finding]:
    """Everything that was found, errors first, each at the line of its file."""
    recipe, ledger, optional = checked.recipe, checked.ledger, checked.subject.optional
    found = []
    for entry in ledger.entries:
        if entry.dead and entry.entry not in optional:
            line = recipe.line(entry.field, entry.entry)
            text = f"{entry.entry} {entry.nothing}"
            found.append(Finding("dead-entry", text, recipe.path, line))
    for dead in ledger.dead_fields:
        if dead.entry not in optional:
            line = recipe.line(dead.field, dead.entry)
            found.append(Finding("dead-field", str(dead), recipe.path, line))
    for reason in ledger.refusals:
        line = recipe.line("target_modules", "")
        found.append(Finding("refused", f"PEFT refuses: {reason}", recipe.path, line))
    if checked.weights is not None:
        found += _saved_findings(checked, checked.weights)
    for hazard in ledger.hazards:
        line = recipe.line("target_modules", "")
        if hazard.code == "unknown-key":
            line = recipe.slips[0].line
        error = hazard.code in failing
        found.append(Finding(hazard.code, hazard.reason, recipe.path, line, error))
    return found


def _saved_findings(checked: Checked, file: Path) -> list[Finding]:
    found = []
    if (keys := checked.comparison) is not None:
        for move in keys.moves:
            old, new = (_in_model(prefix) for prefix in (move.old, move.new))
            text = (
                f"what the file calls {old} is {new} on this model: explains {move.keys} of "
                f"{keys.saved} keys"
            )
            found.append(Finding("prefix-moved", text, file))
        if keys.missing:
            found.append(Finding("missing-keys", _some("missing", keys.missing), file))
        if keys.ignored:
            found.append(Finding("ignored-keys", _some("ignored", keys.ignored), file))
        if keys.lost:
            found.append(
                Finding("missing-keys", _some("missing, and PEFT raises", keys.lost), file)
            )
        if keys.mismatches:
            found.append(
                Finding("other-shape", _shapes(keys.mismatches, checked.subject.model), file)
            )
        if keys.overwritten:
            text = _some("replace weights of the base model", keys.overwritten)
            found.append(Finding("base-weights", text, file, error=False))
    if (values := checked.values) is not None:
        if values.broken:
            found.append(Finding("not-finite", _some("hold NaN or infinity", values.broken), file))
        if values.never_trained:
            text = "every B is zero: this adapter was never trained, and changes nothing"
            if values.beside:
                text = (
                    f"every B is zero: the adapters of {counted(len(values.updates), 'module')} "
                    "were never trained, and change nothing; not looked at is what stands beside "
                    f"them, {_some('tensors', values.beside)}"
                )
            found.append(Finding("never-trained", text, file))
        if values.unchanged:
            text = _some("changed nothing", values.unchanged)
            found.append(Finding("unchanged", text, file, error=False))
    return found


def _shapes(wrong: tuple[Mismatch, ...], model: Model) -> str:
    """Tensors of another shape in one line, and the rank or the labels where it is those."""
    shown = tuple(f"{w.key} {_shape(w.saved)} for {_shape(w.wanted)}" for w in wrong)
    ranks = {
        (w.saved[0], w.wanted[0]) for w in wrong if w.saved and w.key.endswith("lora_A.weight")
    }
    text = _some("of another shape than the model's, at which PEFT raises", shown)
    if ranks and all(saved != wanted for saved, wanted in ranks):
        saved, wanted = (
            ", ".join(map(str, sorted(set(side)))) for side in zip(*ranks, strict=True)
        )
        text += f"; the file's rank is {saved}, {CONFIG} says {wanted}"
    heads = label_heads(model, (w.key for w in wrong))
    for w in wrong:
        if w.saved and w.key in heads and w.saved[0] != w.wanted[0]:
            text += (
                f"; the file's head has {w.saved[0]} labels, the base model's configuration "
                f"{w.wanted[0]}: load it with num_labels={w.saved[0]}"
            )
    return text


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) or "scalar"


def _in_model(prefix: str) -> str:
    """A prefix of keys as a module of the model: PEFT puts two wrappers before it."""
    return prefix.removeprefix("base_model.model").removeprefix(".") or "the model itself"


def _some(what: str, names: tuple[str, ...], shown: int = 3) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what}: {', '.join(names[:shown])}{rest}"
