"""`bench compare`: verdicts on two stored runs."""

from __future__ import annotations

import argparse

from bench.cli.options import FORMATS, Add, add_format, add_gate
from bench.cli.output import csv_text, json_lines, put, say, stored_runs, written

HELP = "verdicts on two stored runs"


def add_options(add: Add) -> None:
    """The two runs, what is tolerated, and how the verdicts are written."""
    add("baseline", metavar="BASE")
    add("contender", metavar="NEW")
    add_gate(add)
    add_format(add, "terminal", (*FORMATS, "comment"))


def run(options: argparse.Namespace) -> int:
    """Print the verdicts; 1 if any fails, else 0.

    The verdict file is written whole or not at all, before anything is printed. BenchError for a
    run that cannot be read and for a wrong threshold or allowance.
    """
    from bench.baselines import (
        all_thresholds,
        as_json,
        check_apart,
        check_verdict_file,
        compare,
        gate,
        load_stored,
        require_common,
        write_verdicts,
    )
    from bench.baselines.accepted import unproven
    from bench.reports import verdict_report, verdict_rows

    if options.verdict_file is not None:
        check_verdict_file(options.verdict_file)
    thresholds = all_thresholds(options.threshold)
    storage = stored_runs(options.baseline, options.contender)
    baseline = load_stored(storage, options.baseline)
    contender = load_stored(storage, options.contender)
    check_apart(baseline, [contender])
    verdicts = compare(baseline, contender, thresholds)
    require_common(baseline, contender, verdicts)
    failing = gate(verdicts, options.allow)
    if options.verdict_file:
        write_verdicts(options.verdict_file, verdicts, failing, baseline, contender)
    if options.format in ("csv", "json") and (told := unproven(baseline)):
        say(told)
    if options.format == "csv":
        rows = verdict_rows(verdicts, failing)
        put(csv_text(rows[0], (row.values() for row in rows)))
    elif options.format == "json":
        put(json_lines({**as_json(item), "fails": item in failing} for item in verdicts))
    elif options.format == "comment":
        from bench.reports.comment import comment

        put(comment(verdicts, failing, baseline, contender, options.allow))
    else:
        report = verdict_report(verdicts, failing, baseline, contender, allow=options.allow)
        put(written(report, options.format))
    return 1 if failing else 0
