"""`bench ab`: what an upgrade changed, measured in two environments side by side."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import REPEATABLE, Add, add_format, add_gate, add_rank, add_step
from bench.cli.output import json_lines, put, say, written
from bench.training.cases import MEASURED_LENGTH

if TYPE_CHECKING:
    from bench.ab.environments import Environment
    from bench.ab.pair import Plan

HELP = "what an upgrade changed, measured in two environments side by side"
_SIDES = ("--baseline-env", "--contender-env")


def add_options(add: Add) -> None:
    """The two environments, what to measure in both, and what is tolerated."""
    # fmt: off
    add("--baseline-env", required=True, metavar="ENV", help="a virtual environment or its python")
    add("--contender-env", required=True, metavar="ENV", help="another, to hold against it")
    add("--model", **REPEATABLE, metavar="MODEL",
        help="measure this one; repeatable (default: the three published models)")
    add("--scenario", **REPEATABLE, metavar="NAME", help="only this; repeatable")
    add_rank(add)
    add("--precision", **REPEATABLE, metavar="P", help="only this; repeatable")
    add_step(add, 2, MEASURED_LENGTH)
    add("--rounds", type=int, default=20, metavar="N",
        help="steps on each side in one launch of a case, an even number (default: %(default)s)")
    add("--launches", type=int, nargs=2, default=(8, 24), metavar=("FEWEST", "MOST"),
        help="how often a case's two processes are started anew: until the interval of the ratio "
             "is narrow (default: 8 24); a verdict on time needs 8")
    add("--clock", choices=("processor", "wall"), default="processor",
        help="of a step on a CPU (default: %(default)s)")
    add_gate(add)
    add("--save", type=Path, metavar="DIR", help="store both runs there")
    add_format(add, "terminal", ("terminal", "markdown", "latex", "json"))
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Measure in both environments and print the verdicts; 1 if any fails, else 0.

    BenchError for an environment that cannot be used and for whatever else of the input is wrong,
    before anything is measured.
    """
    from bench.ab.pair import measure
    from bench.baselines import all_thresholds, as_json, compare, gate, write_run, write_verdicts
    from bench.files import check_output
    from bench.reports.sides import sides_report

    if options.verdict_file is not None:
        check_output(options.verdict_file)
    thresholds = all_thresholds(options.threshold)
    gate([], options.allow)
    plan = _plan(options)
    with ExitStack() as stack:
        baseline, contender = _environments(options, stack)
        pair = measure(baseline, contender, plan, say)
    if options.save is not None:
        for name, document in zip(("baseline", "contender"), pair.documents, strict=True):
            say(f"stored {write_run(options.save, name, document)}")
    before, after = pair.runs
    verdicts = compare(before, after, thresholds)
    failing = gate(verdicts, options.allow)
    if options.verdict_file is not None:
        write_verdicts(options.verdict_file, verdicts, failing, before, after)
    if options.format == "json":
        put(json_lines({**as_json(item), "fails": item in failing} for item in verdicts))
    else:
        put(written(sides_report(verdicts, failing, before, after), options.format))
    return 1 if failing else 0


def _plan(options: argparse.Namespace) -> Plan:
    from bench.ab.pair import Plan
    from bench.scenarios.subjects import Request
    from bench.training.cases import StepOptions

    request = Request(
        models=tuple(options.model),
        scenarios=tuple(options.scenario),
        r=options.rank,
        precisions=tuple(options.precision),
    )
    seq_len = MEASURED_LENGTH if options.seq_len is None else options.seq_len
    step = StepOptions(batch_size=options.batch_size, seq_len=seq_len)
    return Plan(request, step, options.rounds, tuple(options.launches))


def _environments(options: argparse.Namespace, stack: ExitStack) -> list[Environment]:
    """Both sides, opened; neither where one of them cannot be used."""
    from bench.ab.environments import Environment, find_python
    from bench.ab.rounds import CLOCKS

    labels = (options.baseline_env, options.contender_env)
    pythons = [find_python(label, side) for side, label in zip(_SIDES, labels, strict=True)]
    return [
        stack.enter_context(Environment(python, side, label, CLOCKS[options.clock]))
        for side, label, python in zip(_SIDES, labels, pythons, strict=True)
    ]
