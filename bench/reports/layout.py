"""A report of lines and tables, written as Markdown, LaTeX, or text that fits a terminal."""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from bench.units import harmless_line, one_line

if TYPE_CHECKING:
    from rich.table import Table as Grid

EMPTY = "—"
BAD, GOOD, NOTED, FADED = "bad", "good", "noted", "faded"
COLOURS = {BAD: "red", GOOD: "green", NOTED: "yellow", FADED: "bright_black"}
NARROWEST = 40
"""Columns below which nothing can be read: a terminal that says it has fewer is not believed."""
WRAPPED = 24
"""Columns below which no cell is wrapped: its lines would hold two or three words."""
ANY_WIDTH = 10**6
CUT = "\ue000"
"""What marks where a drawn table is cut; `harmless_line` leaves it in no cell."""

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
        return replace(
            self,
            header=tuple(self.header[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in self.rows),
            leading=sum(i < self.leading for i in kept),
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
    if not report.tables:  # nothing to draw is no reason to say nothing
        parts += [latex_text(_sentence(text)) for text in (*report.caption, *report.notes)]
    last = len(report.tables) - 1
    for i, table in enumerate(report.tables):
        rows = [[harmless_line(cell) for cell in row] for row in table.rows]
        grid = _grid(table, "latex_booktabs", table.header, rows)
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

    In a table that is too wide the longest text wraps in its column; where that is not enough the
    table is split into groups by its leading columns, and if these are too wide still, into one
    paragraph a row. Only a single word longer than a line sticks out.
    """
    width = max(width, NARROWEST)
    parts = [harmless_line(report.title), *(_wrap(text, width) for text in report.caption)]
    for table in report.tables:
        text = "\n".join(_drawn(table, 0, width, colour)) or _grouped(table, width, colour)
        parts.append(f"{table.title}\n{text}" if table.title else text)
    return "\n\n".join([*parts, *(_wrap(text, width) for text in report.notes)]) + "\n"


def _grouped(table: Table, width: int, colour: bool) -> str:
    split, inside = table.leading, width - 2
    head, *bodies = _drawn(table, split, inside, colour) or _paragraphs(table, inside, colour)
    parts = [textwrap.indent(head, "  ")] if head else []
    for group, body in zip(_groups(table, split), bodies, strict=True):
        lead = _heading(table, table.rows[group[0]][:split])
        parts += [_wrap(lead, width), textwrap.indent(body, "  ")]
    return "\n".join(parts)


def _groups(table: Table, split: int) -> list[list[int]]:
    """The rows, by number, of which one follows another with the same `split` cells in front."""
    numbers = range(len(table.rows))
    found = itertools.groupby(numbers, key=lambda number: table.rows[number][:split])
    return [list(members) for _, members in found]


def _drawn(table: Table, split: int, width: int, colour: bool) -> list[str]:
    """The header, then the rows of each group, without the `split` columns that name the group;
    nothing where that is wider than `width`."""
    from rich.cells import cell_len
    from rich.rule import Rule
    from rich.table import Table as Grid
    from rich.text import Text

    names = table.header[split:]
    rows = [[harmless_line(cell) for cell in row[split:]] for row in table.rows]
    columns = [[row[i] for row in rows] for i in range(len(names))]
    cells = [max(map(cell_len, column), default=0) for column in columns]
    heads = [
        n.rsplit(" ", 1) if cell_len(n) > c else [n] for n, c in zip(names, cells, strict=True)
    ]
    widths = [max(c, *map(cell_len, head)) for c, head in zip(cells, heads, strict=True)]
    texts = [i for i, name in enumerate(names) if name not in table.right]
    longest = max(texts, key=lambda i: cells[i], default=0)
    room = width - sum(widths) + widths[longest] - 2 * (len(widths) - 1)
    words = (word for cell in columns[longest] for word in cell.split())
    if room < min(widths[longest], max(WRAPPED, *map(cell_len, words))):
        return []
    widths[longest] = min(widths[longest], room)
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for name, head, wide in zip(names, heads, widths, strict=True):
        grid.add_column(Text("\n".join(head)), width=wide, justify=_side(name in table.right))
    grid.add_row(*(Rule(characters=CUT, style="") for _ in names))
    for group in _groups(table, split):
        for number in group:
            style = table.styles[number] if table.styles else None
            grid.add_row(*map(Text, rows[number]), style=style)
        grid.add_row(CUT)
    parts = re.split(f"(.*{CUT}.*\n)", _printed(grid, width, colour))
    return [p.rstrip("\n") for p in (parts[0] + parts[1].replace(CUT, "-"), *parts[2:-1:2])]


def aligned(rows: Iterable[Sequence[str]], sides: str) -> list[str]:
    """The lines of a table without a header, of any width; `sides` has l or r for each column."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 2, 0, 0))
    for side in sides:
        grid.add_column(justify=_side(side == "r"), no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(harmless_line(cell)) for cell in row))
    return _printed(grid).splitlines()


def _side(right: bool) -> Literal["left", "right"]:
    return "right" if right else "left"


def _printed(grid: Grid, width: int = ANY_WIDTH, colour: bool = False) -> str:
    """The table in text, its lines without spaces at their ends."""
    from rich.console import Console
    from rich.theme import Theme

    file = io.StringIO()
    console = Console(
        file=file, width=width, height=1, force_jupyter=False, legacy_windows=False,
        color_system="standard" if colour else None, no_color=False, theme=Theme(COLOURS),
    )  # fmt: skip
    console.print(grid)
    return re.sub(r" +(?=(?:\x1b\[0m)?$)", "", file.getvalue(), flags=re.MULTILINE)


def _paragraphs(table: Table, width: int, colour: bool) -> list[str]:
    """No header, then each group's rows, each as a wrapped text: rich has none whose later lines
    stand further in."""
    from rich.style import Style

    def painted(number: int) -> str:
        text = _paragraph(table, table.rows[number][table.leading :], width)
        style = table.styles[number] if colour and table.styles else ""
        return Style.parse(COLOURS.get(style, "")).render(text)

    return ["", *("\n".join(map(painted, group)) for group in _groups(table, table.leading))]


def _heading(table: Table, cells: Sequence[str]) -> str:
    """The leading cells in a line: numbers with their column's name, words without."""
    named = zip(table.header, cells, strict=False)
    return ", ".join(f"{n} {c}" if n in table.right else c for n, c in named if c != EMPTY)


def _paragraph(table: Table, cells: Sequence[str], width: int) -> str:
    """A row after its leading cells: a word in front without its column's name."""
    named = list(zip(table.header[table.leading :], cells, strict=True))
    front = "" if named[0][0] in table.right else f"{named.pop(0)[1]} - "
    return _wrap(front + "; ".join(f"{n}: {c}" for n, c in named if c != EMPTY), width)


def _grid(table: Table, form: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = [_side(name in table.right) for name in table.header]
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
