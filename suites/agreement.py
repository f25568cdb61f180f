"""Ledger and formula against PEFT on one model and one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from small_types import small

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.measure.counting import Count, count, inject
from bench.models.modules import ModuleTable
from bench.targets import match

if TYPE_CHECKING:
    from torch import nn


class Unknown(Exception):
    """No closed form is known for the configuration: the formula says so and is not compared."""


def counted_or_refused(network: nn.Module, adapter: AdapterConfig) -> tuple[Count | None, str]:
    """What PEFT makes of a configuration: its counts, or its refusal."""
    try:
        return count(inject(network, adapter)), ""
    except BenchError as error:
        return None, str(error)


def disagreement(network: nn.Module, table: ModuleTable, adapter: AdapterConfig) -> tuple[str, str]:
    """("injected" or "refused", the first difference or ""); the network is changed in place.

    Raises Unknown where no closed form is known.
    """
    try:
        ledger = match(table, adapter)
        refusals = ledger.refusals
    except BenchError as error:  # layers that cannot be replicated
        refusals = (str(error),)
    if any(word in reason for reason in refusals for word in ("MiCA takes", "KaSA takes")):
        raise Unknown  # on meta PEFT has no weight to look at
    formula = None
    if not refusals:
        try:
            formula = lora_parameters(ledger)
        except BenchError as error:
            raise Unknown from error
    counted, refused = counted_or_refused(network, adapter)
    if bool(refusals) != bool(refused):
        return "refused", f"ledger refuses: {refusals}; PEFT refuses: {refused[:300]!r}"
    if counted is None:
        return "refused", ""
    assert formula is not None
    for name, ours, theirs in (
        ("adapted", sorted(item.name for item in ledger.adapted), sorted(counted.adapted)),
        ("saved", sorted(ledger.saved), sorted(counted.saved)),
    ):
        if ours != theirs:
            only = [n for n in ours if n not in theirs], [n for n in theirs if n not in ours]
            return "injected", f"{name}: only ours {only[0][:4]}, only PEFT's {only[1][:4]}"
    ours_theirs = (formula.trainable, formula.total), (counted.trainable, counted.total)
    if ours_theirs[0] != ours_theirs[1]:
        return "injected", f"ours {ours_theirs[0]}, PEFT {ours_theirs[1]}; {formula.terms}"
    return "injected", ""


def both(label: str, adapter: AdapterConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """(trainable, total) in closed form, and as PEFT counts them."""
    model = small(label)
    formula = lora_parameters(match(model.table, adapter))
    counted = count(inject(model.build(), adapter))
    return (formula.trainable, formula.total), (counted.trainable, counted.total)


def agrees(label: str, adapter: AdapterConfig, kind: str = "injected") -> None:
    model = small(label)
    assert disagreement(model.build(), model.table, adapter) == (kind, "")
