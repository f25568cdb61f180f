"""`bench history`: a figure over every stored run of a machine, and the steps in it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from bench.cli.options import PRINTED, Add, add_format, add_plot
from bench.cli.output import check_plot, json_lines, put, save_figure, say, stored_runs, written
from bench.errors import BenchError
from bench.units import counted

HELP = "a figure over every stored run of a machine, and where it changed"


def add_options(add: Add) -> None:
    """The figure, the cases, and whose runs."""
    # fmt: off
    add("metric", metavar="METRIC", help="step_seconds, peak_allocated_bytes, ...")
    add("--case", default="*", metavar="TEXT", help="cases with this in their id, or a pattern")
    add("--machine", metavar="FOLDER", help="a folder of results/ (default: that of most runs)")
    add("--all", action="store_true", help="cases without a step too")
    add_plot(add, "draw it")
    add_format(add, "terminal", PRINTED)
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Tell the steps; always 0. BenchError where no run has the figure."""
    from bench.baselines import find_runs, load_run
    from bench.baselines.history import histories
    from bench.reports.history import held_apart, history_report
    from bench.reports.tables import describe

    check_plot(options.plot)
    folders: dict[Path, list[Path]] = {}
    for path in find_runs(stored_runs(), f"{options.machine}/*" if options.machine else "*"):
        folders.setdefault(path.parent, []).append(path)
    folder = max(folders, key=lambda one: len(folders[one]))
    if len(folders) > 1:
        others = ", ".join(sorted(one.name for one in folders if one != folder))
        say(f"the runs of {folder.name}, which are most; --machine names another: {others}")
    runs = [load_run(path) for path in folders[folder]]
    whole = [run for run in runs if not run.interrupted]
    if not whole:
        raise BenchError(f"every run in {folder} was interrupted: there is no history")
    series = histories(whole, options.metric, options.case)
    shown = series if options.all else [one for one in series if one.steps]
    left = len(runs) - len(whole)
    if options.format == "json":
        if left:
            say(f"{counted(left, 'interrupted run')} left out")
        for line in held_apart(series):
            say(line)
        if not shown:
            say(
                f"no step in {counted(len({one.case for one in series}), 'case')}; --all lists them"
            )
        put(json_lines(map(asdict, shown)))
    else:
        put(written(history_report(series, shown, whole, left), options.format))
    if options.plot:
        from bench.reports.plots import history_figure

        save_figure(history_figure(shown or series, describe(whole[-1])), options.plot)
    return 0
