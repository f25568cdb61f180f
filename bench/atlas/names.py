"""Names of repeated modules, written once: `model.layers.[0-31].self_attn.q_proj`.

A bracket stands for the numbers in that place, so one line tells of 32 modules, and of which 32:
in a hybrid model `layers.[5,15,25,35].self_attn.q_proj`. Nothing is lost: `expand` gives back the
names that `fold` was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import product
from math import prod

from bench.errors import BenchError

_BRACKET = re.compile(r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]")
_NUMBERED = re.compile(r"(?:^|(?<=\.))(?:\d+|\[[\d,-]+\])(?=\.|$)")
# Anything larger in a file is a slip of the pen.
_MOST_NAMES = 1_000_000


def fold(names: Iterable[str]) -> list[str]:
    """The fewest bracketed names that stand for exactly `names`, which differ in numbers only."""
    split = [name.split(".") for name in names]
    if not split:
        return []
    places = [i for i, part in enumerate(split[0]) if part.isdigit()]
    numbers = sorted({tuple(int(parts[i]) for i in places) for parts in split})
    folded = []
    for block in _blocks(numbers):
        parts = list(split[0])
        for place, values in zip(places, block, strict=True):
            parts[place] = _bracket(values)
        folded.append(".".join(parts))
    return folded


def template(name: str) -> str:
    """The name with a star for every number or bracket: what `fold` may put together."""
    return _NUMBERED.sub("*", name)


def expand(folded: str) -> Iterator[str]:
    """Every name that a bracketed name stands for."""
    parts = [[p] if not p.startswith("[") else list(map(str, _values(p, folded)))
             for p in folded.split(".")]  # fmt: skip
    return (".".join(chosen) for chosen in product(*parts))


def count(folded: str) -> int:
    """How many names a bracketed name stands for."""
    return prod(len(_values(p, folded)) for p in folded.split(".") if p.startswith("["))


def repeats(folded: str) -> int:
    """In how many layers these modules lie: how many numbers the first numbered place holds."""
    found = _NUMBERED.search(folded)
    if found is None:
        return 0
    place = found.group()
    return len(_values(place, folded)) if place.startswith("[") else 1


def check(folded: str, where: str) -> str:
    """`folded` itself; BenchError, naming `where`, for a bracket that cannot be read."""
    try:
        if count(folded) > _MOST_NAMES:
            raise BenchError(f"{folded!r} stands for more than {_MOST_NAMES:,} modules")
    except BenchError as error:
        raise BenchError(f"{where}: {error}") from None
    return folded


def _blocks(numbers: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Split tuples into products: for each block, the values of every place."""
    if not numbers[0]:
        return [[]]
    rests: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in numbers:
        rests.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, below in rests.items():
        alike.setdefault(tuple(below), []).append(first)
    return [
        [tuple(firsts), *block]
        for below, firsts in alike.items()
        for block in _blocks(list(below))
    ]


def _bracket(values: tuple[int, ...]) -> str:
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = [f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs]
    return f"[{','.join(texts)}]"


def _values(bracket: str, folded: str) -> list[int]:
    found = _BRACKET.fullmatch(bracket)
    if found is None:
        raise BenchError(f"{folded!r}: {bracket} is not a list of numbers such as [0-3,8]")
    values: list[int] = []
    for run in found.group(1).split(","):
        first, _, last = run.partition("-")
        low, high = int(first), int(last or first)
        if high < low or (values and low <= values[-1]) or high - low > _MOST_NAMES:
            raise BenchError(f"{folded!r}: {bracket} does not rise from number to number")
        values += range(low, high + 1)
    return values
