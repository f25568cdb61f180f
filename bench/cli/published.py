"""`bench published`: predicted memory against what others measured."""

from __future__ import annotations

import argparse

from bench.cli.options import Add
from bench.cli.output import put, say, written

HELP = "predicted memory against what others measured"


def add_options(add: Add) -> None:
    """None: it is every row of fixtures/published/measurements.csv."""


def run(_: argparse.Namespace) -> int:
    """Predict every row and print the table as Markdown."""
    from bench.reports.published import load_published, predict_published, published_report

    rows, predictions = load_published(), []
    for number, row in enumerate(rows, start=1):
        say(f"[{number}/{len(rows)}] {row.id}")
        predictions.append(predict_published(row))
    put(written(published_report(rows, predictions), "markdown"))
    return 0
