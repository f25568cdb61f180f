"""What a command says: on standard output in whatever characters that can show, or in a file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bench.errors import BenchError
from bench.files import finite, write_output
from bench.units import harmless, harmless_line, reading_text, text_of

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


def format_for(asked: str | None, output: Path | None) -> str:
    """The format asked for; without one, for a terminal on a terminal, else Markdown."""
    return asked or ("terminal" if output is None and answers().isatty() else "markdown")


def in_colour() -> bool:
    """Whether standard output is a terminal on which colour is wanted."""
    return answers().isatty() and "NO_COLOR" not in os.environ


def json_lines(objects: Iterable[Mapping[str, object]]) -> str:
    """One object a line, with a word in the place of each number that JSON does not have."""
    return "".join(json.dumps(finite(item), allow_nan=False) + "\n" for item in objects)


def put(text: str, output: Path | None = None) -> None:
    """To the file, as `write_output`, or to standard output."""
    if output is not None:
        write_output(output, text)
        return
    answers().write(text)
    answers().flush()


def fitted(text: str) -> str:
    """Text for a terminal as wide as standard output's: a longer line goes on, further in, on the
    next. Names and paths stay whole, and so do commands to copy. Elsewhere it stays as it is."""
    width = shutil.get_terminal_size().columns
    if not answers().isatty() or width < _NARROW:
        return text
    return "\n".join(part for line in text.split("\n") for part in _folded(line, width))


_NARROW = 40
_COPIED = ("bench ", "pytest ", "pip ", "git ", "$ ")


def _folded(line: str, width: int) -> Iterator[str]:
    body = line.lstrip(" ")
    if _shown_width(line) <= width or body.startswith(_COPIED):
        yield line
        return
    indent = " " * (len(line) - len(body) + 2)
    now, gap = line[: len(line) - len(body)], ""
    for word in re.split(r"( +)", body):
        if not word.strip(" "):
            gap = word
            continue
        if now.strip(" ") and _shown_width(now + gap + word) > width:
            yield now
            now, gap = indent, ""
        now += gap + word
    yield now


def _shown_width(text: str) -> int:
    return len(_COLOURS.sub("", text))


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """The table as CSV. Text that a spreadsheet would take for a formula is quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(map(_no_formula, row) for row in rows)
    return text.getvalue()


def _no_formula(cell: object) -> object:
    """The cell, with a quote before text that a spreadsheet would compute."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLOURS = re.compile(r"\x1b\[(?:0|31|32|33|90)m|\r\x1b\[K")
"""What we write to a terminal ourselves besides text: four colours, and progress on one line."""
_NOTHING = re.compile(r"(?!)")


class Output:
    """A standard stream that shows control characters instead of sending them, writes what its
    encoding cannot hold as `?`, and says so where it is closed (`>&-`): BenchError.

    Where the reader of a pipe goes away (`bench ... | head -1`) the rest is dropped in silence, and
    the command goes on to its end: its verdict alone decides the exit status.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        """Write the text; its length."""
        if self._stream is None:
            raise BenchError(f"{self._name} is closed: nothing was written")
        marks = _COLOURS if self.isatty() else _NOTHING  # into a pipe or a file we write none
        ours = marks.findall(text)
        parts = [harmless(part) for part in marks.split(text)]
        safe = "".join(part + mark for part, mark in zip(parts, [*ours, ""], strict=True))
        encoding = self._stream.encoding or "utf-8"
        with self._until_unread():
            self._stream.write(safe.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush it, if it is open."""
        if self._stream is not None:
            with self._until_unread():
                self._stream.flush()

    def discard(self) -> None:
        """Drop what is still in the buffer, which would fail again when the interpreter ends, and
        all that follows."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    @contextlib.contextmanager
    def _until_unread(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.discard()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_ours: list[Output] = []


def answers() -> Any:
    """Where a command's answer goes: standard output, whatever that is called meanwhile."""
    return _ours[-1] if _ours else sys.stdout


@contextlib.contextmanager
def harmless_output(*, apart: bool = False) -> Iterator[None]:
    """Standard output and error as `Output`, until the end. `apart`: standard output is for answers
    alone, and what a model's own code prints goes to standard error."""
    given = sys.stdout, sys.stderr
    ours = Output(sys.stdout, "standard output"), Output(sys.stderr, "standard error")
    sys.stdout, sys.stderr = ours[1 if apart else 0], ours[1]
    _ours.append(ours[0])
    try:
        yield
    finally:
        _ours.pop()
        for stream in ours:
            with contextlib.suppress(
                OSError, ValueError
            ):  # said already, or by the interpreter as it ends
                stream.flush()
        sys.stdout, sys.stderr = given


@contextlib.contextmanager
def hidden_warnings() -> Iterator[None]:
    """What libraries warn of meanwhile is not shown: it speaks of calls that are ours, and what of
    it concerns a configuration our own answers say. `python -W always` shows it all the same."""
    from bench.models.quantization import quiet_bitsandbytes

    quiet_bitsandbytes()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def check_plot(path: Path | None) -> None:
    """BenchError where a plot cannot be in a file of this name, before anything is worked out."""
    if path is not None:
        from bench.reports.plots import plot_format

        plot_format(path)


def save_figure(figure: Figure, path: Path) -> None:
    """A plot into its file, whole or not at all; BenchError where that cannot be."""
    import io

    import matplotlib as mpl

    from bench.reports.plots import plot_format

    form, buffer = plot_format(path), io.BytesIO()
    # The same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "bench"}):
        figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    write_output(path, buffer.getvalue())


def progress(text: str) -> None:
    """Shown in place of the one before, on a terminal's standard error alone; "" clears it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{harmless_line(text)}", end="", file=sys.stderr, flush=True)


def reading_weights(done: int, of: int) -> None:
    """Progress of `digest_of`, gone at its end."""
    progress(reading_text(done, of))


def say(*lines: str) -> None:
    """To standard error: what goes on, so that standard output stays data. Where that is closed, or
    takes nothing, the answer is what counts."""
    try:
        print(text_of(lines), file=sys.stderr, flush=True)
    except BenchError:  # closed
        return
    except OSError:
        if isinstance(sys.stderr, Output):
            sys.stderr.discard()


def stored_runs(*selectors: str) -> Path:
    """Where stored runs are looked up by number or name: here, else in the project, which is said
    unless every one of the `selectors` is a path."""
    from bench.baselines.storage import is_path
    from bench.files import RESULTS

    here = Path("results")
    if here.is_dir():
        return here
    if not selectors or not all(map(is_path, selectors)):
        say("no folder results/ here: the project's own stored runs are meant")
    return RESULTS
