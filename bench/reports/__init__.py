"""Tables of runs and of verdicts, as Markdown, CSV, LaTeX and text."""

from bench.reports.layout import Report, Table, latex, markdown, terminal
from bench.reports.rows import HEADERS, comparison_rows, comparison_table
from bench.reports.tables import comparison_report
from bench.reports.verdicts import verdict_report, verdict_rows, verdict_table

__all__ = [
    "HEADERS",
    "Report",
    "Table",
    "comparison_report",
    "comparison_rows",
    "comparison_table",
    "latex",
    "markdown",
    "terminal",
    "verdict_report",
    "verdict_rows",
    "verdict_table",
]
