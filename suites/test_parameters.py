"""Trainable and total parameters: declared, in closed form, and counted on PEFT's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from random_models import Example, counted_or_refused, examples

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.files import FIXTURES, read_toml
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.models.modules import read_table
from bench.scenarios.expectations import expect
from bench.scenarios.subjects import Subject
from bench.targets import match

if TYPE_CHECKING:
    pass

PUBLISHED = read_toml(FIXTURES / "published" / "parameters.toml")["figure"]


def test_parameters(ranked: Subject, peft_count, record) -> None:
    """The declarations' closed form = the formula over the ledger = what PEFT counts."""
    ledger = match(ranked.model.table, ranked.adapter, ranked.model.role_of)
    formula = lora_parameters(ledger)
    counted = peft_count(ranked.model, ranked.adapter)
    record.parameters(formula)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
    declared = expect(ranked.model, ranked.scenario, ranked.adapter.r)
    assert (declared.trainable, declared.total) == (counted.trainable, counted.total)


@pytest.mark.parametrize("figure", PUBLISHED, ids=[f["id"] for f in PUBLISHED])
def test_published(figure: dict, model_of) -> None:
    """Published lines, by the formula and by PEFT itself."""
    model = model_of(figure["model"])
    adapter = AdapterConfig.from_dict(figure["adapter"], figure["id"])
    formula = lora_parameters(match(model.table, adapter))
    counted = count(inject(model.build(), adapter))
    for name in ("trainable", "total"):
        if name in figure:
            assert getattr(formula, name) == getattr(counted, name) == figure[name]
    if "percent" in figure:
        assert f"{100 * formula.share:.2f}" == figure["percent"]


def test_user_parameters(user_subject: Subject, peft_count, record) -> None:
    """The formula equals PEFT's count on a user's own model."""
    ledger = match(user_subject.model.table, user_subject.adapter)
    formula = lora_parameters(ledger)
    counted = peft_count(user_subject.model, user_subject.adapter)
    record.parameters(formula)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)


class Unknown(Exception):
    """No closed form is known for the configuration: the formula says so and is not compared."""


def agree(example: Example) -> None:
    """Ledger and formula against PEFT on a fresh model: refused alike, or equal in every count."""
    network = example.model.build()
    table = read_table(network)
    try:
        ledger = match(table, example.adapter)
        refusals = ledger.refusals
    except BenchError as error:  # layers that cannot be replicated
        refusals = (str(error),)
    if any(word in reason for reason in refusals for word in ("MiCA takes", "KaSA takes")):
        raise Unknown  # on meta PEFT has no weight to look at: held on real ones below
    formula = None
    if not refusals:
        try:
            formula = lora_parameters(ledger)
        except BenchError as error:
            raise Unknown from error
    counted, refused = counted_or_refused(network, example.adapter)
    assert bool(refusals) == bool(refused), f"ledger: {refusals}, PEFT: {refused}"
    if counted is None:
        return
    assert formula is not None
    assert sorted(item.name for item in ledger.adapted) == sorted(counted.adapted)
    assert sorted(ledger.saved) == sorted(counted.saved)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total), formula


RANDOM = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@RANDOM
@given(examples())
def test_formula_equals_count(example: Example) -> None:
    """Random shapes × random configurations over every field: ledger and formula equal PEFT."""
    try:
        agree(example)
    except Unknown:
        return


@pytest.mark.slow
@settings(RANDOM, max_examples=5000)
@given(examples())
def test_formula_equals_count_often(example: Example) -> None:
    """The same on 5,000 examples; few of them may be without a closed form."""
    try:
        agree(example)
    except Unknown:
        return
