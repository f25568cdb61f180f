"""One line for a user's own tests: a LoRA configuration has no dead entry on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.adapters import AdapterConfig
from bench.architectures import Model, find_model
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.modules import read_table
from bench.reports.ledger import ledger_text
from bench.subjects import Subject
from bench.targets import Ledger, match


class DeadEntries(AssertionError):
    """Entries of a LoRA configuration reach nothing. `ledger` says what the others reach."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger


def check_targets(
    model: Any,
    adapter: Any,
    *,
    optional: Sequence[str] = (),
    auto_class: str | None = None,
) -> Ledger:
    """Assert that every entry of `adapter` reaches something on `model`; returns the ledger.

    Args:
        model: a live model (before `get_peft_model`), or what names one: a registered name, a
            folder or file with a config.json, a hub id. A named model is built on the meta device.
        adapter: a `peft.LoraConfig`, the path of an adapter_config.json, a mapping of its fields,
            or a list of target modules.
        optional: entries that may reach nothing.
        auto_class: the transformers class to build a named model with.

    Raises:
        DeadEntries: (an AssertionError) when an entry reaches nothing; its message shows the
            ledger and what to write instead.
        BenchError: when PEFT would refuse the configuration, or the input is wrong.
    """
    config = _adapter(adapter)
    if isinstance(model, str | Path):
        found = find_model(str(model), auto_class)
        if auto_class is None:
            found = found.for_task(config.task_type)
        table, roles = found.table, found.role_of
    else:
        table = read_table(model)
        found = Model(table.class_name, {"model_type": table.model_type}, table.class_name)
        roles = found.role_of
    ledger = match(table, config, roles)
    subject = Subject(found, "check", config, None, tuple(optional))
    if problem := subject.dead_entries(ledger):
        parameters = None if ledger.refusals else lora_parameters(ledger)
        raise DeadEntries(f"{problem}\n\n{ledger_text(subject, ledger, parameters)}", ledger)
    if ledger.refusals:
        raise BenchError(f"{found.label}: PEFT refuses: {'; '.join(ledger.refusals)}")
    return ledger


def _adapter(adapter: Any) -> AdapterConfig:
    if isinstance(adapter, AdapterConfig):
        return adapter
    if isinstance(adapter, str | Path):
        return AdapterConfig.from_file(Path(adapter))
    if isinstance(adapter, Mapping):
        return AdapterConfig.from_dict(adapter)
    if isinstance(adapter, list | tuple | set):
        return AdapterConfig(tuple(adapter))
    if hasattr(adapter, "peft_type") and hasattr(adapter, "to_dict"):
        values = {k: sorted(v) if isinstance(v, set) else v for k, v in adapter.to_dict().items()}
        return AdapterConfig.from_dict(
            {**values, "peft_type": str(getattr(adapter.peft_type, "value", adapter.peft_type))}
        )
    raise BenchError(
        f"adapter: expected a LoraConfig, a path, a mapping or a list of target modules, "
        f"found {type(adapter).__name__}"
    )
