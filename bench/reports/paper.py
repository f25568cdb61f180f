"""The comparison table for a paper: booktabs, numbers as siunitx reads them, the best in bold."""

from __future__ import annotations

import string
from collections.abc import Sequence

from bench.baselines import StoredRun
from bench.baselines.accepted import unproven
from bench.errors import BenchError
from bench.reports.layout import latex_text
from bench.reports.rows import Column, Row, columns_of, comparison_rows, model_title, remark
from bench.reports.tables import beside_rows, describe
from bench.units import one_line

PREAMBLE = r"""% Needs \usepackage{booktabs,siunitx} and, for bold numbers in such columns:
% \sisetup{detect-weight=true,group-digits=integer,group-minimum-digits=4,group-separator={,}}"""
_LEFT_OUT = ("model", "remark")  # the table's title, and its notes


def paper(runs: Sequence[StoredRun], baseline: StoredRun | None = None) -> str:
    """LaTeX: one `table` a model, of the measured cases, or of all where none was measured.

    A number is bold where no other case of its precision is better: times of unstable cases take
    no part. Cases that were unstable or did not end well carry a letter, and a note below tells
    why; the last table's notes have what no row says. Raises BenchError for a run without a case.
    """
    rows = comparison_rows(runs, baseline)
    if not rows:
        raise BenchError(f"{', '.join(run.label for run in runs)}: a run without a case: no table")
    shown = [row for row in rows if row.precision is not None] or rows
    told = unproven(baseline) if baseline else ""
    origin = " ".join(filter(None, (*map(describe, runs), told)))
    titles = dict.fromkeys(map(model_title, shown))
    last = [*titles][-1]
    tables = [
        _table(
            title,
            [row for row in shown if model_title(row) == title],
            len(runs) > 1,
            origin,
            beside_rows(runs, baseline) if title == last else (),
        )
        for title in titles
    ]
    return "\n\n".join([PREAMBLE, *tables]) + "\n"


def _table(
    title: str, rows: Sequence[Row], several: bool, origin: str, beside: Sequence[str]
) -> str:
    columns = [c for c in columns_of(rows, several) if c.header not in _LEFT_OUT]
    reasons = list(dict.fromkeys(filter(None, map(remark, rows))))
    letters = dict(zip(reasons, _letters(len(reasons)), strict=True))
    grid = [[_cell(column, row, rows, letters, i == 0) for i, column in enumerate(columns)]
            for row in rows]  # fmt: skip
    body = "\n".join(f"{' & '.join(line)} \\\\" for line in grid)
    notes = [rf"\textsuperscript{{{mark}}}\,{latex_text(why)}" for why, mark in letters.items()]
    if any(row.step_median_seconds is not None for row in rows):
        notes.insert(0, "Step time: forward, backward and optimizer; median, IQR: interquartile "
                     "range of the rounds. Bold: best of its precision.")  # fmt: skip
    notes += map(latex_text, beside)
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize",
            rf"\caption{{{latex_text(one_line(title))}. {latex_text(origin)}}}",
            rf"\begin{{tabular}}{{{''.join(_specification(c, rows) for c in columns)}}}",
            r"\toprule",
            " & ".join(_header(column) for column in columns) + r" \\",
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip {note}" for note in notes),
            r"\end{table}",
        ]
    )


def _letters(many: int) -> list[str]:
    """a, b, ..., z, aa, ab, ..."""
    alphabet = string.ascii_lowercase
    return [
        alphabet[i] if i < 26 else alphabet[i // 26 - 1] + alphabet[i % 26] for i in range(many)
    ]


def _plain(text: str) -> str:
    return text.replace(",", "")


def _specification(column: Column, rows: Sequence[Row]) -> str:
    """`l`, or an `S` column wide enough for every number in it."""
    if not column.number:
        return "l"
    numbers = [_plain(cell) for row in rows if (cell := column.cell(row))]
    whole = max(len(n.partition(".")[0].lstrip("+-")) for n in numbers)
    decimals = max(len(n.partition(".")[2]) for n in numbers)
    sign = "+" if any(n[0] in "+-" for n in numbers) else ""
    return f"S[table-format={sign}{whole}.{decimals}]"


def _header(column: Column) -> str:
    name, bracket, unit = column.header.partition(" [")
    unit = rf" [{latex_text(unit.rstrip(']'))}]" if bracket else ""
    return f"{{{latex_text(name)}{unit}}}" if column.number else latex_text(name)


def _cell(
    column: Column, row: Row, rows: Sequence[Row], letters: dict[str, str], first: bool
) -> str:
    text = column.cell(row)
    if not column.number:
        mark = letters.get(remark(row)) if first else None
        return latex_text(text).replace("|", r"\textbar{}") + (
            rf"\textsuperscript{{{mark}}}" if mark else ""
        )
    if not text:
        return "{---}"
    return rf"\bfseries {_plain(text)}" if _best(column, row, rows) else _plain(text)


def _best(column: Column, row: Row, rows: Sequence[Row]) -> bool:
    """Whether no case of the same precision is better, and some is worse."""
    timed = column.better and ("time" in column.header or "tokens" in column.header)
    rivals = [r for r in rows if r.precision == row.precision and not (timed and r.unstable)]
    if not column.better or row not in rivals:
        return False
    figures = [column.better * float(_plain(cell)) for r in rivals if (cell := column.cell(r))]
    mine = column.better * float(_plain(column.cell(row)))
    return mine == max(figures) > min(figures)
