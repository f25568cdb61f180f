"""Methods side by side at one budget of trainable parameters.

A comparison of methods at their default sizes compares budgets as well; here each method gets the
size that comes nearest to one budget, and says how near it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from bench.formulas.kinds import METHODS
from bench.formulas.methods import Method, method, method_parameters
from bench.formulas.terms import Parameters
from bench.modules import ModuleTable

_LARGEST = 1 << 18
# Block sizes must divide the layers' widths: powers of two are tried.
_STEPPED = ("oft_block_size", "boft_block_size")


@dataclass(frozen=True)
class BudgetRow:
    """One method at the size nearest to the budget.

    `setting` names the size ("r=16"; "" for a method without one); `off` is how far `trainable`
    lies from the budget, as a share of it; `refusal` says why a method has no numbers here.
    """

    method: str
    setting: str
    trainable: int | None
    total: int | None
    off: float | None
    source: str
    refusal: str = ""


def methods_at_budget(
    table: ModuleTable,
    budget: int,
    *,
    target_modules: Any = None,
    task_type: str | None = None,
    fields: Mapping[str, Any] | None = None,
    names: Iterable[str] = tuple(METHODS),
) -> list[BudgetRow]:
    """Every method (or `names`) on the model at the size whose trainable count is nearest.

    Methods that match modules share `target_modules` (None: each method's own default). A method
    that PEFT or the formula refuses gets a row that says why. Raises BenchError for a budget below
    1 and for an unknown method.
    """
    if budget < 1:
        raise BenchError(f"the budget must be at least 1 trainable parameter, not {budget}")
    rows = []
    for name in names:
        kind = method(name).kind
        common = {"target_modules": target_modules, "task_type": task_type}
        # A normalisation layer or a token table is never among LoRA's targets.
        own_targets = name in ("ln-tuning", "trainable-tokens")
        given = {
            key: value
            for key, value in common.items()
            if key in kind.common and value is not None
            and not (key == "target_modules" and own_targets)
        }  # fmt: skip
        try:
            rows.append(_row(table, method(name, **given), budget, fields))
        except BenchError as error:
            rows.append(BudgetRow(name, "", None, None, None, kind.source, str(error)))
    return rows


def _row(
    table: ModuleTable, asked: Method, budget: int, fields: Mapping[str, Any] | None
) -> BudgetRow:
    def cost(size: int) -> Parameters:
        return method_parameters(table, asked.resized(size), fields)

    kind = asked.kind
    if not kind.size:
        setting, counted = "", method_parameters(table, asked, fields)
    else:
        size, counted = _nearest(cost, budget, stepped=kind.size in _STEPPED)
        setting = f"{kind.size}={size}"
    off = counted.trainable / budget - 1
    return BudgetRow(kind.name, setting, counted.trainable, counted.total, off, kind.source)


def _nearest(
    cost: Callable[[int], Parameters], budget: int, *, stepped: bool
) -> tuple[int, Parameters]:
    """The size whose count is nearest to the budget, the smaller of two that are as near."""
    sizes = _powers(cost) if stepped else _bracket(lambda size: cost(size).trainable, budget)
    counted = [(size, cost(size)) for size in sizes]
    return min(counted, key=lambda pair: (abs(pair[1].trainable - budget), pair[0]))


def _powers(cost: Callable[[int], Parameters]) -> list[int]:
    sizes = []
    refusal: BenchError | None = None
    for size in (1 << exponent for exponent in range(1, 13)):
        try:
            cost(size)
        except BenchError as error:
            refusal = refusal or error
            continue
        sizes.append(size)
    if refusal and not sizes:
        raise refusal
    return sizes


def _bracket(trained: Callable[[int], int], budget: int) -> list[int]:
    """Neighbouring sizes around the budget, by bisection: the count grows with the size.

    Where it stops growing short of the budget (LoKr), the smallest size that reaches the most.
    """
    low, high = 1, 2
    while high < _LARGEST and trained(high) < budget:
        low, high = high, high * 2
    most = trained(high)
    if most < budget:
        low, budget = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if trained(middle) < budget else (low, middle)
    return [low, high]
