"""Trainable and total parameters: declared, in closed form, and counted on PEFT's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from agreement import Unknown, disagreement
from fuzz_counts import fuzz
from hypothesis import HealthCheck, event, given, settings
from random_models import Example, examples

from bench.adapters.config import AdapterConfig
from bench.files import FIXTURES, read_toml
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
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


def agree(example: Example) -> str:
    """Ledger and formula against PEFT on a fresh model: refused alike, or equal in every count."""
    try:
        kind, difference = disagreement(example.network, example.table, example.adapter)
    except Unknown:
        return "unknown"
    assert not difference, difference
    return kind


RANDOM = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@RANDOM
@given(examples())
def test_formula_equals_count(example: Example) -> None:
    """Random shapes × random configurations over every field: ledger and formula equal PEFT."""
    event(agree(example))


@pytest.mark.slow
@settings(RANDOM, max_examples=5000)
@given(examples())
def test_formula_equals_count_often(example: Example) -> None:
    """The same on 5,000 examples."""
    event(agree(example))


def test_random_configurations_are_mostly_injected() -> None:
    """Every type once or twice, by seed: no difference; refusals and unknown forms are counted."""
    outcome = fuzz(seed=12, examples=120)
    assert not outcome.differences, "\n".join(outcome.differences)
    counts = outcome.counts
    assert len(outcome.types) >= 40
    assert counts["injected"] >= counts.total() / 3
    assert counts["refused"] >= counts.total() / 10
    assert counts["unknown"] <= counts.total() / 20


@pytest.mark.slow
def test_five_thousand_random_configurations() -> None:
    outcome = fuzz(seed=2026, examples=5000)
    assert not outcome.differences, "\n".join(outcome.differences)
