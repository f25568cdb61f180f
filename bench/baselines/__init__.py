"""Stored runs: load, validate, save, compare, gate."""

from bench.baselines.gate import (
    all_thresholds,
    as_json,
    begin_verdict_file,
    check_apart,
    count_verdicts,
    gate,
    require_common,
    require_measured,
    unused,
    write_verdicts,
)
from bench.baselines.metrics import METRICS, Thresholds
from bench.baselines.runs import (
    KEY,
    Record,
    Selection,
    StoredRun,
    digest,
    load_run,
    parse_run,
    seal,
)
from bench.baselines.storage import find_runs, load_stored, write_run
from bench.baselines.verdicts import FAILING, VERDICTS, Verdict, compare, left_out
from bench.training.machine import Accelerator, Machine

__all__ = [
    "FAILING",
    "KEY",
    "METRICS",
    "VERDICTS",
    "Accelerator",
    "Machine",
    "Record",
    "Selection",
    "StoredRun",
    "Thresholds",
    "Verdict",
    "all_thresholds",
    "as_json",
    "begin_verdict_file",
    "check_apart",
    "compare",
    "count_verdicts",
    "digest",
    "find_runs",
    "gate",
    "left_out",
    "load_run",
    "load_stored",
    "parse_run",
    "require_common",
    "require_measured",
    "seal",
    "unused",
    "write_run",
    "write_verdicts",
]
