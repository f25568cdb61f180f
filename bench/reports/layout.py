"""A report of lines and tables, written as Markdown, LaTeX, or text that fits a terminal."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.units import one_line

EMPTY = "—"
BAD, GOOD, NOTED, FADED = "bad", "good", "noted", "faded"
ANSI = {BAD: "\x1b[31m", GOOD: "\x1b[32m", NOTED: "\x1b[33m", FADED: "\x1b[90m"}
ANSI_END = "\x1b[0m"
NARROWEST = 40
"""Columns below which nothing can be read: a terminal that says it has fewer is not believed."""

TEX = {
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
TEX_SYMBOLS = {
    "±": r"$\pm$", "×": r"$\times$", "—": "---", "†": r"\dag{}", "µ": r"\textmu{}",
    "Δ": r"$\Delta$",
}  # fmt: skip
MARKDOWN = re.compile(r"([\\|*_`<>\[\]])")


@dataclass(frozen=True)
class Table:
    """Cells as text. leading: how many columns name a row's group, for narrow terminals.

    right: the columns whose cells align right. styles: BAD, GOOD, NOTED, FADED or "", per row.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    leading: int = 1
    right: frozenset[str] = frozenset()
    styles: tuple[str, ...] = ()

    def without_empty_columns(self) -> Table:
        """The same, less the columns that have a figure in no row."""
        kept = [i for i in range(len(self.header)) if any(row[i] != EMPTY for row in self.rows)]
        return Table(
            self.title,
            tuple(self.header[i] for i in kept),
            tuple(tuple(row[i] for i in kept) for row in self.rows),
            sum(i < self.leading for i in kept),
            self.right,
            self.styles,
        )


@dataclass(frozen=True)
class Report:
    """caption: where the figures come from. notes: footnotes, and what to do next."""

    title: str
    caption: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


def markdown(report: Report) -> str:
    """GitHub's Markdown; every character of a cell stands for itself."""
    parts = [f"## {markdown_cell(report.title)}", *map(markdown_cell, report.caption)]
    for table in report.tables:
        title = [f"### {markdown_cell(table.title)}"] if table.title else []
        parts += [*title, markdown_table(table)]
    return "\n\n".join([*parts, *map(markdown_cell, report.notes)]) + "\n"


def markdown_table(table: Table) -> str:
    """The grid alone, as GitHub's Markdown."""
    cells = [[markdown_cell(cell) for cell in row] for row in table.rows]
    return _grid(table, "pipe", [markdown_cell(name) for name in table.header], cells)


def latex(report: Report) -> str:
    """One `table` environment per table; the document needs the package booktabs."""
    parts = [f"% {one_line(report.title)} (needs \\usepackage{{booktabs}})"]
    last = len(report.tables) - 1
    for i, table in enumerate(report.tables):
        grid = _grid(table, "latex_booktabs", table.header, table.rows)
        for character, macro in TEX_SYMBOLS.items():
            grid = grid.replace(character, macro)
        below = report.notes if i == last else ()
        above = (table.title, *report.caption) if i == 0 else (table.title,)
        caption = " ".join(latex_text(_sentence(text)) for text in above if text)
        lines = [rf"\caption{{{caption}}}", grid, *(rf"\par {latex_text(t)}" for t in below)]
        parts.append(
            "\n".join([r"\begin{table}[htbp]", r"\centering\footnotesize", *lines, r"\end{table}"])
        )
    return "\n\n".join(parts) + "\n"


def terminal(report: Report, width: int = 80, colour: bool = False) -> str:
    """Plain text in `width` columns (40 where there are fewer).

    A table that is too wide is split into groups by its leading columns, and if its groups are
    too wide still, into one paragraph a row. Only a single word longer than a line sticks out.
    """
    width = max(width, NARROWEST)
    parts = [report.title, *(_wrap(text, width) for text in report.caption)]
    for table in report.tables:
        fits = max(map(len, _flat(table, False).splitlines())) <= width
        text = _flat(table, colour) if fits else _grouped(table, width, colour)
        parts.append(f"{table.title}\n{text}" if table.title else text)
    return "\n\n".join([*parts, *(_wrap(text, width) for text in report.notes)]) + "\n"


def _flat(table: Table, colour: bool) -> str:
    head, lines = _columns(table.header, table.rows, table.right)
    return "\n".join([*head, *_painted(lines, table.styles, colour)])


def _grouped(table: Table, width: int, colour: bool) -> str:
    split = table.leading
    header, rows = table.header[split:], [row[split:] for row in table.rows]
    head, lines = _columns(header, rows, table.right)
    if any(len(line) + 2 > width for line in (*head, *lines)):
        head, lines = [], [_paragraph(table, row, width - 2) for row in rows]
    lines = _painted(lines, table.styles, colour)
    parts = [f"  {line}" for line in head]
    numbered = zip(table.rows, lines, strict=True)
    for lead, members in itertools.groupby(numbered, key=lambda pair: pair[0][:split]):
        parts.append(_wrap(_heading(table, lead), width))
        parts += [textwrap.indent(line, "  ") for _, line in members]
    return "\n".join(parts)


def _columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]
) -> tuple[list[str], list[str]]:
    """Header lines and row lines, two spaces between columns; long headers take two lines."""
    widths, tops = [], []
    for i, name in enumerate(header):
        cells = max((len(row[i]) for row in rows), default=0)
        above, _, below = name.rpartition(" ") if len(name) > cells else ("", "", name)
        widths.append(max(cells, len(above), len(below)))
        tops.append((above, below))

    def line(cells: Sequence[str]) -> str:
        placed = zip(header, widths, cells, strict=True)
        return "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, width, cell in placed
        ).rstrip()

    above, below = (line([top[k] for top in tops]) for k in (0, 1))
    rule = "  ".join("-" * width for width in widths)
    return [*([above] if above else []), below, rule], [line(row) for row in rows]


def _heading(table: Table, cells: Sequence[str]) -> str:
    """The leading cells in a line: numbers with their column's name, words without."""
    named = zip(table.header, cells, strict=False)
    return ", ".join(f"{n} {c}" if n in table.right else c for n, c in named if c != EMPTY)


def _paragraph(table: Table, cells: Sequence[str], width: int) -> str:
    """A row after its leading cells: a word in front without its column's name."""
    named = list(zip(table.header[table.leading :], cells, strict=True))
    front = "" if named[0][0] in table.right else f"{named.pop(0)[1]} - "
    return _wrap(front + "; ".join(f"{n}: {c}" for n, c in named if c != EMPTY), width)


def _painted(lines: Sequence[str], styles: Sequence[str], colour: bool) -> list[str]:
    if not colour or not styles:
        return list(lines)
    paint = [ANSI.get(style, "") for style in styles]
    return [f"{p}{line}{ANSI_END}" if p else line for p, line in zip(paint, lines, strict=True)]


def _grid(table: Table, form: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["right" if name in table.right else "left" for name in table.header]
    return grid(header, rows, form, align if rows else None)


def grid(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    form: str = "github",
    align: Sequence[str] | None = None,
) -> str:
    """Header and rows in a format of tabulate's, every cell as it is."""
    from tabulate import tabulate

    return str(tabulate(rows, header, form, disable_numparse=True, colalign=align))


def _wrap(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def markdown_cell(text: str) -> str:
    """Any text on one line, every character of it standing for itself."""
    return MARKDOWN.sub(r"\\\1", one_line(text))


def latex_text(text: str) -> str:
    """Any text on one line, every character of it standing for itself in LaTeX."""
    symbols = {**TEX, **TEX_SYMBOLS}
    return "".join(symbols.get(character, character) for character in one_line(text))
