"""The alternatives of a regular expression that reach nothing: `dead_proj` in
`.*\\.(q_proj|dead_proj)`.

The expression as a whole reaches something, so that PEFT says nothing. An alternative is dead if
the expression fits no module by it (every way around it taken out), and fits the same ones without
it. What cannot be told so is left: lookarounds, and all of an expression that refers back to one of
its groups or repeats a repeat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from bench.adapters.patterns import compiled, repeats_a_repeat

MOST = 200
"""So many alternatives of an expression are looked at; nobody writes more by hand."""

_NEVER = "(?!)"
_REFERS_BACK = re.compile(r"\\[1-9]|\(\?P=|\(\?\(")
_FLAGS = re.compile(r"\(\?[aiLmsux]+\)")
_OPENS = re.compile(r"\((?:\?(?:P<\w+>|[aimsux-]*:|>))?")
_LOOKS = re.compile(r"\(\?(?:[=!]|<[=!])")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)

_ANYWHERE = frozenset(
    "language text vision image visual patch self_attn attention attn mlp feed_forward ffn "
    "dense".split()
)
"""What a part may be called on any model. A group of these alone is written for every model (by
Unsloth), and neither it nor an alternative that holds it says anything of this one."""


@dataclass
class _Group:
    start: int
    end: int
    bars: list[int] = field(default_factory=list)
    looks: bool = False
    """A lookaround, or a group inside of one."""

    def branches(self) -> Iterator[tuple[int, int]]:
        edges = [self.start - 1, *self.bars, self.end]
        for before, after in pairwise(edges):
            yield before + 1, after


def dead_alternatives(pattern: str, names: Iterable[str]) -> list[str]:
    """The alternatives that fit none of the names, in order, without those inside of another dead
    one; none where the whole expression fits nothing."""
    if "|" not in pattern or _REFERS_BACK.search(pattern) or repeats_a_repeat(pattern):
        return []
    reached = [name for name in names if compiled(pattern).fullmatch(name)]
    groups = _groups(pattern)
    choices = [(g, b) for g in groups if g.bars and not g.looks for b in g.branches()]
    any_model = [
        g for g in groups if g.bars and {pattern[s:e] for s, e in g.branches()} <= _ANYWHERE
    ]
    told: list[str] = []
    dead: list[tuple[int, int]] = []
    for group, (start, end) in choices[:MOST] if reached else ():
        inside = any(s <= start and end <= e for s, e in dead)
        if start == end or inside:  # one of nothing makes what it stands in optional
            continue
        alone = compiled(_only(pattern, groups, start, end)).fullmatch
        without = compiled(f"{pattern[:start]}{_NEVER}{pattern[end:]}").fullmatch
        if not any(map(alone, reached)) and all(map(without, reached)):
            dead.append((start, end))
            if not any(g is group or (start <= g.start and g.end <= end) for g in any_model):
                told.append(pattern[start:end])
    return told


def _only(pattern: str, groups: Iterable[_Group], start: int, end: int) -> str:
    """The expression without any way around this alternative."""
    cut: list[tuple[int, int]] = []
    for group in groups:
        if group.start <= start and end <= group.end:
            first, last = next((s, e) for s, e in group.branches() if s <= start and end <= e)
            cut += [(group.start, first), (last, group.end)]
    at, kept = 0, []
    for first, last in sorted(cut):
        kept.append(pattern[at:first])
        at = last
    return "".join((*kept, pattern[at:]))


def _groups(pattern: str) -> list[_Group]:
    """Every group with its `|`, the whole expression as the first, outer ones before inner ones."""
    flags = _FLAGS.match(pattern)
    whole = _Group(flags.end() if flags else 0, len(pattern))
    found, open_ = [whole], [whole]
    at = whole.start
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 2
            continue
        if in_class := _CLASS.match(pattern, at):
            at = in_class.end()
            continue
        if pattern.startswith("(?#", at):
            at = pattern.index(")", at) + 1
            continue
        if pattern[at] == "(":
            looks = _LOOKS.match(pattern, at)
            opens = looks or _OPENS.match(pattern, at)
            start = opens.end() if opens else at + 1
            group = _Group(start, len(pattern), looks=bool(looks) or open_[-1].looks)
            found.append(group)
            open_.append(group)
            at = group.start
            continue
        if pattern[at] == "|":
            open_[-1].bars.append(at)
        elif pattern[at] == ")":
            open_.pop().end = at
        at += 1
    return found
