"""`bench compare`: verdicts on two stored runs."""

from __future__ import annotations

import argparse

from bench.cli.gating import add_gate, check_gate, judge, verdict_lines
from bench.cli.options import FORMATS, Add, add_format
from bench.cli.output import csv_text, put, stored_runs, written

HELP = "verdicts on two stored runs"


def add_options(add: Add) -> None:
    """The two runs, what is tolerated, and how the verdicts are written."""
    add("baseline", metavar="BASE")
    add("contender", metavar="NEW")
    add_gate(add)
    add_format(add, "terminal", (*FORMATS, "comment"))


def run(options: argparse.Namespace) -> int:
    """Print the verdicts; 1 if any fails, else 0. BenchError for a run that cannot be read and for
    a wrong threshold or allowance."""
    from bench.baselines import check_apart, load_stored
    from bench.reports import verdict_report, verdict_rows

    check_gate(options)
    storage = stored_runs(options.baseline, options.contender)
    baseline = load_stored(storage, options.baseline)
    contender = load_stored(storage, options.contender)
    check_apart(baseline, [contender])
    verdicts, failing = judge(baseline, contender, options)
    if options.format == "csv":
        rows = verdict_rows(verdicts, failing)
        put(csv_text(rows[0], (row.values() for row in rows)))
    elif options.format == "json":
        put(verdict_lines(verdicts, failing))
    elif options.format == "comment":
        from bench.reports.comment import comment

        put(comment(verdicts, failing, baseline, contender, options.allow))
    else:
        report = verdict_report(verdicts, failing, baseline, contender, allow=options.allow)
        put(written(report, options.format))
    return 1 if failing else 0
