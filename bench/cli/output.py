"""What a command says: on standard output in whatever characters that can show, or in a file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.files import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.reports.layout import Report


def written(report: Report, format: str, to_file: bool = False) -> str:
    """The report as Markdown, LaTeX or text; in colour for a terminal that shows it."""
    from bench.reports.layout import latex, markdown, terminal

    if format == "markdown":
        return markdown(report)
    if format == "latex":
        return latex(report)
    plain = to_file or not in_colour()
    return terminal(report, shutil.get_terminal_size().columns, colour=not plain)


def in_colour() -> bool:
    """Whether standard output is a terminal on which colour is wanted."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def json_lines(objects: Iterable[Mapping[str, object]]) -> str:
    """One object a line."""
    return "".join(json.dumps(item, allow_nan=False) + "\n" for item in objects)


def put(text: str, output: Path | None = None) -> None:
    """To the file, as `write_output`, or to standard output."""
    if output is not None:
        write_output(output, text)
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise BenchError("the reader of the output went away") from None


def save_figure(figure: Figure, path: Path) -> None:
    """A plot into its file, whole or not at all; BenchError where that cannot be."""
    import io

    from bench.reports.plots import plot_format

    form, buffer = plot_format(path), io.BytesIO()
    figure.savefig(buffer, format=form)
    write_output(path, buffer.getvalue())


def say(text: str) -> None:
    """To standard error: what goes on, so that standard output stays data."""
    print(text, file=sys.stderr, flush=True)


def stored_runs() -> Path:
    """Where stored runs are looked up by number or name: here, else in the project."""
    from bench.files import RESULTS

    here = Path("results")
    return here if here.is_dir() else RESULTS
