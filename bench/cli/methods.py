"""`bench methods`: PEFT's methods that have a closed form, at one budget of parameters."""

from __future__ import annotations

import argparse

from bench.cli.options import MOST_PARAMETERS, TEXT, Add, add_format, add_model, add_targets, count
from bench.cli.output import fitted, json_lines, put
from bench.units import text_of

HELP = "the PEFT methods that have a closed form, at one budget of trained parameters"


def add_options(add: Add) -> None:
    """The model, the budget, and what the methods adapt."""
    add(
        "--budget",
        type=count(MOST_PARAMETERS),
        required=True,
        metavar="N",
        help="trainable parameters",
    )
    add_targets(add)
    add("--strict", action="store_true", help="exit with 1 when an entry has no effect")
    add_model(add)
    add_format(add, "terminal", TEXT)


def run(options: argparse.Namespace) -> int:
    """Print every method at the size nearest to the budget; 1 with --strict when an entry of the
    target modules is dead, as `bench targets` has it."""
    from bench.adapters.config import AdapterConfig
    from bench.cli.subject import with_head
    from bench.formulas.budgets import methods_at_budget
    from bench.formulas.methods import method, method_ledger
    from bench.models.architectures import load_model
    from bench.reports.methods import budget_json, budget_text
    from bench.scenarios.subjects import Subject

    AdapterConfig(task_type=options.task_type)  # an unknown one is told before anything is built
    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    model = with_head(model, options)
    targets = options.target_modules
    dead = ""
    dead_entries: tuple[str, ...] = ()
    if targets is not None:
        # As every method but LoRA matches, which has other names for fused experts beside these.
        asked = method("loha", target_modules=targets)
        ledger = method_ledger(model.table, asked, model.role_of)
        dead = Subject(model, asked.name, ledger.adapter).dead_entries(ledger)
        dead_entries = ledger.dead_entries
    rows = methods_at_budget(
        model.table,
        options.budget,
        target_modules=targets,
        task_type=options.task_type or model.task_type,
        config=model.transformers_config,
    )
    if options.format == "json":
        put(json_lines(budget_json(model, options.budget, rows, dead_entries)))
    else:
        notes = text_of(f"note: {note}" for note in model.notes)
        text = "\n".join(filter(None, (notes, budget_text(model, options.budget, rows), dead)))
        put(fitted(text) + "\n")
    return 1 if options.strict and dead else 0
