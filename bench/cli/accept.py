"""`bench accept`: a stored run may be a baseline, whatever its gate said; the reason is kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.options import Add
from bench.cli.output import put, stored_runs
from bench.errors import BenchError
from bench.units import counted, first_of, one_line

HELP = "let a stored run be a baseline, and record why"


def add_options(add: Add) -> None:
    """The run and the reason."""
    # fmt: off
    add("run_named", metavar="RUN", help="stored run: a file, or its number or name in results/")
    add("--reason", required=True, metavar="WHY", help="why its figures are right; it is recorded")
    add("--results", type=Path, metavar="DIR", help="where runs are stored (default: results/)")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Record it; 0. BenchError where RUN means no run, or several."""
    from bench.baselines import find_runs, load_run
    from bench.baselines.accepted import accept
    from bench.baselines.runs import FAILURES

    storage = options.results or stored_runs(options.run_named)
    found = find_runs(storage, options.run_named)
    if len(found) > 1:
        names = ", ".join(f"{path.parent.name}/{path.stem}" for path in found)
        raise BenchError(f"{options.run_named!r} means several runs: {names}; name one")
    file, before = accept(found[0], options.reason)
    put(f"{found[0].stem} may be a baseline now: recorded in {file}\n")
    if before is not None:
        put(
            f"in the place of what {one_line(before.by)} recorded on {one_line(before.when)}: "
            f"{one_line(before.reason)}\n"
        )
    records = load_run(found[0]).records.values()
    if failed := [f"{each.id} ({each.outcome})" for each in records if each.outcome in FAILURES]:
        put(
            f"{counted(len(failed), 'case')} in it failed, and a gate fails on what ends so again "
            f"(broken): {one_line(first_of(failed))}\n"
        )
    return 0
