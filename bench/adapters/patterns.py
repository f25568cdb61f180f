"""Regular expressions of a configuration, tried within bounds before anything runs them.

Python's `re` goes back and forth: `(a+)+$` on a name of forty letters takes longer than anybody
waits, and nothing interrupts it. PEFT would run the same expression on the same names. So one that
could do this (a repeated group, a reference back, more than two open repeats) is first compiled,
and tried on the model's names, in a process of its own that may use two seconds of processor time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache

from bench.errors import BenchError

ALL_LINEAR = "all-linear"
"""The one string of target_modules that is no expression."""
CPU_SECONDS = 2
_WALL_SECONDS = 60
"""For a system that knows no limit of processor time, or hardly gives any."""

LONGEST = 50_000
"""Characters of an expression: to compile more takes seconds, and no list of a model's own names is
as long."""

_TRY = """
import json, re, sys
seconds, pattern, names = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
except (ImportError, ValueError, OSError):
    pass
try:
    compiled = re.compile(pattern)
except (re.error, OverflowError, RecursionError):
    sys.exit()  # no expression: told where it is used
for name in names:
    compiled.match(name)
    compiled.fullmatch(name)
"""


def check_patterns(expressions: Iterable[tuple[str, str, str]], names: Iterable[str]) -> None:
    """BenchError, naming the field, for one of `AdapterConfig.expressions` that does not come to an
    end on these names.

    What is no regular expression at all is for others to tell.
    """
    risky = [(field, given, full) for field, given, full in expressions if _risky(given)]
    if not risky:
        return
    known = tuple(names)
    for field, given, full in risky:
        check_pattern(full, known, f"{field} {given!r}")


def check_pattern(pattern: str, names: tuple[str, ...], what: str) -> None:
    """BenchError, calling it `what`, for an expression that does not come to an end."""
    if _risky(pattern) and not _ends(pattern, names):
        raise BenchError(
            f"{what}: this expression takes over {CPU_SECONDS} s on the names of the model, and "
            "PEFT would hang on it too: a repeat within a repeat tries every way to share out a "
            "name. Write it without, such as .*\\.(q|v)_proj"
        )


@lru_cache(maxsize=1 << 15)
def check_compiles(pattern: str) -> None:
    """BenchError that says why where Python, and so PEFT, makes no expression of `pattern`, or
    takes too long to."""
    if len(pattern) > LONGEST:
        raise BenchError(
            f"it has {len(pattern):,} characters, and {LONGEST:,} is most: PEFT would be as long "
            "about compiling it"
        )
    if repeats_a_repeat(pattern) and not _ends(pattern, ()):
        raise BenchError(
            f"Python takes over {CPU_SECONDS} s to compile it, and PEFT would hang on it too: "
            "write it without repeats within repeats"
        )
    try:
        compiled(pattern)
    except (re.error, OverflowError) as error:
        raise BenchError(str(error)) from None
    except RecursionError:
        raise BenchError("its groups are nested too deeply for Python to compile") from None


@lru_cache(maxsize=1 << 15)  # a pattern a layer is usual, and `re` itself keeps but 512
def compiled(pattern: str) -> re.Pattern[str]:
    """The expression, each compiled once. Raises what `re.compile` raises."""
    return re.compile(pattern)


def fitting(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that the whole expression fits; none where it is no expression, or one that does
    not come to an end on them. For what is offered instead of what somebody wrote: a repeat of a
    repeat is not."""
    names = tuple(names)
    if not names or repeats_a_repeat(pattern):
        return []
    try:
        check_compiles(pattern)
        check_pattern(pattern, names, "offered")
    except BenchError:
        return []
    fits = re.compile(pattern).fullmatch
    return [name for name in names if fits(name)]


def _risky(pattern: str) -> bool:
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\[^1-9]", "x", pattern))
    repeats = len(re.findall(r"[*+]|\{\d*,\}", plain))
    return repeats > 2 or bool(re.search(r"\)[*+{]|\\[1-9]|\(\?P=", plain))


def repeats_a_repeat(pattern: str) -> bool:
    """Whether a repeat stands at the end of a group that is repeated."""
    return re.search(r"[*+}]\??\)[*+{]", pattern) is not None


@lru_cache(maxsize=64)
def _ends(pattern: str, names: tuple[str, ...]) -> bool:
    """Whether it is compiled and tried on the names within the bound."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([CPU_SECONDS, pattern, names]),
            text=True, capture_output=True, timeout=_WALL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
