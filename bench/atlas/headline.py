"""The figures for the first page: on how many model types a common choice reaches everything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.atlas import names
from bench.atlas.entries import Atlas, TypeEntry, linear_rows
from bench.atlas.reach import DEFAULT, SCENARIOS, ledger_names, peft_defaults
from bench.models.roles import (
    DOWN,
    GATE,
    GATE_UP,
    KEY,
    KEY_VALUE,
    OUTPUT,
    QUERY,
    QUERY_KEY_VALUE,
    UP,
    VALUE,
)
from bench.targets import match

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
    missed, wanted = _missed(model_type, entry, scenario)
    if not missed:
        return EVERYTHING
    return NOTHING if missed == wanted else PART


def missed_roles(atlas: Atlas, types: Iterable[str], scenario: str) -> dict[str, tuple[str, ...]]:
    """By role: those of `types` on which the scenario leaves such a weight without an adapter;
    the role of the most types first."""
    found: dict[str, list[str]] = {}
    for model_type in types:
        missed, _ = _missed(model_type, atlas.types[model_type], scenario)
        for role in sorted(set(missed.values())):
            found.setdefault(role, []).append(model_type)
    by_number = sorted(found, key=lambda role: (-len(found[role]), role))
    return {role: tuple(found[role]) for role in by_number}


def _missed(
    model_type: str, entry: TypeEntry, scenario: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The weights (with their roles) that the scenario misses, and all that count."""
    wanted = {
        name: row.role
        for row in linear_rows(entry)
        if row.layers and row.role in MIXING | FEED_FORWARD
        for name in names.expand(row.name)
    }
    reached = ledger_names(entry.table(model_type), SCENARIOS[scenario]) or set()
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
