"""The size of a base model, counted in three ways that differ on quantized and on tied models."""

from __future__ import annotations

from dataclasses import dataclass

from bench.models.modules import ModuleTable

_FOUR_BIT = ("Linear4bit", "LinearNF4", "LinearFP4")


@dataclass(frozen=True)
class BaseTotals:
    """Elements of a model without its adapter.

    Attributes:
        logical: under every name; a 4-bit weight unpacked, a shared one at each name.
        packed: as stored, each tensor once; a 4-bit weight takes half, two elements to a byte.
        unique: logical elements, each tensor once: what PEFT prints, and every table here.
    """

    logical: int
    packed: int
    unique: int


def base_totals(table: ModuleTable) -> BaseTotals:
    """The three totals of the model that `table` describes."""
    halved = {f"{m.name}.weight" for m in table.modules if m.class_name in _FOUR_BIT}
    return BaseTotals(
        logical=sum(p.elements for p in table.parameters),
        packed=sum(
            (p.elements + 1) // 2 if p.name in halved else p.elements
            for p in table.parameters
            if not p.same_as
        ),
        unique=table.total_parameters,
    )
