"""`bench report`: stored runs as one comparison table, on standard output or in a file."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from bench.cli.options import Add, add_format
from bench.cli.output import json_lines, put, stored_runs, written

HELP = "comparison table of stored runs"


def add_options(add: Add) -> None:
    """The runs, what they are held against, and how the table is written."""
    # fmt: off
    add("runs", nargs="*", metavar="RUN",
        help="stored run: a file, or its number or name in results/ (default: the latest)")
    add_format(add, "markdown")
    add("--baseline", metavar="RUN", help="hold the runs against this one")
    add("--output", type=Path, metavar="FILE", help="write the table there")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Write the table; 0. BenchError if a run cannot be read."""
    from bench.baselines import find_runs, load_run, load_stored
    from bench.reports import comparison_report, comparison_rows, comparison_table

    storage = stored_runs()
    found = [path for selector in options.runs for path in find_runs(storage, selector)]
    runs = [load_run(path) for path in dict.fromkeys(found)] or [load_stored(storage)]
    baseline = load_stored(storage, options.baseline) if options.baseline else None
    if options.format == "csv":
        table = comparison_table(runs, baseline)
        text = str(table.to_csv(index=False, lineterminator="\n"))
    elif options.format == "json":
        text = json_lines(asdict(row) for row in comparison_rows(runs, baseline))
    else:
        report = comparison_report(runs, baseline)
        text = written(report, options.format, options.output is not None)
    put(text, options.output)
    return 0
