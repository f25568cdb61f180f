"""Arms: what is trained, at which rank, so that all of them train the same number of parameters.

The ranks come from the closed form (`bench.formulas.lora`), which PEFT is held to elsewhere: a
module of `in × out` takes r (in + out). Where no single rank comes near enough to the budget, the
roles of the scenario get ranks that differ by one (PEFT's `rank_pattern`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.formulas.lora import module_matrices
from bench.scenarios.scenario import Scenario
from bench.targets import match

if TYPE_CHECKING:
    from bench.models.architectures import Model
    from bench.targets import Ledger

LORA, FULL, HEAD = "lora", "full", "head"
"""How an arm trains: adapters, every parameter, or the task's head alone."""
TOLERANCE = 0.01
"""Share of the budget that an arm may lie off it."""
_LARGEST_RANK = 4096


@dataclass(frozen=True)
class Arm:
    """One thing to train. `budget` says that it trains the study's budget of parameters, `shift`
    that its text is the shifted one; `same_rate_as` names the arm whose learning rate it takes.
    `reached` counts the elements of the weights that it adapts, by role; `ranks` is `9`, or `8–9`
    where the roles' ranks differ. One that is read from a stored run has no adapter."""

    name: str
    kind: str
    adapter: AdapterConfig | None = field(repr=False)
    trainable: int
    total: int
    layers: int = 0
    rank: int | None = None
    ranks: str = ""
    budget: bool = False
    precision: str = "fp32"
    shift: bool = False
    seeds: int = 3
    rates: tuple[float, ...] = ()
    same_rate_as: str = ""
    tuning_seeds: int = 1
    reached: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def id(self) -> str:
        rank = f"-r{self.rank}" if self.rank else ""
        shift = "-shifted" if self.shift else ""
        return f"{self.name}{rank}-{self.precision}{shift}"


def budget_of(model: Model, scenario: Scenario, r: int) -> int:
    """What the scenario's adapters train at that rank, heads left out: the budget of the others."""
    return adapters_of(_ledger(model, scenario.adapter(model, r)))


def adapters_of(ledger: Ledger) -> int:
    """Trained elements of adapters alone: every arm trains the task's head as well."""
    return sum(t.trained for t in lora_parameters(ledger).terms if t.name != "modules_to_save")


def _ledger(model: Model, adapter: AdapterConfig) -> Ledger:
    return match(model.table, adapter, model.role_of).check_adapts("it reaches nothing")


def lora_arm(
    name: str,
    model: Model,
    scenario: Scenario,
    *,
    budget: int | None = None,
    more: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Arm:
    """An arm of a scenario at its own rank, or at ranks that train `budget` parameters.

    more: other fields of the AdapterConfig (`use_dora`). BenchError where no ranks come within
    TOLERANCE of the budget.
    """
    try:
        adapter = replace(scenario.adapter(model), **(more or {}))
        if budget is not None:
            adapter = at_budget(model, adapter, budget)
        ledger = _ledger(model, adapter)
    except BenchError as error:
        raise BenchError(f"arm {name}: {error}") from None
    counted = lora_parameters(ledger)
    reached: dict[str, int] = {}
    for item in ledger.adapted:
        reached[item.role] = reached.get(item.role, 0) + item.weight_elements
    return Arm(
        name, LORA, adapter, counted.trainable, counted.total, ledger.adapted_layers, adapter.r,
        _ranks(adapter), budget=budget is not None, reached=reached, **facts,
    )  # fmt: skip


def _ranks(adapter: AdapterConfig) -> str:
    most = max((r for _, r in adapter.ranks), default=adapter.r)
    return str(adapter.r) + (f"–{most}" if most != adapter.r else "")


def whole_arm(name: str, kind: str, model: Model, **facts: Any) -> Arm:
    """Full fine-tuning, or the head alone."""
    total = model.table.total_parameters
    trainable = total if kind == FULL else head_parameters(model)
    return Arm(name, kind, None, trainable, total, **facts)


def head_parameters(model: Model) -> int:
    """The elements of the task's head; a tied one is a copy of its own when it is trained."""
    heads = [m for m in model.table.modules if model.role_of(m.name) == "head"]
    if not heads:
        raise BenchError(f"{model.label}: it has no head to train alone")
    return sum(m.weight_elements + (m.out_features if m.bias else 0) for m in heads)


def at_budget(model: Model, adapter: AdapterConfig, budget: int) -> AdapterConfig:
    """The adapter at the ranks whose count comes nearest to the budget.

    One rank for all; where that is more than TOLERANCE off, some roles get one rank more, as few as
    bring it nearest. What each rank of a role trains is Σ (in + out) over its modules.
    """
    ledger = _ledger(model, adapter.with_rank(1))
    widths: dict[str, int] = {}  # what a rank of each role trains
    for item in ledger.adapted:
        if item.module is not None:
            width = module_matrices(item.module, 1).elements
            widths[item.role] = widths.get(item.role, 0) + width
    rest = adapters_of(ledger) - sum(widths.values())  # what a variant trains besides
    low = (budget - rest) // max(1, sum(widths.values()))
    if not 1 <= low < _LARGEST_RANK:
        raise BenchError(
            f"a budget of {budget:,} is not among its ranks: rank 1 trains {adapters_of(ledger):,}"
        )

    def off(raised: tuple[str, ...]) -> float:
        return abs(
            low * sum(widths.values()) + sum(widths[role] for role in raised) + rest - budget
        )

    names = tuple(widths)
    raised = min(((), names), key=off)
    if off(raised) > TOLERANCE * budget:
        raised = min(_choices(names), key=off)
    if off(raised) > TOLERANCE * budget:
        raise BenchError(f"no ranks come within {TOLERANCE:.0%} of the budget of {budget:,}")
    if raised == names:
        return adapter.with_rank(low + 1)
    more = {
        entry.entry: low + 1
        for entry in ledger.entries
        if entry.roles and {*entry.roles} <= {*raised}
    }
    return replace(adapter.with_rank(low), rank_pattern=more)


def _choices(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every choice of roles, few first."""
    return [c for size in range(len(names) + 1) for c in combinations(names, size)]
