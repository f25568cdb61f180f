"""What was found: a configuration that trains so many parameters, and all that is said of one."""

from __future__ import annotations

from dataclasses import dataclass

from bench.adapters.config import NO_TARGETS, AdapterConfig


@dataclass(frozen=True)
class Found:
    """A configuration, what it trains, and the total that PEFT prints with it.

    `score` orders by plausibility, the lowest first; `note` tells what it is, or what is special.
    """

    adapter: AdapterConfig
    trainable: int
    total: int
    score: float
    note: str = ""

    def describe(self) -> str:
        adapter = self.adapter
        parts = [f"r {adapter.r}"]
        targets = adapter.target_modules
        if targets is None:
            parts.append("no target_modules")
        elif isinstance(targets, str) and targets != NO_TARGETS:
            parts.append(targets)
        elif targets and targets != NO_TARGETS:
            parts.append(", ".join(targets))
        if adapter.exclude_modules:
            parts.append(f"exclude_modules {adapter.exclude_modules}")
        if adapter.target_parameters:
            parts.append("target_parameters " + ", ".join(adapter.target_parameters))
        if isinstance(adapter.layers_to_transform, tuple):
            last = adapter.layers_to_transform[-1]
            parts.append("layers_to_transform 0" + f" to {last}" * bool(last))
        if adapter.use_dora:
            parts.append("DoRA")
        if adapter.bias != "none":
            parts.append(f"bias {adapter.bias}")
        if adapter.modules_to_save:
            parts.append("modules_to_save " + ", ".join(adapter.modules_to_save))
        if adapter.ensure_weight_tying:
            parts.append("ensure_weight_tying")
        if adapter.task_type:
            parts.append(f"task type {adapter.task_type}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Explanation:
    """The exact configurations, the most plausible first; where there are none the nearest ones of
    all that was tried, and the nearest of the popular sets.

    `remark` says what a total that was given tells; `full`, that the number is the model's own;
    `tried` is how many configurations were tried, each at every rank; `some_layers`, the most
    plausible of those of some layers only, where `exact` has likelier ones of all layers; `more`,
    how many beside those in `exact` and `some_layers` give the number by their closed form, some of
    which may adapt the same, and `more_some_layers`, how many of these are of some layers only.
    """

    trainable: int
    base: int
    exact: tuple[Found, ...]
    nearest: tuple[Found, ...]
    remark: str = ""
    full: bool = False
    tried: int = 0
    nearest_popular: tuple[Found, ...] = ()
    more: int = 0
    some_layers: tuple[Found, ...] = ()
    more_some_layers: int = 0
