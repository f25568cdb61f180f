"""`bench explain`: which configurations train exactly so many parameters."""

from __future__ import annotations

import argparse
import re

from bench.cli.options import MOST_PARAMETERS, TEXT, Add, add_format, add_model
from bench.cli.output import fitted, json_lines, put
from bench.errors import BenchError, check_most
from bench.units import text_of

HELP = "which configurations train exactly this many parameters"


def add_options(add: Add) -> None:
    """The model and the numbers in the log."""
    # fmt: off
    add("--trainable", required=True, metavar="N",
        help="the number in the log, 40,370,176 too, or PEFT's whole line 'trainable params: ...'")
    add("--total", metavar="N", help="all parameters, where the log has them")
    # fmt: on
    add_model(add)
    add_format(add, "terminal", TEXT)


def run(options: argparse.Namespace) -> int:
    """Print what gives the number; 0 if something does, 1 if nothing does."""
    trainable, total = read_line(options.trainable)
    wrong_share = share_notes(options.trainable, trainable, total)
    if options.total is not None:
        total = read_count(options.total, "--total")

    from bench.explain import explain
    from bench.explain.search import check_counts
    from bench.models.architectures import load_model
    from bench.reports.explained import explanation_json, explanation_text

    check_counts(trainable, total)
    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    answer = explain(model.table, trainable, total)
    notes = [*model.notes, *wrong_share]
    if options.format == "json":
        put(json_lines([{**explanation_json(model.label, answer), "notes": notes}]))
    else:
        told = text_of([*(f"note: {note}" for note in notes), ""])
        put(fitted(told + explanation_text(model.label, answer)) + "\n")
    return 0 if answer.exact or answer.full else 1


def read_line(text: str) -> tuple[int, int | None]:
    """(trainable, all parameters or None) of a number, or of the line that PEFT prints:
    "trainable params: 3,407,872 || all params: 8,033,669,120 || trainable%: 0.0424".

    Raises BenchError for anything else.
    """
    named = {
        key: found[1]
        for key in ("trainable params", "all params")
        if (found := re.search(rf"{key}\s*:\s*([\d,_.' ]*\d)", text))
    }
    if not named:
        return read_count(text, "--trainable"), None
    if "trainable params" not in named:
        raise BenchError(f"--trainable: the line says no 'trainable params: N': {text!r}")
    total = named.get("all params")
    return (
        read_count(named["trainable params"], "--trainable"),
        read_count(total, "--trainable") if total else None,
    )


def share_notes(text: str, trainable: int, total: int | None) -> list[str]:
    """What is wrong with the percentage of PEFT's line, where it has one: it differs from that of
    its own counts by more than its digits were rounded."""
    found = re.search(r"trainable%\s*:\s*(\d+(?:\.(\d*))?)", text)
    if not found or not total:
        return []
    exact = 100 * trainable / total
    rounding = max(0.5 * 10.0 ** -len(found[2] or ""), 1e-9 * exact)
    if abs(float(found[1]) - exact) <= rounding * (1 + 1e-9):
        return []
    return [
        f"the line says trainable% {found[1]:.20}, and {trainable:,} of {total:,} are {exact:.4f}: "
        "what is told here goes by the counts"
    ]


def read_count(text: str, where: str) -> int:
    """A whole number, with or without marks between groups of three digits.

    Raises BenchError, naming `where`, for anything else.
    """
    plain = text.strip()
    if re.fullmatch(r"\d{1,3}([,_' ]\d{3})+", plain):
        plain = re.sub(r"\D", "", plain)
    if re.fullmatch(r"[+-]?[0-9]{19,}", plain):
        shown = plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}..."
        raise BenchError(f"{where} {shown} is too large: {MOST_PARAMETERS:,} is most")
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", plain):
        raise BenchError(
            f"{where} {text!r} is no whole number: write 40370176, 40,370,176, or the whole line "
            "that PEFT prints"
        )
    check_most(where, int(plain), MOST_PARAMETERS)
    return int(plain)


_SHOWN = 40
