"""How far common LoRA configurations reach on each model type: by the ledger, and as PEFT injects.

What PEFT really injected is stored beside the atlas (`reach.json`), so that the ledger's answers,
read off the stored atlas, can be held against it for every type without building one.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.atlas.build import build_model
from bench.atlas.entries import TypeEntry
from bench.errors import BenchError, check_known
from bench.files import parse, read_json
from bench.models.modules import ModuleTable, read_table
from bench.targets import match

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEFAULT = "default"
SCENARIOS: dict[str, AdapterConfig] = {
    DEFAULT: AdapterConfig(),
    "seven-names": AdapterConfig(SEVEN),
    "q-v": AdapterConfig(("q_proj", "v_proj")),
    "all-linear": AdapterConfig(ALL_LINEAR),
}
REFUSED = "refused"
_FILE = "reach.json"

Reached = int | str
"""The number of adapted modules and parameters, or REFUSED."""


@dataclass(frozen=True)
class StoredReach:
    """What PEFT injected, by model type and scenario, and with which versions."""

    transformers: str
    peft: str
    types: Mapping[str, Mapping[str, Reached]] = field(repr=False)


def scenarios_for(model_type: str) -> dict[str, AdapterConfig]:
    """The scenarios to try on a type; PEFT's default only where PEFT has one."""
    known = model_type in peft_defaults()
    return {name: a for name, a in SCENARIOS.items() if known or name != DEFAULT}


def peft_defaults() -> Mapping[str, Any]:
    """PEFT's mapping from model type to the target modules that it takes by default."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    found: Mapping[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return found


def ledger_names(table: ModuleTable, adapter: AdapterConfig) -> set[str] | None:
    """The modules and parameters that the ledger says PEFT adapts; None where PEFT raises."""
    ledger = match(table, adapter, described=False)
    return None if ledger.refusals else {item.name for item in ledger.adapted}


@lru_cache(maxsize=1 << 12)
def stored_names(entry: TypeEntry, model_type: str, scenario: str) -> frozenset[str] | None:
    """The same for one of SCENARIOS on a stored type, worked out once however often it is asked."""
    names = ledger_names(entry.table(model_type), SCENARIOS[scenario])
    return None if names is None else frozenset(names)


def peft_names(model_type: str, adapter: AdapterConfig) -> set[str] | None:
    """The modules and parameters that PEFT adapts on a fresh model; None where it raises."""
    from bench.measure.counting import count, inject

    model, _ = build_model(model_type)
    try:
        return set(count(inject(model, adapter)).adapted)
    except BenchError:
        return None
    finally:
        del model
        gc.collect(1)


def inject_type(model_type: str) -> dict[str, Any]:
    """For each scenario: the outcome with PEFT, and the names that only one side has."""
    table = read_table(build_model(model_type)[0])
    found = {}
    for name, adapter in scenarios_for(model_type).items():
        by_peft, by_ledger = peft_names(model_type, adapter), ledger_names(table, adapter)
        found[name] = {
            "outcome": outcome(by_peft),
            "ledger": outcome(by_ledger),
            "only_peft": sorted((by_peft or set()) - (by_ledger or set()))[:5],
            "only_ledger": sorted((by_ledger or set()) - (by_peft or set()))[:5],
        }
    return found


def outcome(names: set[str] | frozenset[str] | None) -> Reached:
    """The number of names, or REFUSED."""
    return REFUSED if names is None else len(names)


def save_reach(reach: StoredReach, folder: Path) -> None:
    """Write `reach.json`, one line a type."""
    lines = [f"{json.dumps(t)}: {json.dumps(dict(v))}" for t, v in sorted(reach.types.items())]
    head = f'"transformers": {json.dumps(reach.transformers)}, "peft": {json.dumps(reach.peft)}'
    text = "{" + head + ', "types": {\n' + ",\n".join(lines) + "\n}}\n"
    (folder / _FILE).write_text(text, encoding="utf-8")


def load_reach(folder: Path) -> StoredReach:
    """Read `reach.json`. Raises BenchError, naming file and key, on anything not understood."""
    path = folder / _FILE
    found = parse(read_json(path), StoredReach, str(path))
    for model_type, outcomes in found.types.items():
        where = f"{path}: {model_type}"
        for name, value in outcomes.items():
            check_known(f"scenario in {where}:", name, SCENARIOS)
            if value != REFUSED and (type(value) is not int or value < 1):
                raise BenchError(f"{where}: {name}: {value!r} is neither a count nor {REFUSED!r}")
    return found
