"""The rows of a choice: which scenarios a model has, at which rank, and what each adapts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.scenarios.scenario import Scenario, find_scenario
from bench.targets import match

if TYPE_CHECKING:
    from bench.models.architectures import Model
    from bench.targets import Ledger

EVERYTHING = "everything+embeddings+head"
PROPOSED_SCENARIOS = ("query-value", "attention", "feed-forward", "everything", EVERYTHING)
"""From the narrowest to the widest. In the last one embeddings and head are trained whole."""
PROPOSED_PRECISIONS = ("bf16", "int8", "nf4")
"""What people choose between on a GPU; others may be asked for."""
RANK = 16
MOST_RANK = 1 << 12


@dataclass(frozen=True)
class ScenarioPlan:
    """One scenario on a model: its configuration, and what that reaches and trains.

    `reached` counts the elements of the base model's weights that get an adapter or are trained
    whole: what a scenario is wider in than another.
    """

    scenario: str
    adapter: AdapterConfig
    ledger: Ledger = field(repr=False)
    trainable: int
    reached: int
    off_budget: float | None = None


def plans(
    model: Model, rank: int = RANK, budget: int | None = None
) -> tuple[list[ScenarioPlan], dict[str, str]]:
    """The scenarios that the model has, and why it lacks the others.

    With `budget` each gets the rank at which it trains most nearly that number. Raises BenchError
    for a model with none of the roles, and for a budget below what the smallest scenario trains at
    rank 1.
    """
    found: list[ScenarioPlan] = []
    missing: dict[str, str] = {}
    for name in PROPOSED_SCENARIOS:
        try:
            adapter = _confined(scenario(name).adapter(model, rank), model)
            plan = _plan(model, name, adapter)
            found.append(plan if budget is None else _at_budget(model, plan, budget))
        except BenchError as error:
            missing[name] = str(error)
    if not found:
        why = "; ".join(dict.fromkeys(missing.values()))
        raise BenchError(f"{model.label}: no scenario to choose from: {why}")
    return found, missing


def scenario(name: str) -> Scenario:
    """The scenario of that name; WHOLE is `everything` with embeddings and head trained whole."""
    if name != EVERYTHING:
        return find_scenario(name)
    return replace(find_scenario("everything"), name=EVERYTHING, saved_roles=("embedding", "head"))


def _plan(model: Model, name: str, adapter: AdapterConfig) -> ScenarioPlan:
    ledger = match(model.table, adapter, model.role_of)
    ledger.check_adapts("nothing of the language model is reached")
    if name == EVERYTHING and not ledger.saved:
        raise BenchError("embeddings and head have no names that PEFT could train whole")
    reached = sum(item.weight_elements for item in ledger.adapted)
    sizes = {m.name: m.weight_elements for m in model.table.modules}
    reached += sum(sizes.get(saved, 0) for saved in ledger.saved if saved not in ledger.tied)
    return ScenarioPlan(name, adapter, ledger, lora_parameters(ledger).trainable, reached)


def _confined(adapter: AdapterConfig, model: Model) -> AdapterConfig:
    """Without what lies in towers that a batch of text does not feed: those train nothing there."""
    main = model.table.main_stacks
    others = [s.prefix for s in model.table.stacks if s not in main and s.prefix]
    if not others:
        return adapter
    parts = "|".join(prefix.replace(".", r"\.") for prefix in others)
    return replace(adapter, exclude_modules=rf"(?:{parts})\..*")


def _at_budget(model: Model, plan: ScenarioPlan, budget: int) -> ScenarioPlan:
    """At the rank whose count is nearest to the budget: the count grows by the same with each."""

    def trained(rank: int) -> int:
        adapter = plan.adapter.with_rank(rank)
        ledger = match(model.table, adapter, model.role_of, described=False)
        return lora_parameters(ledger).trainable

    one, two = trained(1), trained(2)
    if one > budget:
        raise BenchError(f"at rank 1 it trains {one:,} already, more than the budget of {budget:,}")
    near = 1 + (budget - one) // (two - one)
    ranks = [min(max(rank, 1), MOST_RANK) for rank in (near, near + 1)]
    rank = min(ranks, key=lambda r: (abs(trained(r) - budget), r))
    found = _plan(model, plan.scenario, plan.adapter.with_rank(rank))
    return replace(found, off_budget=found.trainable / budget - 1)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere larger and somewhere smaller: every figure is better if smaller."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
