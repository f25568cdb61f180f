"""`bench atlas`: rebuild the atlas of the installed transformers, or tell two atlases apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from bench.atlas.build import Progress, build_atlas, default_jobs
from bench.atlas.diff import Change, diff_atlases, summary
from bench.atlas.entries import Atlas
from bench.atlas.reviewed import with_roles
from bench.atlas.store import (
    ROOT,
    entry_to_json,
    find_atlas,
    holds_atlas,
    load_atlas,
    save_atlas,
    stored_versions,
)
from bench.atlas.workers import run_all
from bench.errors import BenchError


def atlas_command(
    output: Path | None = None,
    types: Sequence[str] = (),
    jobs: int | None = None,
    as_json: bool = False,
) -> int:
    """Build the atlas of the installed transformers and store it; the exit status.

    With `types` only those are built, and replaced in the atlas that is stored. Status 1 says that
    a type which the stored atlas holds builds no more (the atlas is written all the same).
    Interrupted, nothing is written.
    """
    import transformers

    folder = output or ROOT / f"transformers-{transformers.__version__}"
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
    if jobs is not None and jobs < 1:
        raise BenchError(f"--jobs must be a whole number of at least 1, not {jobs}")
    with _Bar() as progress:
        built = build_atlas(types or None, jobs or default_jobs(), progress)
    atlas = _merged(stored, built) if types and stored else built
    save_atlas(atlas, folder)
    changes = diff_atlases(stored, atlas) if stored else []
    _show(built, as_json)
    if not as_json:
        _show_changes(changes)
        print(f"{len(atlas.types)} of {atlas.known} model types: {folder}")
    return 1 if any(c.model_type in atlas.unbuilt for c in changes) else 0


def atlas_diff_command(old: str, new: str, as_json: bool = False) -> int:
    """What changed from one atlas to another (versions or folders); 1 if anything did.

    Roles are assigned again on both sides, so that a difference is one of the models.
    """
    before, after = (with_roles(load_atlas(find_atlas(name))) for name in (old, new))
    changes = diff_atlases(before, after)
    if as_json:
        for change in changes:
            print(json.dumps(change.to_json()))
    else:
        _show_changes(changes)
        if not changes:
            print(f"no difference: transformers {before.transformers} and {after.transformers}")
    return 1 if changes else 0


def reach_command(name: str = "", jobs: int | None = None, types: Sequence[str] = ()) -> int:
    """Inject every scenario into every type (of `types`, if given) and store what PEFT reached.

    Status 1 says that the ledger differs from PEFT somewhere; the differences are listed. It takes
    some minutes.
    """
    from importlib.metadata import version

    import transformers

    from bench.atlas.reach import Reach, inject_type, load_reach, save_reach

    folder = find_atlas(name or transformers.__version__)
    known = list(load_atlas(folder).types)
    found = {} if not types else dict(load_reach(folder).types)
    failed = False
    wanted = [t for t in known if not types or t in types]
    with _Bar() as progress:
        runs = run_all(inject_type, wanted, jobs or default_jobs())
        for done, (model_type, answers, problem) in enumerate(runs, 1):
            progress(model_type, done, len(wanted))
            if problem:
                raise BenchError(f"{model_type}: {problem}")
            found[model_type] = {s: a["outcome"] for s, a in answers.items()}
            for scenario, a in answers.items():
                if a["outcome"] != a["ledger"] or a["only_peft"] or a["only_ledger"]:
                    failed = True
                    print(f"{model_type}, {scenario}: {json.dumps(a)}")
    save_reach(Reach(transformers.__version__, version("peft"), found), folder)
    print(f"{len(wanted)} model types: {folder}")
    return 1 if failed else 0


def roles_command(names: Sequence[str] = ()) -> int:
    """Assign the roles of stored atlases (default: all) again, without building a model."""
    for name in names or stored_versions():
        folder = find_atlas(name)
        save_atlas(with_roles(load_atlas(folder)), folder)
        print(folder)
    return 0


def _merged(stored: Atlas, built: Atlas) -> Atlas:
    again = {*built.types, *built.unbuilt}
    types = {t: e for t, e in stored.types.items() if t not in again} | dict(built.types)
    unbuilt = {t: r for t, r in stored.unbuilt.items() if t not in again} | dict(built.unbuilt)
    return replace(stored, types=types, unbuilt=unbuilt)


def _show(atlas: Atlas, as_json: bool) -> None:
    if as_json:
        for model_type, entry in atlas.types.items():
            print(json.dumps({"model_type": model_type, **entry_to_json(entry)}))
    for model_type, reason in atlas.unbuilt.items():
        if as_json:
            print(json.dumps({"model_type": model_type, "unbuilt": reason}))
        else:
            print(f"{model_type}: not built: {reason}")


def _show_changes(changes: Sequence[Change]) -> None:
    # A type that is new, gone or buildable again is one word; it needs no paragraph of its own.
    for kind, alike in groupby(
        sorted((c for c in changes if not c.old + c.new), key=lambda c: (c.kind, c.detail)),
        key=lambda c: (c.kind, c.detail),
    ):
        detail = f" ({kind[1]})" if kind[1] else ""
        print(f"{kind[0]}{detail}: {', '.join(c.model_type for c in alike)}")
    named = [c for c in changes if c.old + c.new]
    for model_type, own in groupby(named, key=lambda c: c.model_type):
        print(f"{model_type}")
        for change in own:
            print(f"  {change}")
    if changes:
        counts = ", ".join(f"{kind} {n}" for kind, n in summary(changes).items())
        print(f"model types by kind of change: {counts}")


class _Bar:
    """A progress bar on standard error, so that standard output stays data."""

    def __enter__(self) -> Progress:
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
