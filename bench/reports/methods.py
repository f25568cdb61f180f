"""`bench targets --method` and `bench methods`: what other methods train, and at one budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.architectures import Model
from bench.errors import BenchError
from bench.formulas import Parameters
from bench.formulas.budgets import BudgetRow, methods_at_budget
from bench.formulas.methods import Method, method, method_parameters

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
    target_modules: tuple[str, ...] | str | None = None,
    modules_to_save: tuple[str, ...] = (),
    task_type: str | None = None,
    as_json: bool = False,
) -> int:
    """Print what the method called `name` trains on the model; always 0.

    `settings` are "field=value" with PEFT's field names. Raises BenchError for an unknown method or
    field, and where PEFT refuses.
    """
    given = _fields(settings)
    kind = method(name).kind
    if "task_type" in kind.common and (task_type or kind.size == "num_virtual_tokens"):
        given["task_type"] = task_type or _TASK_OF_CLASS.get(model.task_class)
    if target_modules:
        given["target_modules"] = target_modules
    if modules_to_save:
        given["modules_to_save"] = modules_to_save
    asked = method(name, **given)
    counted = method_parameters(model.table, asked, model.fields)
    print(json.dumps(_as_json(model, asked, counted)) if as_json else
          _as_text(model, asked, counted), flush=True)  # fmt: skip
    return 0


def budget_command(
    model: Model,
    budget: int,
    *,
    target_modules: tuple[str, ...] | str | None = None,
    task_type: str | None = None,
    as_json: bool = False,
) -> int:
    """Print every method at the size nearest to `budget` trained parameters; always 0."""
    rows = methods_at_budget(
        model.table,
        budget,
        target_modules=target_modules,
        task_type=task_type or _TASK_OF_CLASS.get(model.task_class),
        fields=model.fields,
    )
    if as_json:
        for row in rows:
            print(json.dumps({"model": model.label, "budget": budget, **asdict(row)}))
    else:
        print(f"{model.label}: methods at {budget:,} trainable parameters")
        for row in rows:
            print(f"  {row.method:17}{_said(row)}")
    return 0


def _fields(settings: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BenchError(f"--set takes FIELD=VALUE, not {text!r}")
        try:
            given[key] = json.loads(value)
        except json.JSONDecodeError:
            given[key] = value  # a bare word
    return given


def _as_json(model: Model, asked: Method, counted: Parameters) -> dict[str, Any]:
    return {
        "model": model.label,
        "method": asked.name,
        "config": asked.to_dict(),
        "trainable_parameters": counted.trainable,
        "total_parameters": counted.total,
        "terms": [asdict(term) for term in counted.terms],
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
