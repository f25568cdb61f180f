"""Which verdicts fail, which of those are allowed, and the file that says so to a machine."""

from __future__ import annotations

import fnmatch
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.baselines.accepted import unproven
from bench.baselines.configuration import unseen_changes
from bench.baselines.metrics import ALLOCATED, METRICS, RESERVED, TIME, Thresholds
from bench.baselines.runs import Record, StoredRun
from bench.baselines.verdicts import FAILING, NEW, VERDICTS, Verdict, left_out
from bench.errors import BenchError, UnknownName
from bench.files import SUFFIXES, check_output, project_file, tool_table, write_output
from bench.scenarios.scenario import load_scenarios
from bench.units import counted

VERDICT_SCHEMA = 1


def all_thresholds(options: Iterable[str] = (), folder: Path | None = None) -> Thresholds:
    """What each metric tolerates: the defaults, then `[tool.bench.thresholds]` of the project that
    `folder` (the current one) lies in, then each scenario's own, then options such as
    `step_seconds=10%`.

    BenchError, naming the place, for an unknown metric or no fraction.
    """
    found = Thresholds()
    if path := project_file(folder):
        table = tool_table(path, "bench", "thresholds")
        found = found.with_table(table, f"{path}: tool.bench.thresholds")
    for scenario in load_scenarios().values():
        where = f"scenario {scenario.name}: thresholds"
        found = found.with_table(scenario.thresholds, where, scenario.name)
    return found.with_options(options)


def gate(verdicts: Iterable[Verdict], allow: Iterable[str] = ()) -> list[Verdict]:
    """The verdicts that fail, less the allowed: regressed, changed, vanished, incomparable, broken.

    Each of `allow` is a verdict (`vanished`), a pattern of case ids (`suites/test_steps.py*`), or
    a verdict for the cases of a pattern (`changed:*opt-350m*`) or for a metric
    (`changed:operations`). In a pattern `*` and `?` stand for any text and any character, and
    brackets for themselves. UnknownName for a word that is neither a verdict nor looks like an id.
    """
    allowances = [_allowance(text) for text in allow]
    return [
        verdict
        for verdict in verdicts
        if verdict.verdict in FAILING and not any(_lets_pass(each, verdict) for each in allowances)
    ]


def unused(verdicts: Sequence[Verdict], allow: Iterable[str]) -> list[str]:
    """Those of `allow` that let nothing pass: misspelt, or no longer needed."""
    failing = [verdict for verdict in verdicts if verdict.verdict in FAILING]
    return [t for t in allow if not any(_lets_pass(_allowance(t), each) for each in failing)]


def _lets_pass(allowance: tuple[str, str], verdict: Verdict) -> bool:
    kind, pattern = allowance
    named = fnmatch.fnmatchcase(verdict.record, pattern) or verdict.metric == pattern
    return kind in ("", verdict.verdict) and named


def check_apart(baseline: StoredRun, runs: Iterable[StoredRun]) -> None:
    """BenchError where every one of the runs is the baseline itself, which cannot differ."""
    if all(baseline.is_same(run) for run in runs):
        raise BenchError(f"{baseline.label} is held against itself: that shows nothing")


def require_common(baseline: StoredRun, contender: StoredRun, verdicts: Iterable[Verdict]) -> None:
    """BenchError where nothing was compared: no case of the contender is in the baseline, and none
    of the baseline's was asked for."""
    if all(verdict.verdict == NEW for verdict in verdicts):
        raise BenchError(
            f"nothing to compare: none of the {len(contender.records)} cases of this run is in "
            f"the baseline {baseline.label}, which has {len(baseline.records)}"
            f"{_other_names(baseline, contender)}"
        )


def _other_names(baseline: StoredRun, contender: StoredRun) -> str:
    """That a model may be the same under another name, with the way out; "" where none is alike."""
    old, new = (
        sorted({record.model for record in run.records.values()}) for run in (baseline, contender)
    )
    if not any(a.endswith(f"/{b}") or b.endswith(f"/{a}") for a in old for b in new):
        return ""
    return (
        f". It calls its models {', '.join(old)}, and this run {', '.join(new)}: the name depends "
        "on which others are given beside. Give the same --model as it was stored with, or store "
        "a baseline with these"
    )


def require_measured(baseline: StoredRun, contender: StoredRun) -> None:
    """BenchError where both have measured cases, and none of the baseline's was asked for again: no
    time and no memory was compared, and a gate that passes would look as if they had been."""
    here, there = (
        {key for key, record in run.records.items() if _is_measured(record)}
        for run in (contender, baseline)
    )
    if here and there and there <= {*left_out(baseline, contender)}:
        raise BenchError(
            f"--gate: none of the {counted(len(here), 'measured case')} of this run is in the "
            f"baseline {baseline.label}, whose own {counted(len(there), 'case')} this run was not "
            "asked for, so that no time and no memory was compared: ask for what the baseline has "
            "(--precision, --rank), beside it for what is new, or run without --gate"
        )


def _is_measured(record: Record) -> bool:
    return any(METRICS[name].kind in (ALLOCATED, RESERVED, TIME) for name in record.metrics)


def _allowance(text: str) -> tuple[str, str]:
    """(verdict or nothing, pattern) of one allowance."""
    kind, colon, pattern = text.partition(":")
    if kind not in VERDICTS or pattern.startswith(":"):
        if not any(mark in text for mark in "*?/["):
            raise UnknownName("verdict to allow", text, FAILING, "(or give a pattern of case ids)")
        kind, pattern = "", text
    elif not colon:
        pattern = "*"
    return kind, pattern.replace("[", "[[]")


def count_verdicts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many of each verdict, all verdicts named, the failing ones first."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    return {name: counts[name] for name in VERDICTS}


def begin_verdict_file(path: Path) -> None:
    """BenchError unless the verdicts may be written there: no other file is in that place. Those
    of an earlier run are replaced at once: one that ends without verdicts has not passed."""
    check_output(path, SUFFIXES["json"], '"verdicts": ')
    if not path.is_file() or path.stat().st_size == 0:
        return
    _write_document(
        path,
        passed=False,
        unjudged="the run that was to write its verdicts here has not come to any",
        summary={**count_verdicts(()), "not judged": 0},
        baseline=None,
        contender=None,
        not_compared=[],
        verdicts=[],
    )


def write_verdicts(
    path: Path | str,
    verdicts: Sequence[Verdict],
    failing: Sequence[Verdict],
    baseline: StoredRun,
    contender: StoredRun,
    *,
    failed_beside: str = "",
) -> None:
    """Write the machine-readable verdict file (BenchError, as `write_output`).

    `failed_beside` is what the run itself failed of, whatever its verdicts are: it has not passed.

    Figures are raw, in the unit that stands beside them; a ratio from zero is null. `fails` says
    whether this verdict failed the gate. `not_compared` names the baseline's cases that the run was
    not asked for. `configured_otherwise` what they have configured otherwise and no verdict says.
    `unproven` of the baseline says that it has passed no gate, where it has not.
    What could not be judged is `unchanged` among the verdicts, and counted apart in
    the summary.
    """
    failed = {(verdict.record, verdict.metric) for verdict in failing}
    _write_document(
        path,
        passed=not failing and not failed_beside,
        failed_beside=failed_beside,
        summary={
            **count_verdicts(verdict for verdict in verdicts if not verdict.not_judged),
            "not judged": sum(verdict.not_judged for verdict in verdicts),
        },
        baseline={**_origin(baseline), "unproven": unproven(baseline)},
        contender=_origin(contender),
        not_compared=left_out(baseline, contender),
        configured_otherwise=unseen_changes(baseline, contender, verdicts),
        verdicts=[
            {**as_json(verdict), "fails": (verdict.record, verdict.metric) in failed}
            for verdict in verdicts
        ],
    )


def _write_document(path: Path | str, **document: Any) -> None:
    whole = {"schema": VERDICT_SCHEMA, **document}
    write_output(path, json.dumps(whole, indent=1, allow_nan=False) + "\n")


def as_json(verdict: Verdict) -> dict[str, Any]:
    """One verdict as a JSON object."""
    metric = METRICS.get(verdict.metric)
    ratio = verdict.ratio
    return {
        "record": verdict.record,
        "metric": verdict.metric,
        "unit": metric.unit if metric else "text",
        "verdict": verdict.verdict,
        "baseline": verdict.baseline,
        "contender": verdict.contender,
        "ratio": ratio if ratio is not None and math.isfinite(ratio) else None,
        "interval": verdict.interval,
        "threshold": verdict.threshold,
        "explanation": verdict.explanation,
    }


def _origin(run: StoredRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path) if run.path else None,
        "machine": run.machine.id,
        "commit": run.commit,
        "dirty": run.dirty,
        "versions": dict(run.versions),
    }
