"""`bench report`: stored runs as a comparison table, a page, or plots."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import FORMATS, Add, add_format
from bench.cli.output import (
    csv_text,
    format_for,
    json_lines,
    put,
    save_figure,
    say,
    stored_runs,
    written,
)
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.baselines import StoredRun

HELP = "stored runs as a comparison table, a page, or plots"


def add_options(add: Add) -> None:
    """The runs, what they are held against, and how they are written."""
    # fmt: off
    add("runs", nargs="*", metavar="RUN",
        help="stored run: a file, or its number or name in results/ (default: the latest)")
    add_format(add, None, (*FORMATS, "html"))
    add("--baseline", metavar="RUN", help="hold the runs against this one")
    add("--output", type=Path, metavar="FILE",
        help="write the table or page there, by default in the format that its name says")
    add("--plots", type=Path, metavar="DIR",
        help="draw every plot that the runs have figures for there, as .svg and .png, instead")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Write what was asked for; 0. BenchError if a run cannot be read."""
    from bench.baselines import check_apart, find_runs, load_run, load_stored
    from bench.files import SUFFIXES, check_output

    _check_name(options.output, options.format)
    format = format_for(options.format or _named(options.output), options.output)
    if options.output is not None:
        if options.plots:
            raise BenchError("--plots DIR draws instead of a table: give it without --output")
        check_output(options.output, SUFFIXES[format], '"run": ' if format == "json" else "")
    asked = list(options.runs)
    storage = stored_runs(*asked, *([options.baseline] if asked and options.baseline else []))
    found = []
    for selector in asked:
        meant = find_runs(storage, selector)
        if len(meant) > 1 and "*" not in selector:
            names = ", ".join(f"{path.parent.name}/{path.stem}" for path in meant)
            say(f"{selector!r} means {len(meant)} runs: {names}")
        found += meant
    runs = [load_run(path) for path in dict.fromkeys(found)] or [load_stored(storage)]
    baseline = None if options.baseline is None else load_stored(storage, options.baseline)
    if baseline is not None:
        held = runs[-1:] if format == "html" else runs
        check_apart(baseline, held)
        _check_common(baseline, held)
    if options.plots:
        _plots(runs, options.plots)
        return 0
    put(_text(runs, baseline, format, options.output is not None), options.output)
    return 0


def _check_common(baseline: StoredRun, runs: Sequence[StoredRun]) -> None:
    """BenchError where no run has a case of the baseline: a table would hold nothing against it."""
    from bench.baselines import compare
    from bench.baselines.verdicts import NEW, VANISHED

    found = (verdict for run in runs for verdict in compare(baseline, run))
    if all(verdict.verdict in (NEW, VANISHED) for verdict in found):
        raise BenchError(
            f"--baseline {baseline.label}: nothing to compare: none of the cases of "
            f"{', '.join(run.label for run in runs[:5])} is in it"
        )


def _named(output: Path | None) -> str | None:
    """The format that a file's name promises; None where it promises none that is written here."""
    from bench.files import SUFFIXES

    ending = output.suffix.lower() if output is not None else ""
    known = (*FORMATS, "html")
    return next((name for name in known if ending in SUFFIXES[name]), None)


def _check_name(output: Path | None, format: str | None) -> None:
    """BenchError for a name that promises a format which is none of those written here."""
    from bench.files import SUFFIXES

    if output is not None and output.suffix and format is None and _named(output) is None:
        known = ", ".join(ending for name in (*FORMATS, "html") for ending in SUFFIXES[name])
        raise BenchError(
            f"--output {output}: {output.suffix} says no format; those that do: {known} (or say "
            "it with --format)"
        )


def _text(runs: Sequence[StoredRun], baseline: StoredRun | None, format: str, to_file: bool) -> str:
    from bench.reports import HEADERS, comparison_report, comparison_rows

    if format in ("csv", "json"):
        from bench.baselines.accepted import unproven
        from bench.reports.tables import beside_rows

        told = unproven(baseline) if baseline is not None else ""
        for line in filter(None, [told, *beside_rows(runs, baseline)]):
            say(line)
    if format == "html":
        return _page(runs, baseline)
    if format == "csv":
        rows = comparison_rows(runs, baseline)
        return csv_text(HEADERS.values(), (vars(row).values() for row in rows))
    if format == "json":
        return json_lines(asdict(row) for row in comparison_rows(runs, baseline))
    if format == "latex":
        from bench.reports.paper import paper

        return paper(runs, baseline)
    return written(comparison_report(runs, baseline), format, to_file)


def _page(runs: Sequence[StoredRun], baseline: StoredRun | None) -> str:
    from bench.baselines import compare, gate
    from bench.reports.page import page
    from bench.reports.reached import run_trees

    verdicts = compare(baseline, runs[-1]) if baseline else []
    return page(
        runs, baseline, verdicts=verdicts, failing=gate(verdicts), trees=run_trees(runs[-1])
    )


def _plots(runs: Sequence[StoredRun], folder: Path) -> None:
    """One file a plot and format. BenchError where the runs have figures for none."""
    from bench.reports.plots import PICTURES, plot_format, run_figures

    if not folder.is_dir():
        why = "this is no folder" if folder.exists() else "no such folder; make it first"
        raise BenchError(f"--plots {folder}: {why}")
    plot_format(folder / "plot.svg")
    for name, figure in run_figures(runs):
        for form in PICTURES:
            save_figure(figure, folder / f"{name}.{form}")
        say(f"{folder / name}.svg, .png")
