"""`bench atlas`: rebuild the atlas of the installed transformers, or tell two atlases apart."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import TEXT, Add, add_format, add_list, add_plot
from bench.cli.output import json_lines, put, save_figure
from bench.errors import BenchError, check_most
from bench.files import INSTALLED, read_text, write_output

if TYPE_CHECKING:
    from bench.atlas.build import Done
    from bench.atlas.entries import Atlas
    from bench.atlas.workers import Run

HELP = "what every model type of transformers is made of"


def add_options(add: Add) -> None:
    """What to build, or what to do instead."""
    # fmt: off
    add_list(add, "--types", help="only these model types")
    add("--output", type=Path, metavar="DIR",
        help="where to store (default, in a checkout: fixtures/atlas)")
    add("--jobs", type=int, metavar="N", help="processes (default: one a core)")
    add("--cluster", metavar="ADDRESS",
        help="... or on the nodes of this Ray cluster: auto, or HOST:PORT (docs/scale.md)")
    add("--diff", nargs=2, metavar=("OLD", "NEW"), help="tell two stored atlases apart instead")
    add("--reach", action="store_true",
        help="inject the popular targets into every type instead, and store what PEFT reaches")
    add("--roles", action="store_true", help="assign the roles of every stored atlas again instead")
    add("--renames", action="store_true",
        help="store which names have moved since the stored earlier releases instead")
    add("--page", type=Path, metavar="FILE", help="bring the figures of docs/atlas.md up to date")
    add_plot(add, "instead draw what the popular targets reach on every causal-LM type")
    add_format(add, "terminal", TEXT)
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Build the atlas, or answer from the stored ones."""
    given = [o for o in (*_MODES, "types", "output", "jobs", "cluster") if getattr(options, o)]
    given += ["json"] if options.format == "json" else []
    mode = next((name for name in given if name in _MODES), "")
    if not mode:
        return _build(options)
    if mode in _STORING and INSTALLED:
        raise BenchError(
            f"--{mode} writes the stored atlases, which an installation leaves as they are: run it "
            "in a checkout of the project"
        )
    carry_out, along = _MODES[mode]
    if others := {*given} - {mode, *along}:
        raise BenchError(f"--{mode} does not go with --{' or --'.join(sorted(others))}")
    return carry_out(options)


def _build(options: argparse.Namespace) -> int:
    """Build the atlas of the installed transformers and store it; the exit status.

    With `--types` only those are built, and replaced in the atlas that is stored. Status 1 says
    that a type which the stored atlas holds builds no more (the atlas is written all the same).
    Interrupted, nothing is written.
    """
    import transformers

    from bench.atlas.build import build_atlas
    from bench.atlas.diff import change_lines, diff_atlases
    from bench.atlas.store import ROOT, check_writable, holds_atlas, load_atlas, save_atlas

    types = options.types
    _check_jobs(options)
    if INSTALLED and options.output is None:
        raise BenchError(
            "an installation leaves its stored atlases as they are: give --output DIR, where to "
            "store this one"
        )
    folder = options.output or ROOT / f"transformers-{transformers.__version__}"
    check_writable(folder)
    stored = load_atlas(folder) if holds_atlas(folder) else None
    if stored and stored.transformers != transformers.__version__:
        raise BenchError(
            f"{folder}: holds the atlas of transformers {stored.transformers}, and "
            f"{transformers.__version__} is installed; give another --output"
        )
    if types and not stored:
        raise BenchError(
            f"{folder}: holds no atlas to put {', '.join(types)} in; build all types first"
        )
    with _runner(options) as run, _Bar() as progress:
        built = build_atlas(types or None, run, progress)
    atlas = _merged(stored, built) if types and stored else built
    save_atlas(atlas, folder)
    changes = diff_atlases(stored, atlas) if stored else []
    as_json = options.format == "json"
    _show(built, as_json)
    if not as_json:
        _print(change_lines(changes))
        print(f"{len(atlas.types)} of {atlas.known} model types: {folder}")
    return 1 if any(c.model_type in atlas.unbuilt for c in changes) else 0


def _diff(options: argparse.Namespace) -> int:
    """What changed from one atlas to another (versions or folders), in `--types` or in all; 1 if
    anything did.

    Roles are assigned again on both sides, so that a difference is one of the models.
    """
    from bench.atlas.build import check_type_name
    from bench.atlas.diff import change_lines, diff_atlases
    from bench.atlas.reviewed import with_roles
    from bench.atlas.store import find_atlas, load_atlas

    old, new = options.diff
    before, after = (with_roles(load_atlas(find_atlas(name))) for name in (old, new))
    known = {*before.types, *before.unbuilt, *after.types, *after.unbuilt}
    wanted = {check_type_name(t, known, f"{old} and {new}") for t in options.types} or known
    changes = [c for c in diff_atlases(before, after) if c.model_type in wanted]
    if options.format == "json":
        put(json_lines(change.to_json() for change in changes))
    else:
        _print(change_lines(changes))
        if not changes:
            print(f"no difference: transformers {before.transformers} and {after.transformers}")
    return 1 if changes else 0


def _reach(options: argparse.Namespace) -> int:
    """Inject every scenario into every type (of `--types`, if given) of the installed
    transformers' atlas, and store what PEFT reached.

    Status 1 says that the ledger differs from PEFT somewhere; the differences are listed. It takes
    some minutes.
    """
    from importlib.metadata import version

    import transformers

    from bench.atlas.build import check_type_name
    from bench.atlas.store import find_atlas, load_atlas
    from bench.measure.reach import StoredReach, inject_type, load_reach, save_reach

    types = options.types
    _check_jobs(options)
    folder = find_atlas(transformers.__version__)
    known = list(load_atlas(folder).types)
    wanted = [check_type_name(t, known, str(folder)) for t in types] or known
    found = dict(load_reach(folder).types) if types else {}
    failed = False
    with _runner(options) as run, _Bar() as progress:
        runs = run(inject_type, wanted)
        for done, (model_type, answers, problem) in enumerate(runs, 1):
            progress(model_type, done, len(wanted))
            if problem:
                raise BenchError(f"{model_type}: {problem}")
            found[model_type] = {s: a["outcome"] for s, a in answers.items()}
            for scenario, a in answers.items():
                if a["outcome"] != a["ledger"] or a["only_peft"] or a["only_ledger"]:
                    failed = True
                    print(f"{model_type}, {scenario}: {json.dumps(a)}")
    save_reach(StoredReach(transformers.__version__, version("peft"), found), folder)
    print(f"{len(wanted)} model types: {folder}")
    return 1 if failed else 0


def _roles(_: argparse.Namespace) -> int:
    """Assign the roles of every stored atlas again, without building a model."""
    from bench.atlas.reviewed import with_roles
    from bench.atlas.store import find_atlas, load_atlas, save_atlas, stored_versions

    for name in stored_versions():
        folder = find_atlas(name)
        save_atlas(with_roles(load_atlas(folder)), folder)
        print(folder)
    return 0


def _renames(_: argparse.Namespace) -> int:
    """Store which names have moved since the stored earlier releases."""
    from bench.atlas.renames import FILE, as_text, find_renames

    write_output(FILE, as_text(find_renames()))
    print(FILE)
    return 0


def _page(options: argparse.Namespace) -> int:
    """Bring the figures of a page, between its marks, up to date with the stored atlases."""
    from bench.reports.atlas import refresh

    path = options.page
    write_output(path, refresh(read_text(path), str(path)))
    print(path)
    return 0


def _plot(options: argparse.Namespace) -> int:
    """Draw the share of the linear weights that the popular targets reach on each causal-LM type of
    the newest stored atlas."""
    from bench.atlas import find_atlas, load_atlas, stored_versions
    from bench.atlas.build import check_type_name
    from bench.measure.reach import SCENARIOS, scenarios_for
    from bench.reports.plots import coverage_figure, plot_format
    from bench.targets import match

    plot_format(options.plot)
    folder = find_atlas(stored_versions()[-1])
    atlas = load_atlas(folder)
    asked = [check_type_name(t, atlas.types, str(folder)) for t in options.types]
    shares: dict[str, list[float | None]] = {}
    for model_type in asked or atlas.causal_lms:
        table, known = atlas.types[model_type].table(model_type), scenarios_for(model_type)
        ledgers = [match(table, known[name]) if name in known else None for name in SCENARIOS]
        shares[model_type] = [None if one is None or one.refusals else one.weight_coverage
                              for one in ledgers]  # fmt: skip
    title = f"What popular target modules reach, transformers {atlas.transformers}"
    footer = "Shares of the linear weights (experts counted, output embedding not), by the ledger."
    save_figure(coverage_figure(title, list(SCENARIOS), shares, footer), options.plot)
    print(options.plot)
    return 0


_MODES: dict[str, tuple[Callable[[argparse.Namespace], int], tuple[str, ...]]] = {
    "diff": (_diff, ("types", "json")),
    "reach": (_reach, ("types", "jobs", "cluster")),
    "roles": (_roles, ()),
    "renames": (_renames, ()),
    "page": (_page, ()),
    "plot": (_plot, ("types",)),
}
"""What the command can do besides building, and the options that go with each."""
_STORING = ("reach", "roles", "renames")
"""Those that write where the stored atlases lie."""


@contextlib.contextmanager
def _runner(options: argparse.Namespace) -> Iterator[Run]:
    """What builds the types: --jobs processes here, or a cluster's nodes."""
    if options.cluster is not None:
        from bench.measure.cluster import Cluster

        with Cluster(options.cluster) as cluster:
            yield cluster.run_all
        return
    from bench.atlas.build import default_jobs
    from bench.atlas.workers import run_all

    yield partial(run_all, jobs=options.jobs or default_jobs())


def _check_jobs(options: argparse.Namespace) -> None:
    if options.jobs is not None and options.jobs < 1:
        raise BenchError(f"--jobs must be a whole number of at least 1, not {options.jobs}")
    check_most("--jobs", options.jobs, 256)
    if options.jobs is not None and options.cluster is not None:
        raise BenchError("--jobs does not go with --cluster: its nodes say how many they take")


def _merged(stored: Atlas, built: Atlas) -> Atlas:
    again = {*built.types, *built.unbuilt}
    types = {t: e for t, e in stored.types.items() if t not in again} | dict(built.types)
    unbuilt = {t: r for t, r in stored.unbuilt.items() if t not in again} | dict(built.unbuilt)
    return replace(stored, types=types, unbuilt=unbuilt)


def _show(atlas: Atlas, as_json: bool) -> None:
    from bench.atlas.store import entry_to_json

    if as_json:
        for model_type, entry in atlas.types.items():
            put(json_lines([{"model_type": model_type, **entry_to_json(entry)}]))
    for model_type, reason in atlas.unbuilt.items():
        if as_json:
            put(json_lines([{"model_type": model_type, "unbuilt": reason}]))
        else:
            print(f"{model_type}: not built: {reason}")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


class _Bar:
    """A progress bar on standard error, so that standard output stays data."""

    def __enter__(self) -> Done:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        task = self._progress.add_task("starting", total=None)
        self._progress.start()

        def show(item: str, done: int, total: int) -> None:
            self._progress.update(task, description=item, completed=done, total=total)

        return show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
