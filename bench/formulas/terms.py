"""The ledger of a count: named terms that add up to the trainable and to the total parameters."""

from __future__ import annotations

from dataclasses import dataclass


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
