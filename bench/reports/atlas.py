"""The figures of `docs/atlas.md`, from the stored atlases.

A page is prose with blocks between marks; `refresh` writes the blocks anew and leaves the rest:

    <!-- figures: headline -->
    ...
    <!-- end of figures -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from bench.atlas import names
from bench.atlas.diff import change_lines, diff_atlases
from bench.atlas.entries import Atlas, TypeEntry, linear_rows
from bench.atlas.reviewed import with_roles
from bench.atlas.store import find_atlas, load_atlas, stored_versions
from bench.errors import BenchError, check_known
from bench.measure.reach import DEFAULT, SCENARIOS, load_reach, peft_defaults, stored_names
from bench.models.roles import (
    DOWN,
    GATE,
    GATE_UP,
    KEY,
    KEY_VALUE,
    OUTPUT,
    QUERY,
    QUERY_KEY_VALUE,
    ROLES,
    UP,
    VALUE,
)
from bench.reports.layout import grid
from bench.targets import match

SEVEN, ALL = "seven-names", "all-linear"
SHOWN_CHANGES = ("mixtral", "vit")
_BLOCK = re.compile(
    r"(?P<start><!-- figures: (?P<name>.*?) -->\n).*?(?P<end><!-- end of figures -->)", re.DOTALL
)


def refresh(text: str, where: str) -> str:
    """`text` with every block written anew. Raises BenchError, naming `where`, for a block that
    nothing is known of, and for a text without any."""

    def block(found: re.Match[str]) -> str:
        check_known(f"block of figures in {where}:", found["name"], BLOCKS)
        return f"{found['start']}{BLOCKS[found['name']]()}\n{found['end']}"

    new, number = _BLOCK.subn(block, text)
    if not number:
        raise BenchError(f"{where}: holds no block of figures, <!-- figures: headline --> ...")
    return new


@cache
def _newest() -> Atlas:
    return load_atlas(find_atlas(stored_versions()[-1]))


def _size() -> str:
    atlases = [load_atlas(find_atlas(version)) for version in stored_versions()]
    rows = [
        (a.transformers, f"{a.known}", f"{len(a.types)} ({len(a.types) / a.known:.1%})",
         f"{len(a.causal_lms)}", f"{_share(*a.role_coverage())}")
        for a in atlases
    ]  # fmt: skip
    columns = ("transformers", "model types", "built", "causal LMs", "linear modules with a role")
    return grid(columns, rows)


def _headline() -> str:
    atlas = _newest()
    seven, every = headline(atlas, SEVEN), headline(atlas, ALL)
    sentence = (
        f"Of {seven.types} causal-LM types of transformers {atlas.transformers}, the seven names "
        f"reach everything in **{len(seven.everything)}**, part in **{len(seven.part)}**, nothing "
        f"in **{len(seven.nothing)}**; `all-linear` reaches everything in "
        f"{len(every.everything)}, part in {len(every.part)}, nothing in {len(every.nothing)}."
    )
    outcomes = list(default_outcomes(atlas).values())
    defaults = (
        f"PEFT's default mapping works for **{outcomes.count(WORKS)} of {len(outcomes)}** of its "
        f"keys (peft {load_reach(find_atlas(atlas.transformers)).peft})."
    )
    return f"{sentence} {defaults}"


def _missed() -> str:
    atlas = _newest()
    found = headline(atlas, SEVEN)
    part = missed_roles(atlas, found.part, SEVEN)
    nothing = missed_roles(atlas, found.nothing, SEVEN)
    roles = sorted({*part, *nothing}, key=lambda r: (-_types(part, r) - _types(nothing, r), r))
    rows = [
        (ROLES[role], f"{_types(part, role)}", f"{_types(nothing, role)}",
         _shortened([*part.get(role, ()), *nothing.get(role, ())]))
        for role in roles
    ]  # fmt: skip
    columns = ("what is missed", "types reached in part", "types not reached", "such as")
    return grid(columns, rows)


def _nothing() -> str:
    atlas = _newest()
    return "\n\n".join(
        f"{name}: {_names(headline(atlas, scenario).nothing)}."
        for name, scenario in (("The seven names", SEVEN), ("`all-linear`", ALL))
    )


def _defaults() -> str:
    meanings = {
        UNKNOWN_TYPE: "transformers knows no such model type",
        RAISES: "PEFT raises",
        DEAD_ENTRY: "injects, with entries that reach nothing",
    }
    outcomes = default_outcomes(_newest())
    rows = [
        (meaning, _names(key for key, found in outcomes.items() if found == outcome))
        for outcome, meaning in meanings.items()
    ]
    return grid(("what happens", "keys"), rows)


def _unbuilt() -> str:
    reasons: dict[str, list[str]] = {}
    for model_type, reason in _newest().unbuilt.items():
        reasons.setdefault(reason, []).append(model_type)
    rows = [(reason, _names(types)) for reason, types in reasons.items()]
    return grid(("reason", "types"), rows)


def _changes() -> str:
    old = [version for version in stored_versions() if version.startswith("4.")][-1]
    before, after = with_roles(load_atlas(find_atlas(old))), with_roles(_newest())
    changes = [c for c in diff_atlases(before, after) if c.model_type in SHOWN_CHANGES]
    command = (
        f"$ bench atlas --diff {before.transformers} {after.transformers} "
        f"--types {','.join(SHOWN_CHANGES)}"
    )
    return "\n".join(("```console", command, *change_lines(changes), "```"))


BLOCKS: dict[str, Callable[[], str]] = {
    "size": _size,
    "headline": _headline,
    "missed": _missed,
    "nothing": _nothing,
    "defaults": _defaults,
    "unbuilt": _unbuilt,
    "changes": _changes,
}


def _types(found: dict[str, tuple[str, ...]], role: str) -> int:
    return len(found.get(role, ()))


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shortened(names: list[str]) -> str:
    return _names(names[:3]) + (", ..." if len(names) > 3 else "")


# Attention, and what stands in its place in a layer.
MIXING = {QUERY, KEY, VALUE, OUTPUT, QUERY_KEY_VALUE, KEY_VALUE, "query_key",
          "query_key_value_gate", "receptance", "state_space_in", "state_space_out",
          "convolution_in", "convolution_out"}  # fmt: skip
FEED_FORWARD = {GATE, UP, DOWN, GATE_UP}
EVERYTHING, PART, NOTHING = "everything", "part", "nothing"
WORKS, DEAD_ENTRY, RAISES, UNKNOWN_TYPE = "works", "dead entry", "raises", "unknown type"


@dataclass(frozen=True)
class Headline:
    """Types by how far a configuration reaches on them.

    Everything is every linear weight of attention (or of what stands in its place: linear
    attention, a state space, a short convolution) and of the feed-forward blocks, in every layer,
    experts counted. Routers, gates, embeddings and heads do not count.
    """

    everything: tuple[str, ...]
    part: tuple[str, ...]
    nothing: tuple[str, ...]

    @property
    def types(self) -> int:
        return len(self.everything) + len(self.part) + len(self.nothing)


def headline(atlas: Atlas, scenario: str) -> Headline:
    """How far one of the scenarios reaches on the causal-LM types."""
    found: dict[str, list[str]] = {EVERYTHING: [], PART: [], NOTHING: []}
    for model_type, entry in atlas.causal_lms.items():
        found[extent(model_type, entry, scenario)].append(model_type)
    return Headline(*(tuple(found[e]) for e in (EVERYTHING, PART, NOTHING)))


def extent(model_type: str, entry: TypeEntry, scenario: str) -> str:
    """EVERYTHING, PART or NOTHING."""
    missed, wanted = _missed_weights(model_type, entry, scenario)
    if not missed:
        return EVERYTHING
    return NOTHING if missed == wanted else PART


def missed_roles(atlas: Atlas, types: Iterable[str], scenario: str) -> dict[str, tuple[str, ...]]:
    """By role: those of `types` on which the scenario leaves such a weight without an adapter;
    the role of the most types first."""
    found: dict[str, list[str]] = {}
    for model_type in types:
        missed, _ = _missed_weights(model_type, atlas.types[model_type], scenario)
        for role in sorted(set(missed.values())):
            found.setdefault(role, []).append(model_type)
    by_number = sorted(found, key=lambda role: (-len(found[role]), role))
    return {role: tuple(found[role]) for role in by_number}


def _missed_weights(
    model_type: str, entry: TypeEntry, scenario: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The weights (with their roles) that the scenario misses, and all that count."""
    wanted = {
        name: row.role
        for row in linear_rows(entry)
        if row.layers and row.role in MIXING | FEED_FORWARD
        for name in names.expand(row.name)
    }
    reached = stored_names(entry, model_type, scenario) or frozenset()
    return {name: role for name, role in wanted.items() if name not in reached}, wanted


def default_outcomes(atlas: Atlas) -> dict[str, str]:
    """Each key of PEFT's mapping of default targets: WORKS, or how it does not."""
    found = {}
    for key in sorted(peft_defaults()):
        if key not in atlas.types:
            found[key] = UNKNOWN_TYPE
            continue
        ledger = match(atlas.types[key].table(key), SCENARIOS[DEFAULT])
        found[key] = RAISES if ledger.refusals else DEAD_ENTRY if ledger.dead_entries else WORKS
    return found
