"""`bench ab`: what an upgrade changed, measured in two environments side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.gating import add_gate, check_gate, judge, verdict_lines
from bench.cli.options import (
    PRINTED,
    REPEATABLE,
    Add,
    add_format,
    add_rank,
    add_step,
    count,
    entries,
)
from bench.cli.output import put, say, written
from bench.errors import BenchError, check_most
from bench.training.cases import MEASURED_LENGTH

if TYPE_CHECKING:
    from bench.ab.environments import Environment
    from bench.ab.pair import Pair, Plan
    from bench.scenarios.subjects import Subject, Subjects

HELP = "what an upgrade changed, measured in two environments side by side"
_SIDES = ("--baseline-env", "--contender-env")


def add_options(add: Add) -> None:
    """The two environments, what to measure in both, and what is tolerated."""
    # fmt: off
    add("--baseline-env", default=sys.executable, metavar="ENV",
        help="a virtual environment or its python (default: this one)")
    add("--contender-env", metavar="ENV", help="another, to hold against it (default: the same)")
    add("--adapter", type=Path, metavar="FILE", help="a PEFT adapter_config.json, or its folder")
    add("--target-modules", type=entries, metavar="A,B|REGEX", help="... or target modules")
    add("--contender-adapter", type=Path, metavar="FILE",
        help="the contender's, to hold two configurations against one another")
    add("--contender-target-modules", type=entries, metavar="A,B|REGEX",
        help="... or its target modules")
    add("--contender-rank", type=int, metavar="R", help="... or its rank")
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
    add("--cluster", metavar="ADDRESS",
        help="spread the launches over the nodes of this Ray cluster that are machines like this "
             "one, a pair on one node: auto, or HOST:PORT (docs/scale.md)")
    add("--clock", choices=("processor", "wall"), default="processor",
        help="of a step on a CPU (default: %(default)s)")
    add_gate(add)
    add("--save", type=Path, metavar="DIR", help="store both runs there")
    add("--resume", action="store_true", help="go on with what was cut short in --save DIR")
    add("--experiment", type=count(1_000), metavar="N",
        help="instead: how often it is right, in N comparisons of a small case with itself and as "
             "many with steps made longer")
    add_format(add, "terminal", PRINTED)
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Measure in both environments and print the verdicts; 1 if any fails, else 0.

    BenchError for an environment that cannot be used and for whatever else of the input is wrong,
    before anything is measured.
    """
    if options.experiment is not None:
        return _experiment(options)
    from bench.ab.pair import PairJournal, measure
    from bench.baselines import write_run
    from bench.reports.sides import sides_report

    check_gate(options)
    plan = _plan(options)
    if plan.contender in (None, plan.request) and options.contender_env is None:
        _check_named(options)
        raise BenchError(
            "there is nothing to compare: give --contender-env, or another configuration with "
            "--contender-adapter, --contender-target-modules or --contender-rank"
        )
    unreached = _unreached(plan, options)
    for each in unreached:
        say(each)
    with ExitStack() as stack:
        journal = None
        if options.save is not None:
            journal = PairJournal(options.save, plan, resume=options.resume)
            stack.callback(journal.close, done=False)
        cluster = None
        if options.cluster is not None:
            from bench.measure.cluster import Cluster

            cluster = stack.enter_context(Cluster(options.cluster))
        baseline, contender = _environments(options, stack)
        try:
            pair = measure(baseline, contender, plan, say, journal, cluster=cluster)
        except KeyboardInterrupt:
            if journal is not None:
                say(journal.so_far)
            raise
        if journal is not None:
            for name, document in zip(("baseline", "contender"), pair.documents, strict=True):
                say(f"stored {write_run(options.save, name, document)}")
            journal.close(done=True)
            if journal.trouble:
                say(f"not every case was kept as it ended: {journal.trouble}")
    before, after = pair.runs
    _check_measured(pair)
    verdicts, failing = judge(before, after, options)
    if options.format == "json":
        put(verdict_lines(verdicts, failing))
    else:
        report = sides_report(verdicts, failing, before, after, options.allow)
        put(written(replace(report, notes=(*report.notes, *unreached)), options.format))
    return 1 if failing else 0


def _check_measured(pair: Pair) -> None:
    """BenchError where no case ended well on either side: there is nothing to hold side by side."""
    runs = [{k: r for k, r in run.records.items() if r.outcome == "ok"} for run in pair.runs]
    if any(runs):
        return
    failures = (record.detail.get("failure") for record in pair.contender.records.values())
    why = "; ".join(dict.fromkeys(str(failure) for failure in failures if failure))
    raise BenchError(f"nothing was measured on either side: {why or 'no case'}")


def _unreached(plan: Plan, options: argparse.Namespace) -> tuple[str, ...]:
    """What of one's own configurations has no effect, on the models of this environment.

    BenchError where two configurations have no case in common: none would be compared; and where
    this environment's PEFT refuses every case of a side that is measured in it.
    """
    from bench.baselines.verdicts import OWN
    from bench.scenarios.subjects import select

    asked = [select(request) for request in (plan.request, plan.contender) if request is not None]
    if options.baseline_env == sys.executable:
        here = asked if options.contender_env is None else asked[:1]
        for found in here:
            _check_injectable(found.measured.values())
    ids = [
        {(s.key if s.name == OWN else s.ranked_key, s.precision) for s in found.measured.values()}
        for found in asked
    ]
    if len(ids) > 1 and ids[0].isdisjoint(ids[1]):
        raise BenchError(
            "the two configurations have no case in common, for a scenario's is named for it and "
            "its rank: give the baseline's with --adapter or --target-modules too"
        )
    if options.contender_env is None and _configured(asked[0]) == _configured(asked[-1]):
        raise BenchError(
            "there is nothing to compare: both sides are configured alike (a list of target "
            "modules has no order)"
        )
    own = (subject for found in asked for subject in found.own.values())
    return tuple(dict.fromkeys(said for subject in own for said in subject.unreached().values()))


def _configured(asked: Subjects) -> dict[tuple[str, str | None], dict[str, Any]]:
    """What is measured of each model, and in which precision."""
    return {(s.key, s.precision): s.adapter.as_given() for s in asked.measured.values()}


def _check_injectable(subjects: Iterable[Subject]) -> None:
    """BenchError with the first reason where PEFT refuses every one of the subjects."""
    refused = None
    for subject in subjects:
        try:
            subject.check_injectable()
        except BenchError as error:
            refused = refused or error
        else:
            return
    if refused is not None:
        raise refused


def _experiment(options: argparse.Namespace) -> int:
    """Store the comparisons and print what they come to; 1 if a target was missed."""
    from bench.ab.experiment import experiment_file, run_experiment

    names = ("model", "scenario", "adapter", "target_modules", "rank", "precision",
             "contender_env", "resume", "threshold", "allow", "verdict_file")  # fmt: skip
    if given := [name for name in (*names, *_CONTENDERS) if getattr(options, name)]:
        raise BenchError(
            f"--experiment has a case of its own: without --{given[0].replace('_', '-')}"
        )
    summary = run_experiment(options.experiment, experiment_file(options.save), say)
    put(json.dumps(summary, indent=1) + "\n")
    return 0 if all(each["met"] for each in summary.values()) else 1


def _plan(options: argparse.Namespace) -> Plan:
    from bench.ab.pair import Plan
    from bench.adapters.config import AdapterConfig
    from bench.scenarios.subjects import Request
    from bench.training.cases import StepOptions

    _check_ways(options)
    if options.resume and options.save is None:
        raise BenchError("--resume needs --save DIR: where the comparison was cut short")
    if options.save is not None and options.save.exists() and not options.save.is_dir():
        raise BenchError(f"--save {options.save}: this is no folder; name one")
    check_most("--rounds", options.rounds, 10_000)
    check_most("--launches", max(options.launches), 1_000)
    for rank in (options.rank, options.contender_rank):
        if rank is not None:
            AdapterConfig(r=rank)  # 0 is wrong, not absent
    for targets in (options.target_modules, options.contender_target_modules):
        if targets is not None:
            AdapterConfig(targets)
    request = Request(
        models=tuple(options.model),
        scenarios=tuple(options.scenario),
        adapter=options.adapter,
        target_modules=options.target_modules or (),
        r=options.rank,
        precisions=tuple(options.precision),
    )
    contender = None
    if any(getattr(options, name) is not None for name in _CONTENDERS):
        contender = request
        if any(getattr(options, name) is not None for name in _CONTENDERS[:2]):
            contender = replace(
                contender,
                scenarios=(),
                adapter=options.contender_adapter,
                target_modules=options.contender_target_modules or (),
            )
        if options.contender_rank is not None:
            contender = replace(contender, r=options.contender_rank)
    seq_len = MEASURED_LENGTH if options.seq_len is None else options.seq_len
    step = StepOptions(batch_size=options.batch_size, seq_len=seq_len)
    return Plan(request, step, options.rounds, tuple(options.launches), contender=contender)


_CONTENDERS = ("contender_adapter", "contender_target_modules", "contender_rank")


def _check_named(options: argparse.Namespace) -> None:
    """BenchError for what both sides would refuse once they are there, as far as a name tells."""
    from bench.ab.environments import find_python
    from bench.models.architectures import load_model
    from bench.models.precision import precision
    from bench.scenarios.scenario import find_scenario

    if options.baseline_env != sys.executable:
        find_python(options.baseline_env, _SIDES[0])
    for name in options.model:
        load_model(name)
    for name in options.scenario:
        find_scenario(name)
    for name in options.precision:
        precision(name)


def _check_ways(options: argparse.Namespace) -> None:
    """BenchError where one side is given two configurations."""
    for names in (("adapter", "target_modules", "scenario"), _CONTENDERS[:2]):
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
        if len(given) > 1:
            raise BenchError(f"give one of {', '.join(given)}")


def _environments(options: argparse.Namespace, stack: ExitStack) -> list[Environment]:
    """Both sides, opened; neither where one of them cannot be used."""
    from bench.ab.environments import Environment, find_python

    labels = (options.baseline_env, options.contender_env or options.baseline_env)
    pythons = [find_python(label, side) for side, label in zip(_SIDES, labels, strict=True)]
    return [
        stack.enter_context(Environment(python, side, label, options.clock))
        for side, label, python in zip(_SIDES, labels, pythons, strict=True)
    ]
