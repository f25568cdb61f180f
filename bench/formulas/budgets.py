"""Methods side by side at one budget of trainable parameters.

A comparison of methods at their default sizes compares budgets as well; here each method gets the
size that comes nearest to one budget, and says how near it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.formulas.kinds import METHODS
from bench.formulas.methods import Method, method, method_ledger, method_parameters
from bench.formulas.terms import Parameters
from bench.models.modules import ModuleTable
from bench.targets import match

_LARGEST = 1 << 18
# Block sizes must divide the layers' widths: powers of two are tried.
_STEPPED = ("oft_block_size", "boft_block_size")
_POWERS = tuple(1 << exponent for exponent in range(1, 13))


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
    config: Any = None,
    names: Iterable[str] = tuple(METHODS),
) -> list[BudgetRow]:
    """Every method (or `names`) on the model at the size whose trainable count is nearest.

    Methods that match modules share `target_modules` (None: each method's own default). A method
    that PEFT or the formula refuses gets a row that says why. Raises BenchError for a budget below
    1, an unknown method or task type, and targets that reach nothing.
    """
    if budget < 1:
        raise BenchError(f"the budget must be at least 1 trainable parameter, not {budget}")
    adapter = AdapterConfig(target_modules, task_type=task_type)
    if target_modules is not None and not match(table, adapter, described=False).adapted:
        raise BenchError(f"nothing on this model is called {_said(target_modules)}")
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
            rows.append(_row(table, method(name, **given), budget, config))
        except BenchError as error:
            rows.append(BudgetRow(name, "", None, None, None, kind.source, str(error)))
    return rows


def _said(targets: tuple[str, ...] | str) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _row(table: ModuleTable, asked: Method, budget: int, config: Any) -> BudgetRow:
    kind = asked.kind
    if not kind.size:
        setting, counted = "", method_parameters(table, asked, config)
    else:
        found = _nearest(
            lambda size: method_parameters(table, asked.resized(size), config),
            budget,
            _POWERS if kind.size in _STEPPED else _turns(table, asked),
            stepped=kind.size in _STEPPED,
        )
        setting, counted = f"{kind.size}={found[0]}", found[1]
    off = counted.trainable / budget - 1
    return BudgetRow(kind.name, setting, counted.trainable, counted.total, off, kind.source)


def _turns(table: ModuleTable, asked: Method) -> tuple[int, ...]:
    """The sizes that end a stretch on which the count grows; the last is the largest tried."""
    if asked.kind.turns is None:
        return (_LARGEST,)
    values = {**asked.kind.settings, **asked.settings}
    modules = (item.module for item in method_ledger(table, asked).adapted)
    ends = {end for m in modules if m is not None for end in asked.kind.turns(m, values)}
    return tuple(sorted(ends | {max(ends, default=0) + 1}))


def _nearest(
    cost: Callable[[int], Parameters], budget: int, ends: tuple[int, ...], *, stepped: bool
) -> tuple[int, Parameters]:
    """The size whose count is nearest to the budget, the smaller of two that are as near.

    `ends` are the sizes to try (`stepped`), or the ends of the stretches to search. Raises the
    first refusal where no size is taken.
    """
    refusals: list[BenchError] = []

    @cache
    def counted(size: int) -> Parameters | None:
        try:
            return cost(size)
        except BenchError as error:
            refusals.append(error)
            return None

    sizes = set(ends) if stepped else set()
    start = 1
    for end in () if stepped else ends:
        sizes |= _bracket(counted, budget, start, end)
        start = end + 1
    taken = [(size, found) for size in sorted(sizes) if (found := counted(size)) is not None]
    if not taken:
        raise refusals[0]
    return min(taken, key=lambda pair: (abs(pair[1].trainable - budget), pair[0]))


def _bracket(
    counted: Callable[[int], Parameters | None], budget: int, start: int, end: int
) -> set[int]:
    """Neighbouring sizes around the budget within a stretch, by doubling and bisection.

    A size that is refused (more tokens than the vocabulary, more frequencies than a weight) is too
    large, as one over the budget is.
    """

    def over(size: int) -> bool:
        found = counted(size)
        return found is None or found.trainable >= budget

    if over(start):
        return {start}
    low, step = start, 1
    while low < end and not over(min(low + step, end)):
        low, step = min(low + step, end), step * 2
    high = min(low + step, end)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if over(middle) else (middle, high)
    return {low, high}
