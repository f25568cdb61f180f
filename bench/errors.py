"""Errors that are a user's to mend: each says what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from bench.units import harmless_line

T = TypeVar("T")


class BenchError(Exception):
    """Wrong input. Commands print its message without a traceback and exit with status 2.

    Each argument is a line of it. What else in one would begin a line, or speak to a terminal, is
    spelled out: messages hold names of files, and of what is in them.
    """

    def __str__(self) -> str:
        return "\n  ".join(harmless_line(str(line)) for line in self.args)


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


def nearest(written: str, names: Iterable[str], likeness: float = 0.8) -> str:
    """The one of `names` that `written` is most likely a slip of, whatever the case of its letters;
    "" if none is as much like it, by difflib's ratio."""
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(written.lower(), by_lower, n=1, cutoff=likeness)
    return by_lower[found[0]] if found else ""


def all_nearest(written: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that `written` may be a slip of and that are as much like it as `nearest`'s,
    in their order: no other can be told to be meant."""
    names = [*names]
    first = nearest(written, names)

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), written.lower()).ratio()

    return [n for n in names if first and likeness(n) >= likeness(first)]


def check_known(kind: str, name: str, known: Collection[str], hint: str = "") -> None:
    """Raise UnknownName where it is none of them."""
    if name not in known:
        raise UnknownName(kind, name, known, hint)


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """What the table has under that name; UnknownName where it has none."""
    check_known(kind, name, table)
    return table[name]


def check_most(what: str, value: float | None, most: int) -> None:
    """Raise BenchError, naming `what`, for more of it than anybody means."""
    if value is not None and value > most:
        said = f"{value:,}"
        said = said if len(said) < _SHOWN else f"{said[:_SHOWN]}... ({len(said):,} characters)"
        raise BenchError(f"{what} is {said}: {most:,} is most")


_SHOWN = 40


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


def unimportable(error: BaseException) -> str:
    """The line that names the library whose import raised this; "" where none did, and where the
    module is one of ours or Python's."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    for cause in reversed(causes):
        libraries = [*_importing(cause.__traceback__)]
        if isinstance(cause, ModuleNotFoundError) and not libraries:
            libraries = [*_foreign(cause.name or "")]
        if libraries:
            library = libraries[-1]
            said = " ".join(str(cause).split())
            return f"{library} cannot be imported: {type(cause).__name__}: {said}"[:600]
    return ""


def _importing(traceback: TracebackType | None) -> Iterator[str]:
    """The libraries whose modules were running their first lines, the innermost last."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == "<module>":
            yield from _foreign(str(traceback.tb_frame.f_globals.get("__name__", "")))
        traceback = traceback.tb_next


def _foreign(module: str) -> Iterator[str]:
    library = module.partition(".")[0]
    if library and library not in _OURS and library not in sys.stdlib_module_names:
        yield library


_OURS = ("bench", "lora_target_bench", "suites", "conftest", "__main__", "transformers_modules")
