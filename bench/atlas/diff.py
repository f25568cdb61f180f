"""What changed between two atlases, by model type, in the words of somebody who writes target
modules: renamed, fused, split, lost, gained, changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import combinations, groupby
from typing import Any

from bench.atlas.entries import Atlas, TypeEntry
from bench.models.modules import CONV1D, LINEAR
from bench.models.roles import FUSED, UNKNOWN

RENAMED, FUSED_INTO, SPLIT, CHANGED = "renamed", "fused", "split", "changed"
LOST, GAINED = "lost", "gained"
TYPE_LOST, TYPE_GAINED = "type lost", "type gained"
UNBUILDABLE, BUILDABLE = "builds no more", "builds now"
CLASS, TIED = "class", "tied"
KINDS = (TYPE_LOST, TYPE_GAINED, UNBUILDABLE, BUILDABLE, CLASS, TIED, RENAMED, FUSED_INTO, SPLIT,
         CHANGED, LOST, GAINED)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One change of one model type.

    `old` and `new` are names of modules with a star for every number (or classes, for a change of
    class); `detail` says in words what happened to their shape or count.
    """

    model_type: str
    kind: str
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    role: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        names = [" + ".join(side) for side in (self.old, self.new) if side]
        text = f"{self.kind}: {' -> '.join(names)}" if names else self.kind
        return text + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class _Unit:
    """All modules of one pattern and one shape."""

    pattern: str
    role: str
    kind: str
    shape: tuple[Any, ...]
    count: int = 0

    @property
    def bare(self) -> bool:
        return self.kind == "parameter"

    @property
    def is_linear(self) -> bool:
        return self.kind in (LINEAR, CONV1D)

    def __str__(self) -> str:
        if self.bare:
            return f"{self.count} parameters of {' x '.join(map(str, self.shape))}"
        into, out, bias, *window = self.shape
        text = f"{self.count} {self.kind} {into} -> {out}{' with bias' if bias else ''}"
        return text + (f", window {window}" if window != [1, 1] else "")


def diff_atlases(old: Atlas, new: Atlas) -> list[Change]:
    """Every change from `old` to `new`, by model type in alphabetical order."""
    changes: list[Change] = []
    known = [{**a.types, **a.unbuilt} for a in (old, new)]
    for model_type in sorted({*known[0], *known[1]}):
        before, after = old.types.get(model_type), new.types.get(model_type)
        if model_type not in known[1]:
            changes.append(Change(model_type, TYPE_LOST))
        elif model_type not in known[0]:
            changes.append(Change(model_type, TYPE_GAINED))
        elif before and after:
            changes += _diff_entries(model_type, before, after)
        elif before:
            changes.append(Change(model_type, UNBUILDABLE, detail=new.unbuilt[model_type]))
        elif after:
            changes.append(Change(model_type, BUILDABLE, detail=f"was: {old.unbuilt[model_type]}"))
    return changes


def _diff_entries(model_type: str, old: TypeEntry, new: TypeEntry) -> Iterator[Change]:
    classes = [f"{e.auto_class or 'no auto class'} {e.class_name}" for e in (old, new)]
    if classes[0] != classes[1]:
        yield Change(model_type, CLASS, (classes[0],), (classes[1],))
    if bool(old.tied) != bool(new.tied):
        was, now = ("tied" if e.tied else "not tied" for e in (old, new))
        yield Change(model_type, TIED, detail=f"output embedding {was} to the input's, now {now}")
    before, after = _units(old), _units(new)
    gone = [u for u in before if u not in after]
    come = [u for u in after if u not in before]
    for step in (_changed, _fused, _split, _renamed):
        for change, used_old, used_new in step(model_type, gone, come):
            yield change
            gone = [u for u in gone if u not in used_old]
            come = [u for u in come if u not in used_new]
    for u in gone:
        still = _leaf(u) in new.other and _leaf(u) not in old.other
        detail = f"{u}{'; a module of that name is there, but LoRA cannot adapt it' * still}"
        yield Change(model_type, LOST, (u.pattern,), (), u.role, detail)
    yield from (Change(model_type, GAINED, (), (u.pattern,), u.role, str(u)) for u in come)


def _units(entry: TypeEntry) -> list[_Unit]:
    counts: dict[_Unit, int] = defaultdict(int)
    for p in entry.projections:
        counts[_Unit(p.pattern, p.role, p.kind, p.shape[1:])] += p.count
    for s in entry.bare:
        counts[_Unit(s.pattern, s.role, "parameter", s.shape)] += s.count
    return [replace(unit, count=count) for unit, count in counts.items()]


Told = Iterator[tuple[Change, Sequence[_Unit], Sequence[_Unit]]]


def _changed(model_type: str, gone: list[_Unit], come: list[_Unit]) -> Told:
    """The same name, another shape or count."""
    for pattern in dict.fromkeys(u.pattern for u in gone):
        was = [u for u in gone if u.pattern == pattern]
        now = [u for u in come if u.pattern == pattern]
        if now:
            detail = f"{', '.join(map(str, was))} -> {', '.join(map(str, now))}"
            if (before := _roles(was)) != (after := _roles(now)):
                detail += f"; role {before} -> {after}"
            yield Change(model_type, CHANGED, (pattern,), (pattern,), now[0].role, detail), was, now


def _fused(model_type: str, gone: list[_Unit], come: list[_Unit]) -> Told:
    """Several projections became one whose outputs are theirs, or experts became a parameter."""
    for whole in come:
        if parts := _parts(whole, gone):
            gone = [u for u in gone if u not in parts]
            old = tuple(p.pattern for p in parts)
            detail = f"{' + '.join(map(str, parts))} -> {whole}"
            # A router stays one matrix, and is a bare parameter now.
            kind = CHANGED if len(whole.shape) == 2 else FUSED_INTO
            change = Change(model_type, kind, old, (whole.pattern,), whole.role, detail)
            yield change, parts, [whole]


def _split(model_type: str, gone: list[_Unit], come: list[_Unit]) -> Told:
    """One projection became several."""
    for whole in gone:
        if parts := _parts(whole, come):
            come = [u for u in come if u not in parts]
            new = tuple(p.pattern for p in parts)
            detail = f"{whole} -> {' + '.join(map(str, parts))}"
            yield (
                Change(model_type, SPLIT, (whole.pattern,), new, whole.role, detail), [whole], parts
            )  # fmt: skip


def _parts(whole: _Unit, among: list[_Unit]) -> list[_Unit]:
    """The projections that `whole` is made of: one of each role that it fuses, with the same
    inputs, and outputs that add up to its own."""
    wanted = FUSED.get(whole.role, (whole.role,))
    if not whole.bare and not (whole.is_linear and len(wanted) > 1):
        return []
    # Fused experts stand for as many projections as there are experts.
    count = whole.count * (whole.shape[0] if len(whole.shape) == 3 else 1)
    fits = [u for u in among if u.is_linear and u.role in wanted and u.count == count]
    # Of equal shapes, those are meant that lie nearest to the whole.
    fits.sort(key=lambda u: -_likeness(u.pattern, whole.pattern))
    for parts in combinations(fits, len(wanted)):
        if {p.role for p in parts} == {*wanted} and len({p.shape[0] for p in parts}) == 1:
            widths = (parts[0].shape[0], sum(p.shape[1] for p in parts))
            # Some models keep experts as inputs × outputs, others the other way round.
            if widths == whole.shape[:2] or (
                whole.bare and sorted(widths) == sorted(whole.shape[-2:])
            ):
                return sorted(parts, key=lambda p: wanted.index(p.role))
    return []


def _renamed(model_type: str, gone: list[_Unit], come: list[_Unit]) -> Told:
    """The same role, shape and count under another name; of several, the likest names."""
    pairs = [
        (_likeness(was.pattern, now.pattern), was, now)
        for was in gone
        for now in come
        if (was.kind, was.shape, was.count) == (now.kind, now.shape, now.count)
        and was.role == now.role
        and (was.role != UNKNOWN or _leaf(was) == _leaf(now))
    ]
    taken: set[_Unit] = set()
    names: dict[tuple[str, str], list[tuple[_Unit, _Unit]]] = {}
    for _, was, now in sorted(pairs, key=lambda p: (-p[0], p[1].pattern, p[2].pattern)):
        if was not in taken and now not in taken:
            taken |= {was, now}
            names.setdefault((was.pattern, now.pattern), []).append((was, now))
    for (before, after), units in sorted(names.items()):
        detail = ", ".join(str(now) for _, now in units)
        change = Change(model_type, RENAMED, (before,), (after,), units[0][1].role, detail)
        yield change, [was for was, _ in units], [now for _, now in units]


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.split("."), other.split(".")).ratio()


def _leaf(unit: _Unit) -> str:
    return unit.pattern.rpartition(".")[2]


def _roles(units: list[_Unit]) -> str:
    return ", ".join(sorted({u.role for u in units}))


def kinds_of_change(changes: Iterable[Change]) -> dict[str, int]:
    """How many model types each kind of change concerns."""
    found = {kind: {c.model_type for c in changes if c.kind == kind} for kind in KINDS}
    return {kind: len(types) for kind, types in found.items() if types}


def change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """The changes for people, by model type, and how many types each kind concerns."""
    # A type that is new, gone or buildable again is one word; it needs no paragraph of its own.
    alone = sorted((c for c in changes if not c.old + c.new), key=lambda c: (c.kind, c.detail))
    for (kind, detail), alike in groupby(alone, key=lambda c: (c.kind, c.detail)):
        reason = f" ({detail})" if detail else ""
        yield f"{kind}{reason}: {', '.join(c.model_type for c in alike)}"
    for model_type, own in groupby((c for c in changes if c.old + c.new), lambda c: c.model_type):
        yield model_type
        yield from (f"  {change}" for change in own)
    if changes:
        counts = ", ".join(f"{kind} {n}" for kind, n in kinds_of_change(changes).items())
        yield f"model types by kind of change: {counts}"
