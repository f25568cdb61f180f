"""Errors that are a user's to mend: each says what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Wrong input. Commands print its message without a traceback and exit with status 2."""


class UnknownName(BenchError):
    """A name that nothing is registered under; the message offers the nearest known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        shown = name if len(name) <= 200 else f"{name[:80]}..."
        near = difflib.get_close_matches(shown, known, n=3, cutoff=0.5)
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        offer = f"known: {', '.join(known[:_SHOWN])}{more}"
        if near:
            offer = f"did you mean {' or '.join(near)}?"
        gap = "" if not hint or hint.startswith(";") else " "
        super().__init__(f"unknown {kind} {shown!r}: {offer}{gap}{hint}")
        self.name = name


_SHOWN = 60


def check_most(what: str, value: float | None, most: int) -> None:
    """Raise BenchError, naming `what`, for more of it than anybody means."""
    if value is not None and value > most:
        raise BenchError(f"{what} is {value:,}: {most:,} is most")


EXTRAS = {
    "pytest": "suites",
    "pytest_benchmark": "suites",
    "xdist": "suites",
    "hypothesis": "suites",
    "pandas": "suites",
    "pebble": "suites",
    "pynvml": "gpu",
    "matplotlib": "plots",
    "jinja2": "report",
    "trl": "trainers",
    "datasets": "trainers",
    "ray": "cluster",
}
"""Modules that only an extra brings, and which: as in pyproject.toml."""


def missing_extra(error: ModuleNotFoundError) -> str:
    """The line that names the extra to install; "" where the module belongs to none."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return ""
    return f"{module} is not installed: pip install 'lora-target-bench[{EXTRAS[module]}]' brings it"
