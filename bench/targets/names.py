"""Full names of modules: their endings, and where a path has moved to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bench.models.modules import ModuleTable
from bench.targets.filters import ends_in

_MOST_SEGMENTS = 12


def moved(names: Sequence[str], written: str) -> list[str]:
    """The modules that a path means whose beginning fits none: those with the longest ending in
    common, of two segments or more, that share most of the other words too."""
    segments = written.split(".")
    for size in range(len(segments) - 1, 1, -1):
        ending = ".".join(segments[-size:])
        hits = [name for name in names if ends_in(name, ending)]
        if not hits or all(part.isdigit() for part in segments[-size:-1]):
            continue
        words = {part for part in segments[:-size] if not part.isdigit()}
        # `language_model` tells `model.language_model` from `model.vision_model`.
        shared = {name: len(words & set(name.split("."))) for name in hits}
        most = max(shared.values())
        return [name for name in hits if shared[name] == most]
    return []


def common_ending(name: str, names: Sequence[str]) -> str:
    """The end of one name that reaches it alone, from the word before the layer's number on."""
    segments = name.split(".")
    numbers = [at for at, segment in enumerate(segments[:-1]) if segment.isdigit()]
    least = len(segments) - numbers[0] + 2 if numbers else 1
    for size in range(max(1, least), len(segments) + 1):
        ending = ".".join(segments[-size:])
        if sum(ends_in(other, ending) for other in names) == 1:
            return ending
    return name


def endings_of(names: Sequence[str], every: Iterable[str], least: int = 1) -> dict[str, int]:
    """The shortest endings, of `least` segments or more, that reach all of `names` and no other of
    `every`, each with how many it reaches; empty where only layer numbers tell them apart."""
    every = list(every)
    for size in range(least, _MOST_SEGMENTS):
        endings = Counter(_ending(name, size) for name in names)
        if all(sum(ends_in(name, e) for name in every) == n for e, n in endings.items()):
            return dict(endings)
    return {}


def _ending(name: str, size: int) -> str:
    """The last `size` segments of a name, without a layer's number and what stands before it."""
    segments = name.split(".")[-size:]
    numbers = [at for at, segment in enumerate(segments[:-1]) if segment.isdigit()]
    return ".".join(segments[numbers[-1] + 1 if numbers else 0 :])


_LITERAL = re.compile(r"\^?((?:\.\*\\?\.)?)((?:[A-Za-z_]\w*\\?\.)+)")


def moved_pattern(table: ModuleTable, pattern: str) -> Iterator[tuple[str, str, str]]:
    """(old path, new path, changed pattern) for a regular expression that begins with a path which
    the model holds elsewhere; the stacks that text feeds first."""
    found = _LITERAL.match(pattern)
    if found is None:
        return
    segments = re.split(r"\\?\.", found[2])[:-1]
    rest = pattern[found.end() :]
    main = {stack.prefix for stack in table.main_stacks}
    names = sorted(table.by_name, key=lambda name: table.stack_of(name).prefix not in main)
    for start in range(len(segments)):
        ending = ".".join(segments[start:])
        for name in names:
            if ends_in(name, ending):
                yield ".".join(segments), name, rf"{re.escape(name)}\.{rest.removeprefix('.')}" \
                    if not rest.startswith(".") else rf"{re.escape(name)}\.{rest}"  # fmt: skip
