"""The ledger of a count: named terms that add up to the trainable and to the total parameters."""

from __future__ import annotations

from dataclasses import dataclass

from bench.models.modules import ModuleTable


@dataclass(frozen=True)
class Term:
    """One summand: `trained` elements get gradients, `added` ones did not exist in the base model.

    A trained bias of the base model is trained but not added; a saved copy is both; a matrix that
    a method adds and freezes is added only.
    """

    name: str
    trained: int
    added: int
    modules: int


@dataclass(frozen=True)
class Parameters:
    """The terms of one configuration, and the base model's own total."""

    terms: tuple[Term, ...]
    base: int

    @property
    def trainable(self) -> int:
        return sum(term.trained for term in self.terms)

    @property
    def total(self) -> int:
        """Logical elements, shared tensors once, the adapter and the saved copies included."""
        return self.base + sum(term.added for term in self.terms)

    @property
    def share(self) -> float:
        """Trainable share of the total, 0 to 1 (PEFT prints it in percent)."""
        return self.trainable / self.total


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
