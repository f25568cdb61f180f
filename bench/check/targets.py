"""One line for a user's own tests: a LoRA configuration does on a model what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.adapters.config import AdapterConfig
from bench.check.gate import HazardGate
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.models.architectures import Model, find_model
from bench.models.classes import class_of
from bench.models.modules import ModuleTable, read_table
from bench.reports.ledger import ledger_text
from bench.scenarios.subjects import Subject, check_optional
from bench.targets import Ledger, match
from bench.units import harmless, harmless_line

LOG = logging.getLogger("bench")


class DeadEntries(AssertionError):
    """Entries of a LoRA configuration have no effect. `ledger` says what the others reach."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger


class HazardsFound(AssertionError):
    """A LoRA configuration has hazards that were asked to fail; `ledger` has them all."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger


def check_targets(
    model: Any,
    adapter: Any,
    *,
    optional: Sequence[str] = (),
    optional_anywhere: Sequence[str] = (),
    fail_on: Sequence[str] = (),
    allow: Sequence[str] = (),
    minimum_coverage: float | None = None,
    auto_class: str | None = None,
    project: Path | None = None,
    tell: Callable[[str], object] | None = None,
) -> Ledger:
    """Assert that every entry of `adapter` has an effect on `model`; returns the ledger.

    What passes is not silent: every hazard is logged as a warning of the logger "bench", which
    pytest shows with -rA; the fixture of this name prints the whole ledger, which -rA shows too.

    Args:
        model: a live model (before `get_peft_model`), its transformers configuration, or what
            names one: a registered name, a folder or file with a config.json, a hub id. A model
            that is not live is built on the meta device.
        adapter: a `peft.LoraConfig`, the path of an adapter_config.json, a mapping of its fields,
            a list of target modules, or "all-linear".
        optional: entries that may have no effect; layers by their number as text.
        optional_anywhere: the same for any number of configurations: `adapter` need not have them.
        fail_on: hazards (docs/hazards.md) that fail, or "all", beside those that mean something
            else than what was written and those of `[tool.lora-target-bench]` in pyproject.toml.
        allow: hazards that never fail.
        minimum_coverage: the least share of the linear weights that must carry an adapter, 0 to 1.
        auto_class: the transformers class to build a model that is not live with.
        project: the folder in which, or above which, the project's pyproject.toml lies; the current
            one without.
        tell: called with what `bench targets` would print, whether it passes or fails.

    Raises:
        DeadEntries: (an AssertionError) when an entry reaches nothing, in target_modules or any
            other field; its message shows the ledger and what to write instead.
        HazardsFound: (an AssertionError) when a hazard fails; its message shows the ledger.
        BenchError: when PEFT would refuse the configuration, or the input is wrong.
    """
    __tracebackhide__ = True
    try:
        gate = HazardGate.of_project(project).with_options(
            fail_on, allow, minimum_coverage, strict=True
        )
        config = AdapterConfig.of(adapter)
        found, table = _found(model, config, auto_class)
        names = (optional,) if isinstance(optional, str) else tuple(optional)
        check_optional(names, [Subject(found, "check", config)], "optional")
        return _checked(found, table, config, (*names, *optional_anywhere), gate, tell)
    except (BenchError, DeadEntries, HazardsFound) as error:
        # The message says it all: where in this library it was noticed is pages of its source.
        raise error.with_traceback(None) from None


def _found(model: Any, config: AdapterConfig, auto_class: str | None) -> tuple[Model, ModuleTable]:
    if isinstance(model, str | Path):
        found = find_model(str(model), auto_class)
    elif hasattr(model, "model_type") and hasattr(model, "to_dict"):
        values = model.to_dict()
        found = Model(type(model).__name__, values, auto_class or class_of(values))
    else:
        table = read_table(_live(model))
        named = {"model_type": table.model_type}
        return Model(table.class_name, named, table.class_name, at_hand=table), table
    if auto_class is None:
        found = found.for_task(config.task_type)
    return found, found.table


def _checked(  # noqa: PLR0917
    found: Model,
    table: ModuleTable,
    config: AdapterConfig,
    optional: tuple[str, ...],
    gate: HazardGate,
    tell: Callable[[str], object] | None,
) -> Ledger:
    ledger = gate.judge(match(table, config, found.role_of))
    failing = gate.failing(ledger)
    subject = Subject(found, "check", config, None, optional)
    parameters = None if ledger.refusals else lora_parameters(ledger)
    text = harmless(ledger_text(subject, ledger, parameters, failing=failing))
    if tell is not None:
        tell(text)
    if problem := subject.dead_entries(ledger):
        raise DeadEntries(f"{problem}\n\n{text}", ledger)
    if ledger.refusals:
        ways = "".join(f"; {way}" for way in ledger.ways_out)
        raise BenchError(f"{found.label}: PEFT refuses: {'; '.join(ledger.refusals)}{ways}")
    if failing:
        raise HazardsFound(f"{found.label}: {', '.join(failing)}\n\n{text}", ledger)
    for note in found.notes:
        LOG.warning("%s: %s", found.label, harmless_line(note))
    for hazard in ledger.hazards:
        LOG.warning("%s: hazard %s: %s", found.label, hazard.code, harmless_line(hazard.reason))
    return ledger


def _live(model: Any) -> Any:
    """`model` itself, if it is a module that PEFT has not wrapped yet. Raises BenchError."""
    found = type(model).__name__
    if not callable(getattr(model, "named_modules", None)):
        raise BenchError(f"model: expected a model, its configuration, or a name, found {found}")
    if hasattr(model, "get_base_model") or any(hasattr(m, "base_layer") for m in model.modules()):
        raise BenchError(
            f"model: {found} carries an adapter already, and its modules have other names; check "
            "the model before get_peft_model, or what unload() gives back"
        )
    return model
