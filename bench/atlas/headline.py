"""The figures for the first page: on how many model types a common choice reaches everything."""

from __future__ import annotations

from dataclasses import dataclass

from bench.atlas import names
from bench.atlas.entries import Atlas, TypeEntry, linear_rows
from bench.atlas.reach import SCENARIOS, ledger_names
from bench.roles import (
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

# Attention, and what stands in its place in a layer.
MIXING = {QUERY, KEY, VALUE, OUTPUT, QUERY_KEY_VALUE, KEY_VALUE, "query_key",
          "query_key_value_gate", "receptance", "state_space_in", "state_space_out",
          "convolution_in", "convolution_out"}  # fmt: skip
FEED_FORWARD = {GATE, UP, DOWN, GATE_UP}
EVERYTHING, PART, NOTHING = "everything", "part", "nothing"


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

    def __str__(self) -> str:
        return (
            f"of {self.types} causal-LM types everything in {len(self.everything)}, "
            f"part in {len(self.part)}, nothing in {len(self.nothing)}"
        )


def headline(atlas: Atlas, scenario: str) -> Headline:
    """How far one of the scenarios reaches on the causal-LM types."""
    found: dict[str, list[str]] = {EVERYTHING: [], PART: [], NOTHING: []}
    for model_type, entry in atlas.causal_lms.items():
        found[extent(model_type, entry, scenario)].append(model_type)
    return Headline(*(tuple(found[e]) for e in (EVERYTHING, PART, NOTHING)))


def extent(model_type: str, entry: TypeEntry, scenario: str) -> str:
    """EVERYTHING, PART or NOTHING."""
    wanted = {
        name
        for row in linear_rows(entry)
        if row.layers and row.role in MIXING | FEED_FORWARD
        for name in names.expand(row.name)
    }
    reached = ledger_names(entry.table(model_type), SCENARIOS[scenario]) or set()
    if not wanted & reached:
        return NOTHING
    return EVERYTHING if wanted <= reached else PART
