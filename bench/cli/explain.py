"""`bench explain`: which configurations train exactly so many parameters."""

from __future__ import annotations

import argparse
import json

from bench.cli.options import Add, add_model

HELP = "which configurations train exactly this many parameters"


def add_options(add: Add) -> None:
    """The model and the numbers in the log."""
    add("--trainable", type=int, required=True, metavar="N", help="the number in the log")
    add("--total", type=int, metavar="N", help="all parameters, where the log has them")
    add_model(add)


def run(options: argparse.Namespace) -> int:
    """Print what gives the number; 0 if something does, 1 if nothing does."""
    from bench.explain import explain
    from bench.reports.explained import explanation_json, explanation_text
    from bench.scenarios.subjects import load_model

    model = load_model(options.model, options.auto_class, options.trust_remote_code)
    answer = explain(model.table, options.trainable, options.total)
    if options.json:
        print(json.dumps(explanation_json(model.label, answer)))
    else:
        print(explanation_text(model.label, answer))
    return 0 if answer.exact or answer.full else 1
