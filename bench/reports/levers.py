"""What would make a step fit, for people: each change with what it saves, then what is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.reports.layout import aligned
from bench.units import format_bytes, one_line

if TYPE_CHECKING:
    from bench.predict.levers import Lever, Ways
    from bench.training.cases import Case


def ways_text(ways: Ways, command: Callable[[Case], str]) -> str:
    """Every change, sorted by what it saves of the peak reserved, those that were left out, and the
    smallest sets that fit, each as the command that repeats it."""
    lines = ["  alone, of the peak reserved:"] if ways.single else []
    alone = [(each.names[0], _saved(each), "fits" if each.fits else "") for each in ways.single]
    lines += [f"    {line}" for line in aligned(alone, "lrl")]
    lines += [f"  left out: {names}: {one_line(why)}" for names, why in ways.refused.items()]
    if not ways.sets:
        lines.append("  no set of these changes that was tried surely fits")
    for lever in ways.sets:
        lines.append(f"  fits with {' + '.join(lever.names)}:")
        lines.append(f"    {command(lever.case)}")
    return "\n".join(lines)


def ways_json(ways: Ways, command: Callable[[Case], str]) -> dict[str, Any]:
    """The same, JSON-safe."""

    def said(lever: Lever) -> dict[str, Any]:
        return {
            "changes": list(lever.names),
            "saves_bytes": lever.saves_bytes,
            "peak_reserved_bytes": lever.prediction.peak_reserved_bytes,
            "fits": lever.fits,
            "command": command(lever.case),
        }

    return {
        "alone": [said(each) for each in ways.single],
        "fit": [said(each) for each in ways.sets],
        "left_out": dict(ways.refused),
    }


def _saved(lever: Lever) -> str:
    size = format_bytes(abs(lever.saves_bytes))
    return size if lever.saves_bytes >= 0 else f"-{size}"
