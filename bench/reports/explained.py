"""`bench explain` for people and for programs: which configurations train a given number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from bench.explain import SEARCHED, Explanation, Found
from bench.units import text_of


def explanation_json(label: str, answer: Explanation) -> dict[str, object]:
    """One JSON object: what gives the number, and what was searched."""

    def row(found: Found) -> dict[str, object]:
        return {**asdict(found), "adapter": found.adapter.to_dict()}

    return {
        "model": label,
        "trainable": answer.trainable,
        "base": answer.base,
        "remark": answer.remark or None,
        "full_fine_tuning": answer.full,
        "searched": SEARCHED,
        "tried": answer.tried,
        "exact": [row(f) for f in answer.exact],
        "some_layers": [row(f) for f in answer.some_layers],
        "not_shown": answer.more,
        "not_shown_some_layers": answer.more_some_layers,
        "nearest": [row(f) for f in answer.nearest],
        "nearest_popular": [row(f) for f in answer.nearest_popular],
    }


def explanation_text(label: str, answer: Explanation) -> str:
    """What trains the number on the model called `label`, or what comes nearest; what all of the
    answers have in common is said once."""
    lines = []
    if answer.full:
        lines.append(f"{answer.trainable:,} is every parameter of {label}: full fine-tuning")
    if answer.exact:
        common, rest = _common(answer.exact)
        lines.append(f"{answer.trainable:,} trainable parameters on {label}{common}:")
        lines += [f"  {line}" for line in rest]
        if len(answer.exact) > 1:
            lines.append("the likeliest first: what recipes and defaults say, at a usual rank")
    if answer.some_layers:
        total = _of(answer.some_layers[0])  # no bias is trained: they all have the same
        known = {_of(found) for found in answer.exact} == {total}
        lines.append("of some layers only, which give it too" + f", {total}" * (not known) + ":")
        lines += [f"  {found.describe()}{_note(found)}" for found in answer.some_layers]
    if answer.more:
        lines.append(_not_shown(answer))
    if not (answer.exact or answer.some_layers or answer.full):
        lines.append(
            f"{answer.trainable:,} trainable parameters on {label}: not found among "
            f"{answer.tried:,} configurations, each at every rank; the nearest of them:"
        )
        lines += _rows(answer.nearest, answer.trainable)
        if popular := [f for f in answer.nearest_popular if f not in answer.nearest]:
            lines.append("the nearest of the popular sets:")
            lines += _rows(popular, answer.trainable)
        lines.append(f"tried: {SEARCHED}")
    if answer.remark:
        lines.append(answer.remark)
    return text_of(lines)


def _not_shown(answer: Explanation) -> str:
    """How many more give the number, and of them how many in some layers only."""
    partly = answer.more_some_layers
    kind = f" ({partly:,} of them of some layers only)" if 0 < partly < answer.more else ""
    only = " of some layers only" if partly == answer.more else ""
    return (
        f"not shown: up to {answer.more:,} more{only} that give it too and are less likely{kind}; "
        "bench targets says what one of your own trains"
    )


def _rows(nearest: Iterable[Found], trainable: int) -> Iterator[str]:
    for found in nearest:
        off = f"{found.trainable:,} ({found.trainable - trainable:+,})"
        yield f"  {found.describe()}{_note(found)}: {off}"


def _common(rows: Sequence[Found]) -> tuple[str, list[str]]:
    """What every row says, and what is left to say of each."""
    described = [found.describe().split("; ") for found in rows]
    shared = [part for part in described[0] if all(part in parts for parts in described)]
    shared = shared if len(rows) > 1 else []
    totals = {found.total for found in rows}
    said = [", ".join(shared)] if shared else []
    if len(totals) == 1:
        said.insert(0, _of(rows[0]))
    left = []
    for found, parts in zip(rows, described, strict=True):
        own = "; ".join(p for p in parts if p not in shared) or "as above"
        left.append(own + _note(found) + (f", {_of(found)}" if len(totals) > 1 else ""))
    return "".join(f", {part}" for part in said), left


def _of(found: Found) -> str:
    return f"of {found.total:,} in all ({found.trainable / found.total:.4%})"


def _note(found: Found) -> str:
    return f" ({found.note})" if found.note else ""
