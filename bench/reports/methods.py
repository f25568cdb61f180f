"""`bench targets --method` and `bench methods`: what other methods train, and at one budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.errors import BenchError
from bench.formulas import Parameters
from bench.formulas.budgets import BudgetRow, methods_at_budget
from bench.formulas.kinds import Kind
from bench.formulas.methods import Method, method, method_ledger, method_parameters
from bench.formulas.settings import parse
from bench.models.architectures import Model
from bench.scenarios.subjects import Subject
from bench.targets import Ledger

_TASK_OF_CLASS = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModel": "FEATURE_EXTRACTION",
}


def method_command(
    model: Model,
    name: str,
    settings: Sequence[str] = (),
    *,
    rank: int | None = None,
    target_modules: tuple[str, ...] | str | None = None,
    modules_to_save: tuple[str, ...] = (),
    exclude_modules: tuple[str, ...] = (),
    task_type: str | None = None,
    optional: tuple[str, ...] = (),
    strict: bool = False,
    as_json: bool = False,
) -> int:
    """Print what the method called `name` trains on the model; 1 where `strict` and an entry that
    is not `optional` reaches nothing, else 0.

    `settings` are "field=value" with PEFT's field names. Raises BenchError for an unknown method or
    field, for an option that the method has no field for, and where PEFT refuses.
    """
    kind = method(name).kind
    given = _fields(kind, settings)
    options = {
        "rank": rank,
        "target_modules": target_modules,
        "modules_to_save": modules_to_save,
        "exclude_modules": exclude_modules,
        "task_type": task_type,
    }
    for option, value in options.items():
        if value is None or (value == () and option != "target_modules"):
            continue
        field = _field(kind, option)
        if field in given:
            raise BenchError(f"{field} is given twice: --set and --{option.replace('_', '-')}")
        given[field] = value
    if kind.size == "num_virtual_tokens" and "task_type" not in given:
        given["task_type"] = _TASK_OF_CLASS.get(model.task_class)
    asked = method(name, **given)
    counted = method_parameters(model.table, asked, model.transformers_config)
    ledger = method_ledger(model.table, asked, model.role_of)
    dead = Subject(model, kind.name, ledger.adapter, None, optional).dead_entries(ledger)
    if as_json:
        print(json.dumps(_as_json(model, asked, counted, ledger)), flush=True)
    else:
        print("\n".join(filter(None, (_as_text(model, asked, counted), dead))), flush=True)
    return 1 if strict and dead else 0


def _field(kind: Kind, option: str) -> str:
    """The method's field that an option fills in. Raises BenchError where it has none."""
    if option == "rank":
        if kind.size in ("r", "init_r"):
            return kind.size
        instead = f"its size is {kind.size}: --set {kind.size}=N" if kind.size else "it has no rank"
        raise BenchError(f"--rank does not go with --method {kind.name}: {instead}")
    if option not in kind.common:
        why = f": PEFT's {kind.peft_class} has no {option}" if kind.peft_class else ""
        raise BenchError(f"--{option.replace('_', '-')} does not go with --method {kind.name}{why}")
    return option


def budget_command(
    model: Model,
    budget: int,
    *,
    target_modules: tuple[str, ...] | str | None = None,
    task_type: str | None = None,
    as_json: bool = False,
) -> int:
    """Print every method at the size nearest to `budget` trained parameters; always 0."""
    dead = ""
    dead_entries: tuple[str, ...] = ()
    if target_modules is not None:
        # As every method but LoRA matches, which has other names for fused experts beside these.
        asked = method("loha", target_modules=target_modules)
        ledger = method_ledger(model.table, asked, model.role_of)
        dead = Subject(model, asked.name, ledger.adapter).dead_entries(ledger)
        dead_entries = ledger.dead_entries
    rows = methods_at_budget(
        model.table,
        budget,
        target_modules=target_modules,
        task_type=task_type or _TASK_OF_CLASS.get(model.task_class),
        config=model.transformers_config,
    )
    if as_json:
        shared = {"model": model.label, "budget": budget, "dead_entries": dead_entries}
        for row in rows:
            print(json.dumps({**shared, **asdict(row)}))
    else:
        print(f"{model.label}: methods at {budget:,} trainable parameters")
        for row in rows:
            print(f"  {row.method:17}{_said(row)}")
        if dead:
            print(dead)
    return 0


def _fields(kind: Kind, settings: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BenchError(f"--set takes FIELD=VALUE, not {text!r}")
        if key in given:
            raise BenchError(f"--set {key} is given twice")
        given[key] = parse(kind.name, key, value)
    return given


def _as_json(model: Model, asked: Method, counted: Parameters, ledger: Ledger) -> dict[str, Any]:
    return {
        "model": model.label,
        "method": asked.name,
        "config": asked.to_dict(),
        "trainable_parameters": counted.trainable,
        "total_parameters": counted.total,
        "terms": [asdict(term) for term in counted.terms],
        "dead_entries": list(ledger.dead_entries),
        "source": asked.kind.source,
    }


def _as_text(model: Model, asked: Method, counted: Parameters) -> str:
    given = ", ".join(f"{key} {value}" for key, value in asked.to_dict().items())
    lines = [
        f"{model.label}, {asked.name}" + (f", {given}" if given else ""),
        f"  trainable {counted.trainable:,} of {counted.total:,} ({counted.share:.4%})",
    ]
    terms = " + ".join(f"{term.name} {term.trained:,}" for term in counted.terms)
    return "\n".join([*lines, f"    = {terms}"])


def _said(row: BudgetRow) -> str:
    if row.trainable is None:
        return row.refusal
    return f"{row.setting:27}{row.trainable:>17,}{row.off:>+13.1%}"
