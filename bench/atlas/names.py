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
from operator import add

from bench.errors import BenchError

_BRACKET = re.compile(r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]")
# A whole segment, or what follows "expert_" (nllb-moe numbers its experts so). Other numbers at the
# end of a word tell different things apart: linear_1 from linear_2.
_PLACE = re.compile(r"(?:^|(?<=\.)|(?<=\.expert_))(?:\d+|\[[^].]*\])(?=\.|$)")
# Anything larger in a file is a slip of the pen.
_MOST_NAMES = 1_000_000


def fold(names: Iterable[str]) -> list[str]:
    """The fewest bracketed names that stand for exactly `names`, which differ in numbers only."""
    names = list(names)
    pieces = _PLACE.split(names[0])
    numbers = sorted({tuple(map(int, _PLACE.findall(name))) for name in names})
    return ["".join(map(add, pieces, [*map(_bracket, block), ""])) for block in _blocks(numbers)]


def template(name: str) -> str:
    """The name with a star for every number or bracket: what `fold` may put together."""
    return _PLACE.sub("*", name)


def expand(folded: str) -> Iterator[str]:
    """Every name that a bracketed name stands for."""
    pieces = _PLACE.split(folded)
    places = [map(str, values) for values in _places(folded)]
    return ("".join(map(add, pieces, [*chosen, ""])) for chosen in product(*places))


def count_names(folded: str) -> int:
    """How many names a bracketed name stands for."""
    return prod(map(len, _places(folded)))


def repeats(folded: str) -> int:
    """In how many layers these modules lie: how many numbers the first numbered place holds."""
    places = _places(folded)
    return len(places[0]) if places else 0


def check_folded(folded: str, where: str) -> str:
    """`folded` itself; BenchError, naming `where`, for a bracket that cannot be read."""
    try:
        if count_names(folded) > _MOST_NAMES:
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
        [tuple(firsts), *block] for below, firsts in alike.items() for block in _blocks(list(below))
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


def _places(folded: str) -> list[list[int]]:
    """The numbers that stand in each numbered place."""
    return [
        _values(place, folded) if place.startswith("[") else [int(place)]
        for place in _PLACE.findall(folded)
    ]


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
