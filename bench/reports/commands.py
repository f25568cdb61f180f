"""`bench report` and `bench compare`: stored runs in, text or a file out, an exit code back."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.baselines import (
    Thresholds,
    all_thresholds,
    as_json,
    compare,
    find_runs,
    gate,
    load_run,
    load_stored,
    require_common,
    write_atomically,
    write_verdicts,
)
from bench.errors import BenchError, UnknownName
from bench.reports.layout import Report, latex, markdown, terminal
from bench.reports.rows import comparison_rows, comparison_table
from bench.reports.tables import comparison_report
from bench.reports.verdicts import verdict_report, verdict_table

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("terminal", "markdown", "csv", "latex", "json")
RESULTS = Path("results")


def report_command(
    paths: Sequence[str | Path],
    *,
    format: str = "terminal",
    baseline: str | Path | None = None,
    output: str | Path | None = None,
    storage: str | Path = RESULTS,
) -> int:
    """Write the comparison table of stored runs; 0. BenchError if a run cannot be read.

    paths: files or selectors of `find_runs`; none: the latest run. baseline: one of these.
    output: a file, written whole or not at all; otherwise standard output.
    """
    _check_format(format)
    found = [path for selector in paths for path in find_runs(storage, str(selector))]
    runs = [load_run(path) for path in dict.fromkeys(found)] or [load_stored(storage)]
    reference = load_stored(storage, str(baseline)) if baseline else None
    if format == "csv":
        text = _csv(comparison_table(runs, reference))
    elif format == "json":
        text = _json_lines(asdict(row) for row in comparison_rows(runs, reference))
    else:
        text = _written(comparison_report(runs, reference), format, output is not None)
    _put(text, output)
    return 0


def compare_command(
    base: str | Path,
    new: str | Path,
    *,
    thresholds: Thresholds | Iterable[str] = (),
    allow: Iterable[str] = (),
    verdict_file: str | Path | None = None,
    format: str = "terminal",
    storage: str | Path = RESULTS,
) -> int:
    """Compare two stored runs and print the verdicts; 1 if any fails, else 0.

    thresholds: parsed, or strings such as `step_seconds=10%`. allow: as `gate` takes it.
    verdict_file: written whole or not at all, before anything is printed. BenchError for a run
    that cannot be read and for a wrong threshold, allowance or format.
    """
    _check_format(format)
    if not isinstance(thresholds, Thresholds):
        thresholds = all_thresholds(thresholds)
    baseline, contender = (load_stored(storage, str(selector)) for selector in (base, new))
    verdicts = compare(baseline, contender, thresholds)
    require_common(baseline, contender, verdicts)
    failing = gate(verdicts, allow)
    if verdict_file:
        write_verdicts(verdict_file, verdicts, failing, baseline, contender)
    if format == "csv":
        _put(_csv(verdict_table(verdicts, failing)))
    elif format == "json":
        _put(_json_lines({**as_json(item), "fails": item in failing} for item in verdicts))
    else:
        _put(_written(verdict_report(verdicts, failing, baseline, contender), format))
    return 1 if failing else 0


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise UnknownName("format", format, FORMATS)


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _json_lines(objects: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(item, allow_nan=False) + "\n" for item in objects)


def write_report(report: Report, format: str) -> None:
    """Put a report on standard output as Markdown, LaTeX or text."""
    _check_format(format)
    _put(_written(report, format))


def _written(report: Report, format: str, to_file: bool = False) -> str:
    if format == "markdown":
        return markdown(report)
    if format == "latex":
        return latex(report)
    plain = to_file or not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return terminal(report, shutil.get_terminal_size().columns, colour=not plain)


def _put(text: str, output: str | Path | None = None) -> None:
    """To the file, or to standard output in whatever characters that can show."""
    if output is not None:
        write_atomically(output, text)
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise BenchError("the reader of the output went away") from None
