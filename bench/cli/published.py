"""`bench published`: predicted memory against what others measured."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import Add, add_plot
from bench.cli.output import check_plot, format_for, put, save_figure, say, written
from bench.errors import BenchError
from bench.files import read_text, write_output

if TYPE_CHECKING:
    from bench.predict.evidence import Kept, Measured

HELP = "predicted memory against what others measured"


def add_options(add: Add) -> None:
    """Which of the data to bring up to date; without one, the table of published figures."""
    # fmt: off
    add("--store", action="store_true",
        help="predict every measured step of fixtures/measured and every published figure anew, "
        "and keep the predictions")
    add("--page", type=Path, metavar="FILE",
        help="bring the tables of docs/prediction.md up to date with what is kept")
    add("--evidence", type=Path, metavar="FILE",
        help="bring the table of all evidence, where README.md has its marks, up to date")
    add_plot(add, "draw the measured steps' errors, as in docs/images/evidence.svg")
    add("--measure", type=int, metavar="N",
        help="run N of the measured steps of fixtures/measured on this machine, each beside its "
        "prediction, and append them to --record FILE")
    add("--record", type=Path, metavar="FILE", help="of --measure")
    add("--received", type=Path, metavar="FILE",
        help="check measured steps that somebody sent, and say how far the predictions were off")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Predict every published row and print the table as Markdown, or do what was asked."""
    alone = [n for n in ("received", "measure") if getattr(options, n) is not None]
    others = [n for n in ("store", "page", "evidence", "plot") if getattr(options, n)]
    if alone and len(alone + others) > 1:
        raise BenchError(f"--{alone[0]} stands alone: give it without --{(alone + others)[1]}")
    if options.record and options.measure is None:
        raise BenchError("--record keeps what --measure N measured: give both")
    check_plot(options.plot)
    if options.received:
        return _received(options.received)
    if options.measure is not None:
        return _measure(options.measure, options.record)
    if options.store:
        _store()
    if options.page:
        _refresh_measured(options.page)
    if options.evidence:
        from bench.reports.evidence import evidence_section

        _refresh("--evidence", options.evidence, evidence_section())
    if options.plot:
        from bench.predict.evidence import load_kept, load_measured
        from bench.reports.plots import evidence_figure

        save_figure(evidence_figure(load_measured(), load_kept()), options.plot)
    if options.store or options.page or options.evidence or options.plot:
        return 0
    from bench.reports.published import load_published, published_report

    rows = load_published()
    put(written(published_report(rows, list(_predicted().values())), "markdown"))
    return 0


def _predicted() -> dict[str, int]:
    """What is predicted of every published figure, anew."""
    from bench.reports.published import load_published, predict_published

    rows = load_published()
    found = {}
    for number, row in enumerate(rows, start=1):
        say(f"[{number}/{len(rows)}] {row.id}")
        found[row.id] = predict_published(row)
    return found


def _received(file: Path) -> int:
    from bench.predict.contributed import load_steps
    from bench.reports.evidence import received_report

    put(written(received_report(load_steps(file)), format_for(None, None)))
    return 0


def _measure(count: int, record: Path | None) -> int:
    """Measure rows from all over the table, each by the command line that says it; 1 if one could
    not be."""
    from bench.cli import memory
    from bench.predict.evidence import load_measured

    rows = load_measured()
    if not 1 <= count <= len(rows) or record is None:
        raise BenchError(f"--measure takes a number from 1 to {len(rows)}, and --record FILE")
    failed = 0
    for row in rows[:: len(rows) // count][:count]:
        parser = argparse.ArgumentParser()
        memory.add_options(parser.add_argument)
        at = row.options.index("--gpu")
        step = (*row.options[:at], *row.options[at + 2 :], "--measure", "--record", str(record))
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, row.model.replace("/", "--"))  # what the record calls it
            model.mkdir()
            (model / "config.json").write_text(json.dumps(row.config), encoding="utf-8")
            failed |= memory.run(parser.parse_args([str(model), *step]))
    return failed


def _store() -> None:
    """Predict every measured step by the command line that says it; a command runs once."""
    from bench.predict.evidence import KEPT_FILE, load_measured, write_kept
    from bench.reports import published
    from bench.training.machine import versions

    kept: dict[str, Kept] = {}
    known: dict[tuple[str, ...], Kept] = {}
    rows = load_measured()
    for number, row in enumerate(rows, start=1):
        key = (json.dumps(row.config), *row.options)
        if key not in known:
            say(f"[{number}/{len(rows)}] {row.id}")
            known[key] = _figures(row)
        kept[row.id] = known[key]
    libraries = ("torch", "transformers", "peft", "bitsandbytes")
    installed = {name: v for name, v in versions().items() if name in libraries}
    write_kept(kept, installed, KEPT_FILE)
    published.write_predicted(_predicted(), installed, published.KEPT_FILE)


def _figures(row: Measured) -> Kept:
    from bench.cli import memory
    from bench.cli.subject import card_of, cases_of
    from bench.predict.result import predict

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(row.config), encoding="utf-8")
        parser = argparse.ArgumentParser()
        memory.add_options(parser.add_argument)
        options = parser.parse_args([folder, *row.options])
        _, (case,) = cases_of(options)
        found = predict(case, gpu=card_of(options))
    return {
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "peak_reserved_bytes": found.peak_reserved_bytes,
        "loaded_bytes": found.loaded_bytes,
        **found.peak_by_phase,
    }


def _refresh_measured(page: Path) -> None:
    from bench.predict.evidence import load_kept, load_measured
    from bench.reports.evidence import goals_section, measured_section
    from bench.reports.published import published_section

    for section in (
        measured_section(load_measured(), load_kept()), goals_section(), published_section()
    ):  # fmt: skip
        _refresh("--page", page, section)


def _refresh(option: str, page: Path, section: str) -> None:
    """Replace a page's section; a page without the section's marks is left as it is."""
    from bench.reports.evidence import refreshed

    text = read_text(page, option)
    try:
        text = refreshed(text, section)
    except BenchError as error:
        raise BenchError(f"{option} {page}: {error}") from None
    write_output(page, text)
