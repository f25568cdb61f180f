"""What the declarations alone say of a scenario: counts and parameters without building a model.

Only the numbers of architecture.toml enter here, never a model's modules, so that agreement with
the ledger, the formulas and PEFT is evidence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bench.adapters.config import AdapterConfig
from bench.models.architectures import Model
from bench.models.declared import Projection
from bench.models.roles import FUSED, HEAD
from bench.scenarios.scenario import Scenario
from bench.tasks import heads_of

# The head that a task trains beside the adapter: PEFT saves every module of it.
_HEAD_ROLES = (HEAD, "dense_head")


@dataclass(frozen=True)
class Expectation:
    """Adapted layers by role, dead entries, and parameters at one rank."""

    by_role: dict[str, int]
    dead_entries: tuple[str, ...]
    trainable: int
    total: int

    @property
    def adapted_layers(self) -> int:
        return sum(self.by_role.values())


def expect(model: Model, scenario: Scenario, r: int) -> Expectation:
    """The declared expectation for a registered model. Closed form: Σ count · r (in k + out) for
    the adapted projections (for each expert), and a copy of every saved one."""
    assert model.architecture is not None
    projections = model.architecture.projections(model.fields)
    adapter = scenario.adapter(model, r)
    saved = [p for p in projections if _is_saved(p, scenario, adapter)]
    reached, dead = _reached(projections, scenario)
    reached = [p for p in reached if p not in saved]
    lora = sum(p.count * p.experts * r * (p.in_features * p.kernel + p.out_features)
               for p in reached)  # fmt: skip
    copies = sum(p.count * (p.weight_elements + p.bias * p.out_features) for p in saved)
    by_role: Counter[str] = Counter()
    for p in reached:
        by_role[p.role] += p.count
    base = model.architecture.total_parameters(model.fields)
    return Expectation(dict(by_role), tuple(dead), lora + copies, base + lora + copies)


def _reached(
    projections: tuple[Projection, ...], scenario: Scenario
) -> tuple[list[Projection], list[str]]:
    if not scenario.literal:
        wanted = {*scenario.roles, *scenario.optional_roles}
        return [p for p in projections if p.role in wanted or _whole(p.role, wanted)], []
    fits = {
        entry: [p for p in projections if f".{p.module}".endswith(f".{entry}") and not p.regex
                and p.kind != "expert"]
        for entry in scenario.target_modules
    }  # fmt: skip
    reached = [p for p in projections if any(p in hits for hits in fits.values())]
    return reached, [entry for entry, hits in fits.items() if not hits]


def _whole(role: str, wanted: set[str]) -> bool:
    return role in FUSED and set(FUSED[role]) <= wanted


def _is_saved(p: Projection, scenario: Scenario, adapter: AdapterConfig) -> bool:
    if p.role in scenario.saved_roles or p.module in scenario.modules_to_save:
        return True
    trains_head = bool(heads_of(adapter.task_type))
    return p.role in _HEAD_ROLES and (trains_head or p.module in adapter.modules_to_save)
